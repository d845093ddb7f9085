// timeout: 180
// A run is served while it trains: weights as they are published, each response from one version;
// read-only, with the run's secret; and on after its end.
#include "launcher/serve/live_model.h"

#include <gmock/gmock.h>
#include <httplib.h>

#include <nlohmann/json.hpp>
#include <set>

#include "tests/launcher/program.h"
#include "tests/read_json.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

constexpr int kSteps = 8;
constexpr char kConfig[] = R"(run: {name: live, seed: 1}
tokenizer: byte
model: {family: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
  num_attention_heads: 2, vocab_size: 272, max_position_embeddings: 128, initializer_range: 0.3}
mesh: {dp: 2}
rollout: {workers: 1}
stages:
  - {name: base, kind: pretrain, steps: 2, lr: {peak: 0.003}, batch: {packs: 2, pack_tokens: 256},
     data: {family: chain, text: thinking}}
  - {name: rl, kind: grpo, from: base, steps: 8, lr: {peak: 0.01, schedule: constant},
     batch: {pack_tokens: 512}, prompts: {family: chain}, prompts_per_rollout: 4, group_size: 4,
     reward: {tag_count: 1, repetition: 1}, sampling: {max_new_tokens: 32}, max_unusable: 1.0}
evaluate:
  # Takes long enough for the last weights to be fetched before the run ends.
  suites: [{name: chain, problems: {family: chain}, count: 100, sampling: {max_new_tokens: 100}}]
)";

struct Answer {
  std::string text, fingerprint;
  bool operator<(const Answer& other) const {
    return std::tie(text, fingerprint) < std::tie(other.text, other.fingerprint);
  }
};

Answer Ask(int port, int64_t tokens) {
  httplib::Client client("127.0.0.1", port);
  client.set_read_timeout(60);
  const json body = {{"prompt", "Q:1@+2="}, {"max_tokens", tokens}, {"temperature", 0}};
  auto result = client.Post("/v1/completions", body.dump(), "application/json");
  EXPECT_TRUE(result && result->status == 200);
  if (!result || result->status != 200) return {};
  const json answer = ParseJson(result->body);
  return {answer["choices"][0]["text"], answer.value("system_fingerprint", "")};
}

class LiveModelTest : public testing::Test {
 protected:
  LiveModelTest() : run_(folder_ / "live") {
    runtime::LocalFileSystem().WriteAtomically(folder_ / "run.yaml", kConfig);
    options_.source.coordinator_file = run_ + "/coordinator";
    options_.source.secret_file = run_ + "/secret";
    options_.run = run_;
    options_.every = milliseconds(10);
  }
  std::unique_ptr<Program> Start(const Words& more = {}) {
    Words words = {"run", folder_ / "run.yaml", "--run-dir", run_};
    words.insert(words.end(), more.begin(), more.end());
    return std::make_unique<Program>(HoneCommand(0, words), folder_ / "output");
  }
  static ServeOptions Serving() {
    ServeOptions serve;
    serve.port = 0;
    serve.limits.context = serve.engine.max_tokens = 128;
    return serve;
  }

  runtime::TemporaryFolder folder_;
  const std::string run_;
  LiveModel::Options options_;
  const std::atomic<bool> stop_{false};
};

TEST_F(LiveModelTest, FollowsARunToItsEndAndBeyond) {
  auto program = Start();
  LiveModel live(options_, stop_);
  ApiServer server(live.model(), Serving());
  server.Replace([] {}, live.fingerprint());
  std::thread serving([&] { server.Run(); });
  live.Follow(server);

  // Which texts each version gave: one, however often it was asked.
  std::map<std::string, std::set<std::string>> texts;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(100);
  while (!program->Ended() && std::chrono::steady_clock::now() < deadline) {
    const Answer answer = Ask(server.port(), 40);
    texts[answer.fingerprint].insert(answer.text);
  }
  EXPECT_EQ(program->Wait(), 0) << ReadFile(folder_ / "output");
  EXPECT_GT(texts.size(), static_cast<size_t>(kSteps / 2));
  std::set<std::string> all;
  for (const auto& [fingerprint, said] : texts) {
    EXPECT_EQ(said.size(), 1u) << fingerprint;
    all.insert(said.begin(), said.end());
  }
  EXPECT_GT(all.size(), 2u) << "training changed nothing";

  // The run is over; its last weights, which it published to be evaluated, are served on.
  const Answer last = Ask(server.port(), 40);
  EXPECT_NE(last.fingerprint, "");
  rl::LoadedModel saved = rl::LoadModelForInference(run_, {});
  ApiServer from_disk(saved, Serving());
  std::thread second([&] { from_disk.Run(); });
  EXPECT_EQ(last.text, Ask(from_disk.port(), 40).text);
  for (ApiServer* each : {&server, &from_disk}) each->Stop();
  serving.join();
  second.join();
}

// The engine is in the midst of a step, which long prompts make a long one, when the server is told
// to end; its model may go no sooner than that step is over.
TEST_F(LiveModelTest, EndsCleanlyWhileItDecodes) {
  setenv("MALLOC_PERTURB_", "165", 1);  // what is freed holds no valid pointer
  ASSERT_EQ(Start({"--set", "stages.rl.steps=1", "--set", "evaluate.suites=[]", "--set",
                   "model.max_position_embeddings=4096"})
                ->Wait(),
            0);
  for (int i = 0; i < 2; ++i) {
    const std::string log = folder_ / "served";
    Program serve(
        HoneCommand(0, {"serve", run_, "--follow", "--port", "0", "--prefill-chunk", "4096"}), log);
    const std::string before = "http://127.0.0.1:";
    size_t at = std::string::npos;
    while (at == std::string::npos && !serve.Ended()) {
      std::this_thread::sleep_for(milliseconds(5));
      const std::string text = serve.output();
      at = text.find("/v1\n") == std::string::npos ? at : text.find(before);
    }
    ASSERT_FALSE(serve.Ended()) << serve.output();
    const int port = std::stoi(serve.output().substr(at + before.size()));
    std::vector<std::thread> clients;
    for (int c = 0; c < 4; ++c) {
      clients.emplace_back([&] {
        httplib::Client client("127.0.0.1", port);
        const std::string body = json{{"prompt", std::string(4000, 'x')}}.dump();
        while (client.Post("/v1/completions", body, "application/json")) {
        }
      });
    }
    httplib::Client client("127.0.0.1", port);
    while (ParseJson(client.Get("/health")->body).at("under_way") < 4) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    serve.Signal(SIGTERM);
    EXPECT_EQ(serve.Wait(), 0) << serve.output();
    for (std::thread& each : clients) each.join();
  }
  unsetenv("MALLOC_PERTURB_");
}

TEST_F(LiveModelTest, NeedsTheRunsSecret) {
  auto program = Start();
  { LiveModel live(options_, stop_); }  // there are weights now
  const std::string wrong = folder_ / "wrong";
  runtime::LocalFileSystem().WriteAtomically(wrong, "not the secret\n");
  options_.source.secret_file = wrong;
  try {
    LiveModel live(options_, stop_);
    ADD_FAILURE() << "was let in";
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("secret"));
  }
  EXPECT_EQ(program->Wait(), 0) << "reading disturbed it: " << ReadFile(folder_ / "output");
}

TEST_F(LiveModelTest, WaitsNoLongerThanItShould) {
  options_.patience_seconds = 0;
  EXPECT_THROW(LiveModel(options_, stop_), TimeoutError);
}

}  // namespace
}  // namespace hone::launcher
