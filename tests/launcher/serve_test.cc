// `hone serve` through real HTTP on loopback, in front of a small model with random weights.
#include <gmock/gmock.h>
#include <httplib.h>

#include <atomic>
#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>
#include <tuple>

#include "launcher/serve/api_server.h"
#include "tests/launcher/tiny_served_model.h"
#include "tests/read_json.h"

namespace hone::launcher {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

constexpr int64_t kContext = 8192, kLong = 8000;

class ServeTest : public ::testing::Test {
 protected:
  void SetUp() override { Start(ServeOptions{}); }
  void TearDown() override { Finish(); }

  void Start(ServeOptions options) {
    Finish();
    model_ = TinyModel(kContext, "chatml");
    options.port = 0;
    options.model_name = "tiny";
    options.limits.context = kContext;
    options.engine.max_tokens = kContext;
    options.engine.max_batch = 32;
    server_ = std::make_unique<ApiServer>(model_, options);
    thread_ = std::thread([this] { server_->Run(); });
  }
  void Finish() {
    if (!server_) return;
    server_->Stop();
    thread_.join();
    server_.reset();
  }
  httplib::Client Client() const {
    httplib::Client client("127.0.0.1", server_->port());
    client.set_read_timeout(60);
    return client;
  }
  // Status and body.
  std::pair<int, json> Post(const std::string& path, const json& body) const {
    auto result = Client().Post(path, body.dump(), "application/json");
    if (!result) return {0, httplib::to_string(result.error())};
    return {result->status, ParseJson(result->body, false)};
  }
  // The objects of a stream; the last line must be [DONE].
  // `begun`, if given, becomes true when the first bytes of the answer are here.
  std::vector<json> Stream(const std::string& path, json body,
                           std::atomic<bool>* begun = nullptr) const {
    body["stream"] = true;
    std::string answer;
    httplib::Request request;
    request.method = "POST";
    request.path = path;
    request.set_header("Content-Type", "application/json");
    request.body = body.dump();
    request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
      answer.append(data, size);
      if (begun) *begun = true;
      return true;
    };
    auto result = Client().send(request);
    EXPECT_TRUE(result);
    if (!result) return {};
    EXPECT_EQ(result->get_header_value("Content-Type"), "text/event-stream");
    std::vector<json> events;
    std::istringstream lines(answer);
    std::string line, last;
    while (std::getline(lines, line)) {
      if (!line.starts_with("data: ")) continue;
      last = line.substr(6);
      if (last != "[DONE]") events.push_back(ParseJson(last));
    }
    EXPECT_EQ(last, "[DONE]");
    return events;
  }
  static std::string TextOf(const json& response) { return response["choices"][0]["text"]; }

  rl::LoadedModel model_;
  std::unique_ptr<ApiServer> server_;
  std::thread thread_;
};

// What the engine gives when it is asked alone, as the endpoint should spell it.
std::string Expected(const std::string& prompt, int64_t tokens, uint64_t seed, double temperature) {
  rl::LoadedModel m = TinyModel(kContext, "chatml");
  rl::EngineConfig config;
  config.max_tokens = kContext;
  rl::InferenceEngine engine(*m.ctx, *m.stage, config);
  rl::GenerateRequest request;
  request.prompt = m.tokenizer->Encode(prompt);
  request.max_new_tokens = tokens;
  request.sampling.temperature = temperature;
  request.stop_ids = m.stop_ids;
  request.stream = RandomStream{seed, 0};
  engine.Add(request);
  std::vector<rl::GenerateResult> done;
  while (done.empty()) done = engine.Step();
  data::IncrementalDecoder decoder(*m.tokenizer);
  std::string text;
  for (int32_t token : done[0].tokens) {
    if (token != m.tokenizer->eos_id()) text += decoder.Push(token);
  }
  return text + decoder.Flush();
}

TEST_F(ServeTest, ListsItsModel) {
  auto result = Client().Get("/v1/models");
  ASSERT_TRUE(result);
  EXPECT_EQ(ParseJson(result->body)["data"][0]["id"], "tiny");
}

TEST_F(ServeTest, CompletesAsTheEngineAlone) {
  auto [status, body] = Post("/v1/completions", {{"prompt", "Once upon"},
                                                 {"max_tokens", 40},
                                                 {"temperature", 0.8},
                                                 {"seed", 11},
                                                 {"logprobs", 1}});
  ASSERT_EQ(status, 200) << body;
  EXPECT_EQ(TextOf(body), Expected("Once upon", 40, 11, 0.8));
  const int64_t drawn = body["usage"]["completion_tokens"];
  EXPECT_EQ(body["usage"]["prompt_tokens"], 9);
  EXPECT_EQ(body["usage"]["total_tokens"], 9 + drawn);
  const json& logprobs = body["choices"][0]["logprobs"];
  ASSERT_EQ(static_cast<int64_t>(logprobs["token_logprobs"].size()), drawn);
  for (double logp : logprobs["token_logprobs"]) EXPECT_LT(logp, 0);
}

TEST_F(ServeTest, AStreamSaysTheSame) {
  const json request = {{"prompt", "abc"},
                        {"max_tokens", 30},
                        {"seed", 5},
                        {"stream_options", {{"include_usage", true}}}};
  auto [status, whole] = Post("/v1/completions", request);
  ASSERT_EQ(status, 200);
  std::string text, finish;
  json usage;
  for (const json& event : Stream("/v1/completions", request)) {
    if (event.contains("usage")) usage = event["usage"];
    for (const json& choice : event["choices"]) {
      text += choice["text"];
      if (choice["finish_reason"].is_string()) finish = choice["finish_reason"];
    }
  }
  EXPECT_EQ(text, TextOf(whole));
  EXPECT_EQ(whole["choices"][0]["finish_reason"], finish);
  EXPECT_EQ(usage, whole["usage"]);
}

TEST_F(ServeTest, ChatRendersTheTemplate) {
  const json messages = {{{"role", "user"}, {"content", "Hi"}}};
  auto [status, body] =
      Post("/v1/chat/completions",
           {{"messages", messages}, {"max_tokens", 12}, {"seed", 3}, {"logprobs", true}});
  ASSERT_EQ(status, 200) << body;
  const std::string prompt =
      model_.chat_template->Text({{"user", "Hi", ""}}, {.add_generation_prompt = true});
  EXPECT_EQ(body["choices"][0]["message"]["content"], Expected(prompt, 12, 3, 1.0));
  EXPECT_EQ(body["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(body["choices"][0]["logprobs"]["content"].size(),
            body["usage"]["completion_tokens"].get<size_t>());
  std::string streamed;
  for (const json& event :
       Stream("/v1/chat/completions", {{"messages", messages}, {"max_tokens", 12}, {"seed", 3}})) {
    streamed += event["choices"][0]["delta"].value("content", "");
  }
  EXPECT_EQ(body["choices"][0]["message"]["content"], streamed);
}

TEST_F(ServeTest, AStreamNamesItsRoleOnce) {
  model_.stop_ids.clear();
  const json messages = {{{"role", "user"}, {"content", "Hi"}}};
  const std::vector<json> events =
      Stream("/v1/chat/completions", {{"messages", messages}, {"max_tokens", kLong / 2}});
  ASSERT_GT(events.size(), 1u);
  for (const json& event : events) {
    EXPECT_EQ(event["choices"][0]["delta"].contains("role"), &event == &events[0]);
  }
}

// The drawn token's log-probability stands among the likeliest ones', to the bit, when it is one of
// them; together they are a distribution over the whole vocabulary.
TEST_F(ServeTest, LikeliestTokensOfAChat) {
  const json request = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
                        {"max_tokens", 12},
                        {"seed", 3},
                        {"logprobs", true},
                        {"top_logprobs", 20}};
  auto [status, body] = Post("/v1/chat/completions", request);
  ASSERT_EQ(status, 200) << body;
  int among = 0;
  const json& content = body["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), body["usage"]["completion_tokens"].get<size_t>());
  for (const json& token : content) {
    ASSERT_EQ(token["top_logprobs"].size(), 20u);
    double last = 0, mass = 0;
    for (const json& likely : token["top_logprobs"]) {
      EXPECT_LE(likely["logprob"], last);
      last = likely["logprob"];
      mass += std::exp(last);
      if (likely["bytes"] != token["bytes"]) continue;
      EXPECT_EQ(likely["logprob"], token["logprob"]);
      ++among;
    }
    EXPECT_GE(token["top_logprobs"][0]["logprob"], token["logprob"]);
    EXPECT_LT(mass, 1 + 1e-5);
    EXPECT_GT(mass, 20.0 / 263);  // of 263 tokens, the likeliest 20
  }
  EXPECT_GT(among, 0);
  // A streamed answer has the same.
  json streamed = json::array();
  for (const json& event : Stream("/v1/chat/completions", request)) {
    if (!event["choices"][0]["logprobs"].is_object()) continue;
    for (const json& token : event["choices"][0]["logprobs"]["content"]) streamed.push_back(token);
  }
  EXPECT_EQ(streamed, content);
  json without = request;
  without.erase("logprobs");
  EXPECT_EQ(Post("/v1/chat/completions", without).first, 400);
  without["logprobs"] = true;
  without["top_logprobs"] = 21;
  EXPECT_EQ(Post("/v1/chat/completions", without).first, 400);
}

TEST_F(ServeTest, LikeliestTokensOfACompletion) {
  auto [status, body] =
      Post("/v1/completions",
           {{"prompt", "ab"}, {"max_tokens", 8}, {"temperature", 0}, {"logprobs", 3}});
  ASSERT_EQ(status, 200) << body;
  const json& logprobs = body["choices"][0]["logprobs"];
  ASSERT_EQ(logprobs["top_logprobs"].size(), logprobs["token_logprobs"].size());
  for (size_t i = 0; i < logprobs["token_logprobs"].size(); ++i) {
    double best = -1e9;
    for (const auto& [text, logp] : logprobs["top_logprobs"][i].items()) {
      best = std::max(best, logp.get<double>());
    }
    EXPECT_EQ(best, logprobs["token_logprobs"][i]);  // greedy: the drawn one is the likeliest
  }
  std::tie(status, body) =
      Post("/v1/completions", {{"prompt", "ab"}, {"max_tokens", 2}, {"logprobs", 0}});
  ASSERT_EQ(status, 200) << body;
  EXPECT_TRUE(body["choices"][0]["logprobs"].at("top_logprobs").is_null());
}

// Each response comes from one version of the weights, and says from which.
TEST_F(ServeTest, WeightsAreReplacedBetweenRequests) {
  const json request = {{"prompt", "swap"}, {"max_tokens", 400}, {"seed", 4}};
  const json before = Post("/v1/completions", request).second;
  EXPECT_FALSE(before.contains("system_fingerprint"));
  std::atomic<bool> begun = false;
  std::vector<json> first, during(6);
  std::vector<std::jthread> clients;
  clients.emplace_back([&] { first = Stream("/v1/completions", request, &begun); });
  for (json& response : during) {
    clients.emplace_back([&] { response = Post("/v1/completions", request).second; });
  }
  for (int i = 0; i < 60'000 && !begun; ++i) std::this_thread::sleep_for(1ms);
  ASSERT_TRUE(begun);
  ASSERT_TRUE(server_->Replace([&] { model_.stage->Initialize(8); }, "second"));
  const json after = Post("/v1/completions", request).second;
  clients.clear();  // joins
  EXPECT_EQ(after["system_fingerprint"], "second");
  EXPECT_NE(TextOf(after), TextOf(before));
  std::string text;  // begun with the old weights and ended with them
  for (const json& event : first) {
    EXPECT_FALSE(event.contains("system_fingerprint"));
    for (const json& choice : event["choices"]) text += choice["text"];
  }
  EXPECT_EQ(text, TextOf(before));
  for (const json& response : during) {
    const bool is_old = !response.contains("system_fingerprint");
    EXPECT_EQ(TextOf(response), TextOf(is_old ? before : after));
  }
  // Back again: the same bits, so nothing of the other weights is left in the cache.
  ASSERT_TRUE(server_->Replace([&] { model_.stage->Initialize(7); }, "third"));
  EXPECT_EQ(TextOf(Post("/v1/completions", request).second), TextOf(before));
  EXPECT_EQ(Stream("/v1/completions", request)[0]["system_fingerprint"], "third");
}

TEST_F(ServeTest, ChoicesDifferAndRepeatWithTheirSeed) {
  const json request = {{"prompt", "x"}, {"max_tokens", 20}, {"n", 4}, {"seed", 9}};
  auto [status, body] = Post("/v1/completions", request);
  ASSERT_EQ(status, 200);
  ASSERT_EQ(body["choices"].size(), 4u);
  EXPECT_NE(body["choices"][0]["text"], body["choices"][1]["text"]);
  EXPECT_EQ(Post("/v1/completions", request).second["choices"], body["choices"]);
}

TEST_F(ServeTest, NothingOfAStopStringIsShown) {
  const json request = {{"prompt", "stop"}, {"max_tokens", 60}, {"seed", 21}};
  const std::string full = TextOf(Post("/v1/completions", request).second);
  // A stretch of plain characters from the middle of the text.
  size_t at = full.size() / 3;
  while (at + 2 < full.size() && ((full[at] | full[at + 1]) & 0x80)) ++at;
  ASSERT_LT(at + 2, full.size());
  const std::string word = full.substr(at, 2);
  json stopped = request;
  stopped["stop"] = {word, "never said"};
  const std::string expected = full.substr(0, full.find(word));
  auto [status, body] = Post("/v1/completions", stopped);
  EXPECT_EQ(TextOf(body), expected);
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  std::string streamed;
  for (const json& event : Stream("/v1/completions", stopped)) {
    streamed += event["choices"][0]["text"];
  }
  EXPECT_EQ(streamed, expected);
}

TEST_F(ServeTest, SixtyFourAtOnceAndNoneLost) {
  std::vector<std::string> texts(64);
  std::vector<int> status(64);
  std::vector<std::thread> clients;
  for (size_t i = 0; i < texts.size(); ++i) {
    clients.emplace_back([&, i] {
      const std::string prompt = "request " + std::to_string(i % 8);
      auto [code, body] =
          Post("/v1/completions", {{"prompt", prompt}, {"max_tokens", 24}, {"seed", i % 8}});
      EXPECT_EQ(code, 200) << body;
      status[i] = code;
      if (code == 200) texts[i] = TextOf(body);
    });
  }
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < texts.size(); ++i) {
    ASSERT_EQ(status[i], 200) << i;
    EXPECT_EQ(texts[i], texts[i % 8]) << i;
  }
  EXPECT_EQ(texts[3], Expected("request 3", 24, 3, 1.0));
  EXPECT_EQ(server_->under_way(), 0);
}

TEST_F(ServeTest, AVanishedClientLeavesTheEngine) {
  model_.stop_ids.clear();  // what nobody waits for would go on to its length
  int64_t cancelled = 0;
  for (const bool stream : {false, true}) {
    httplib::Request request;
    request.method = "POST";
    request.path = "/v1/completions";
    request.body =
        json{{"prompt", "p"}, {"max_tokens", kLong}, {"n", 16}, {"stream", stream}}.dump();
    // One gives up waiting, the other hangs up at the first byte.
    request.content_receiver = [](const char*, size_t, uint64_t, uint64_t) { return false; };
    httplib::Client client("127.0.0.1", server_->port());
    client.set_read_timeout(std::chrono::milliseconds(stream ? 10'000 : 20));
    EXPECT_FALSE(client.send(request));
    client.stop();
    const auto deadline = std::chrono::steady_clock::now() + 20s;
    // Who gives up early may be gone before the engine has heard of the request.
    auto over = [&] { return server_->cancelled() > cancelled && server_->under_way() == 0; };
    while (!over() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(1ms);
    }
    EXPECT_EQ(server_->under_way(), 0);
    EXPECT_GT(server_->cancelled(), cancelled);
    cancelled = server_->cancelled();
  }
  EXPECT_EQ(Post("/v1/completions", {{"prompt", "still here"}, {"max_tokens", 2}}).first, 200);
  ASSERT_TRUE(server_->Replace([] {}, ""));  // no sooner than nothing is left in the engine
  EXPECT_LT(ParseJson(Client().Get("/health")->body).at("tokens"), 16 * kLong);
}

// Logits over it would not be finite: it counts as 0.
TEST_F(ServeTest, ATinyTemperatureIsGreedy) {
  auto [status, body] = Post("/v1/completions",
                             {{"prompt", "Once upon"}, {"max_tokens", 8}, {"temperature", 1e-300}});
  ASSERT_EQ(status, 200) << body;
  EXPECT_EQ(TextOf(body), Expected("Once upon", 8, 0, 0));
}

TEST_F(ServeTest, WhatIsWrongIsSaid) {
  auto refused = [&](const json& body, const std::string& parameter) {
    auto [status, answer] = Post("/v1/completions", body);
    EXPECT_EQ(status, 400) << body;
    ASSERT_TRUE(answer.contains("error")) << answer;
    EXPECT_EQ(answer["error"]["param"], parameter) << answer;
    EXPECT_EQ(answer["error"]["type"], "invalid_request_error");
  };
  refused({{"max_tokens", 3}}, "prompt");
  refused({{"prompt", "x"}, {"max_tokens", 0}}, "max_tokens");
  refused({{"prompt", "x"}, {"temperature", "hot"}}, "temperature");
  refused({{"prompt", std::string(kContext, 'x')}}, "prompt");
  refused({{"prompt", {1, 2, 263}}}, "prompt");
  refused({{"prompt", "x"}, {"n", 17}}, "n");
  refused({{"prompt", "x"}, {"frequency_penalty", 0.5}}, "frequency_penalty");
  auto [missing, no_model] = Post("/v1/completions", {{"prompt", "x"}, {"model", "gpt-5"}});
  EXPECT_EQ(missing, 404);
  EXPECT_EQ(no_model["error"]["code"], "model_not_found");
  EXPECT_EQ(Post("/v1/completions", {{"prompt", "x"}, {"model", "tiny"}, {"max_tokens", 1}}).first,
            200);
  EXPECT_EQ(
      Post("/v1/completions", {{"prompt", std::string(kContext, 'x')}}).second["error"]["code"],
      "context_length_exceeded");
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  for (const std::string& body : {std::string("{not json"), R"({"prompt": )" + deep + "}",
                                  R"({"prompt": "x", "model": )" + deep + "}"}) {
    auto result = Client().Post("/v1/completions", body, "application/json");
    ASSERT_TRUE(result);
    EXPECT_EQ(result->status, 400);
  }
  auto result = Client().Get("/v1/unknown");
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 404);
  EXPECT_THAT(result->body, HasSubstr("no such endpoint"));
  EXPECT_EQ(
      Post("/v1/chat/completions", {{"messages", {{{"role", "nobody"}, {"content", "x"}}}}}).first,
      400);
}

// A tokenizer with tokens beyond the embedding.
TEST_F(ServeTest, ATokenWithoutAnEmbeddingIsRefused) {
  model_.tokenizer = data::MakeByteTokenizer({"[PAD]"});
  for (const char* path : {"/v1/completions", "/v1/chat/completions"}) {
    const std::string text = "one[PAD]two";
    auto [status, body] =
        Post(path, {{"prompt", text}, {"messages", {{{"role", "user"}, {"content", text}}}}});
    EXPECT_EQ(status, 400) << path;
    EXPECT_THAT(body["error"].value("message", ""), HasSubstr("'[PAD]' is token 263")) << body;
  }
}

TEST_F(ServeTest, WhatTheEngineDoesNotTakeFailsNobodyElse) {
  ServeOptions options;
  options.engine.cache_pages = 9;
  options.engine.page_size = 64;
  Start(options);
  model_.stop_ids.clear();
  const json good = {{"prompt", "abc"}, {"max_tokens", 400}, {"seed", 5}};
  for (const bool stream : {false, true}) {
    std::atomic<bool> begun = false;
    std::vector<json> events;
    std::thread client([&] { events = Stream("/v1/completions", good, &begun); });
    while (!begun) std::this_thread::sleep_for(1ms);
    auto [status, body] =
        Post("/v1/completions",
             {{"prompt", "too long"}, {"max_tokens", 600}, {"n", 3}, {"stream", stream}});
    client.join();
    EXPECT_EQ(status, 500);
    EXPECT_THAT(body["error"].value("message", ""), HasSubstr("pages")) << body;
    ASSERT_FALSE(events.empty());
    EXPECT_FALSE(events.back().contains("error")) << events.back();
    EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "length");
  }
  EXPECT_EQ(Post("/v1/completions", good).first, 200);
  EXPECT_EQ(server_->under_way(), 0);
}

TEST_F(ServeTest, WeightsThatCannotBeReplacedStay) {
  EXPECT_THROW(server_->Replace([] { throw IoError("no weights"); }, "second"), IoError);
  auto [status, body] = Post("/v1/completions", {{"prompt", "x"}, {"max_tokens", 2}});
  EXPECT_EQ(status, 200);
  EXPECT_FALSE(body.contains("system_fingerprint"));
  EXPECT_TRUE(server_->Replace([] {}, "third"));
}

TEST_F(ServeTest, LimitsHold) {
  ServeOptions options;
  options.max_waiting = 2;
  options.max_body = 1000;
  options.timeout_seconds = 0;
  Start(options);
  EXPECT_EQ(Post("/v1/completions", {{"prompt", "x"}, {"n", 3}}).first, 429);
  EXPECT_EQ(Post("/v1/completions", {{"prompt", std::string(2000, 'x')}}).first, 413);
  // Its time is over at once: it ends with what it has.
  model_.stop_ids.clear();
  auto [status, body] = Post("/v1/completions", {{"prompt", "x"}, {"max_tokens", kLong}});
  EXPECT_EQ(status, 200);
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_LT(body["usage"]["completion_tokens"], kLong);
}

TEST_F(ServeTest, ACompletionEndsWithTheContext) {
  model_.stop_ids.clear();
  const std::string prompt(kContext - 5, 'x');
  for (const int64_t asked : {3, 5, 6, 100}) {
    auto [status, body] = Post("/v1/completions", {{"prompt", prompt}, {"max_tokens", asked}});
    ASSERT_EQ(status, 200) << body;
    EXPECT_EQ(body["usage"]["completion_tokens"], std::min<int64_t>(asked, 5));
    EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  }
}

TEST_F(ServeTest, AsksForItsKey) {
  ServeOptions options;
  options.api_key = "secret";
  Start(options);
  EXPECT_EQ(Post("/v1/completions", {{"prompt", "x"}, {"max_tokens", 1}}).first, 401);
  httplib::Client client = Client();
  client.set_bearer_token_auth("secre");
  EXPECT_EQ(client.Get("/v1/models")->status, 401);
  client.set_bearer_token_auth("secret");
  EXPECT_EQ(client.Get("/v1/models")->status, 200);
  EXPECT_EQ(Client().Get("/health")->status, 200);  // whoever watches over it needs none
}

// ---- Text ---------------------------------------------------------------------------------------

SplitText PushAll(ThinkSplitter splitter, const std::string& text, size_t step) {
  SplitText all;
  auto add = [&](const SplitText& part) {
    all.reasoning += part.reasoning;
    all.content += part.content;
  };
  for (size_t at = 0; at < text.size(); at += step) add(splitter.Push(text.substr(at, step)));
  add(splitter.Flush());
  return all;
}

// A stop token may be one that has a text.
TEST(ChoiceText, ShowsNothingOfAStopToken) {
  const rl::LoadedModel m = TinyModel(64, "chatml");
  ChoiceText text(*m.tokenizer, {.stop_ids = {'b'}, .stop_strings = {}});
  std::string shown = text.Push('a').content;
  shown += text.Push('b').content;
  shown += text.Push('c').content;
  EXPECT_EQ(shown + text.Flush().content, "ac");
}

TEST(ThinkSplitter, CutsAtTheTagHoweverTextArrives) {
  for (size_t step : {1, 2, 3, 5, 100}) {
    SplitText a = PushAll({true, false}, "\n<think>\nHm\n\n2 < 3.\n</think>\n\nThree.\n", step);
    EXPECT_EQ(a.reasoning, "Hm\n\n2 < 3.");
    EXPECT_EQ(a.content, "Three.\n");
    SplitText b = PushAll({true, true}, "Hm.</think>Yes", step);
    EXPECT_EQ(b.reasoning, "Hm.");
    EXPECT_EQ(b.content, "Yes");
    SplitText c = PushAll({true, false}, " <thin ice>", step);
    EXPECT_EQ(c.reasoning, "");
    EXPECT_EQ(c.content, " <thin ice>");
    SplitText d = PushAll({true, true}, "never done </thin", step);
    EXPECT_EQ(d.reasoning, "never done </thin");
    SplitText e = PushAll({false, false}, "<think>raw</think>", step);
    EXPECT_EQ(e.content, "<think>raw</think>");
  }
}

}  // namespace
}  // namespace hone::launcher
