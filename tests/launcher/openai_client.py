"""Talks to `hone serve` as users of the official `openai` package do; exits 0 when all is as it should be.

usage: openai_client.py BASE_URL API_KEY MODEL CONTEXT      (openai_test.cc starts it)
"""
import asyncio
import sys

import openai

URL, KEY, MODEL, CONTEXT = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=60)
QUESTION = [{"role": "user", "content": "Hi"}]


def chat(**options):
    options = {"model": MODEL, "messages": QUESTION, "max_tokens": 24, "seed": 5, **options}
    return client.chat.completions.create(**options)


def said(choice):
    return getattr(choice.message, "reasoning_content", None) or "", choice.message.content or ""


def refused(error, code, **options):
    try:
        chat(**options)
    except error as e:
        assert e.code == code, (e.code, code)
        assert str(e), "an error says what is wrong"
        return e
    raise AssertionError(f"{options} was not refused with {error.__name__}")


def models():
    assert [m.id for m in client.models.list()] == [MODEL]


def one_answer():
    answer = chat()
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason == "length", choice
    assert answer.usage.completion_tokens == 24 and answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    assert said(chat().choices[0]) == said(choice), "the same seed gives the same text"
    assert said(chat(seed=6).choices[0]) != said(choice)


def streaming():
    whole = chat()
    thought = content = ""
    finish, usages = None, []
    for event in chat(stream=True, stream_options={"include_usage": True}):
        usages.append(event.usage)
        for choice in event.choices:
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert (thought, content) == said(whole.choices[0])
    assert finish == "length"
    assert usages[-1] == whole.usage and not any(usages[:-1]), usages


def stopping():
    text = client.completions.create(model=MODEL, prompt="ab", max_tokens=60, seed=3).choices[0].text
    at = next(i for i in range(10, len(text)) if text[i].isascii() and text[i + 1].isascii())
    word = text[at:at + 2]
    cut = client.completions.create(model=MODEL, prompt="ab", max_tokens=60, seed=3, stop=[word, "never said"])
    assert cut.choices[0].text == text[:text.find(word)] and cut.choices[0].finish_reason == "stop"


def four_choices():
    answer = chat(n=4)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert len({said(c) for c in answer.choices}) == 4
    assert said(answer.choices[0]) == said(chat().choices[0])
    streamed = [["", ""] for _ in range(4)]
    for event in chat(n=4, stream=True):
        for choice in event.choices:
            streamed[choice.index][0] += getattr(choice.delta, "reasoning_content", None) or ""
            streamed[choice.index][1] += choice.delta.content or ""
    assert [tuple(s) for s in streamed] == [said(c) for c in answer.choices]


def log_probabilities():
    tokens = chat(logprobs=True, top_logprobs=20, temperature=0).choices[0].logprobs.content
    assert len(tokens) == 24
    for token in tokens:
        assert len(token.top_logprobs) == 20
        assert token.top_logprobs[0].logprob == token.logprob <= 0  # greedy: the likeliest
        assert token.top_logprobs[0].bytes == token.bytes
        falling = [t.logprob for t in token.top_logprobs]
        assert falling == sorted(falling, reverse=True)


def errors():
    e = refused(openai.NotFoundError, "model_not_found", model="gpt-5")
    assert "gpt-5" in str(e) and e.status_code == 404
    e = refused(openai.BadRequestError, None, temperature=7)
    assert e.param == "temperature", e.param
    refused(openai.BadRequestError, None, tools=[{"type": "function", "function": {"name": "f"}}])
    long = [{"role": "user", "content": "x" * CONTEXT}]
    refused(openai.BadRequestError, "context_length_exceeded", messages=long)
    stranger = openai.OpenAI(base_url=URL, api_key="wrong", max_retries=0)
    try:
        stranger.models.list()
        raise AssertionError("a wrong key was let in")
    except openai.AuthenticationError as e:
        assert e.status_code == 401 and e.code == "invalid_api_key"


def thinking_apart():
    """The template opens <think>; what is drawn before </think> is reasoning. A random model closes it rarely."""
    for seed in range(60):
        thought, content = said(chat(seed=seed, max_tokens=600).choices[0])
        assert "</think>" not in thought + content
        if thought and content:
            return
    raise AssertionError("no answer has both parts")


def a_client_leaves():
    stream = chat(max_tokens=CONTEXT // 2, stream=True, n=8)
    next(iter(stream))
    stream.close()
    assert chat().choices[0].finish_reason == "length"


async def sixty_four_at_once():
    many = openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=120)

    async def ask(i):
        answer = await many.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24, seed=i % 8)
        return said(answer.choices[0])

    answers = await asyncio.gather(*(ask(i) for i in range(64)))
    assert len(answers) == 64
    for i, answer in enumerate(answers):
        assert answer == answers[i % 8], i
    assert answers[5] == said(chat().choices[0])


for check in (models, one_answer, streaming, stopping, four_choices, log_probabilities, errors, thinking_apart,
              a_client_leaves):
    check()
    print(check.__name__)
asyncio.run(sixty_four_at_once())
print("sixty_four_at_once")
