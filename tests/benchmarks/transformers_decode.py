"""Batched decoding with transformers' generate, of the model that `hone bench rollout --json` decoded.

    python transformers_decode.py MODEL.json     what it printed: shapes, threads, batch, lengths

A random LlamaForCausalLM of the same shape samples at temperature 1 from equally long prompts, without
an end token, so every sequence gets all its tokens. The time of a run of one token (which is the
prefill) is taken off. Prints one JSON object.
"""
import json
import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main():
    with open(sys.argv[1]) as file:
        run = json.load(file)
    m = run["model"]
    torch.set_num_threads(run["threads"])
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=m["hidden_size"], intermediate_size=m["intermediate_size"],
        num_hidden_layers=m["layers"], num_attention_heads=m["heads"], num_key_value_heads=m["kv_heads"],
        head_dim=m["head_dim"], vocab_size=m["vocab_size"], max_position_embeddings=4096,
        tie_word_embeddings=True, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).eval()
    batch, new_tokens = run["batch"], run["new_tokens"]
    prompts = torch.randint(0, m["vocab_size"], (batch, run["prompt"]))
    mask = torch.ones_like(prompts)
    now = time.process_time if run["clock"] == "cpu" else time.perf_counter

    def seconds_of(tokens):
        begin = now()
        with torch.inference_mode():
            model.generate(prompts, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens,
                           do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
                           eos_token_id=None)
        return now() - begin

    seconds_of(2)
    seconds = [seconds_of(new_tokens) - seconds_of(1) for _ in range(2)]
    count = batch * (new_tokens - 1)
    print(json.dumps({
        "tokens_per_second": count / min(seconds),
        "tokens_per_second_median": count / statistics.median(seconds),
    }))


main()
