// timeout: 300
// Reference and reward models in the pool instead of on the learner ranks, and the reference in
// host memory: `hone run` each way, and every metric and every weight is the same to the bit.
#include <gmock/gmock.h>

#include "tests/launcher/program.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

constexpr char kConfig[] = R"(run: {name: frozen, seed: 1}
tokenizer: byte
model: {family: deepseek_v3, hidden_size: 32, intermediate_size: 64, moe_intermediate_size: 32,
  num_hidden_layers: 2, first_k_dense_replace: 1, num_attention_heads: 2, n_routed_experts: 4,
  n_shared_experts: 1, num_experts_per_tok: 2, n_group: 1, topk_group: 1, q_lora_rank: 0,
  kv_lora_rank: 16, qk_nope_head_dim: 8, qk_rope_head_dim: 8, v_head_dim: 16, vocab_size: 272,
  max_position_embeddings: 128, tie_word_embeddings: true}
optimizer: {weight_decay: 0.0}
mesh: {dp: 2, ep: 2}
rollout: {workers: 2}
stages:
  - {name: base, kind: pretrain, steps: 12, lr: {peak: 0.003, schedule: constant},
     batch: {packs: 4, pack_tokens: 512}, data: {family: general, text: thinking}}
  - {name: helpful, kind: reward_model, from: base, steps: 3, lr: {peak: 0.003},
     batch: {pack_tokens: 512}, pairs_per_step: 8, pairs: {family: general, preference: pairwise}}
  - {name: safety, kind: reward_model, from: base, steps: 3, mode: pointwise, lr: {peak: 0.003},
     batch: {pack_tokens: 512}, pairs_per_step: 8, pairs: {family: general, preference: pointwise}}
  - {name: rl, kind: grpo, from: base, steps: 12, save_every: 4, reference_every: 3,
     lr: {peak: 0.001, schedule: constant}, batch: {pack_tokens: 512},
     prompts: {family: chain}, general_prompts: {family: general}, general_last_steps: 12,
     prompts_per_rollout: 6, group_size: 4, minibatches: 2, loss: {kl_coefficient: 0.05},
     reward_models: {kind: helpful, safe: safety},
     reward: {accuracy: 1, format: 0.5, kind: 1, safe: 1},
     sampling: {max_new_tokens: 24, temperature: 0.8}, max_unusable: 1.0}
)";

class FrozenModelsTest : public testing::TestWithParam<int> {
 protected:
  // General prompts are of a file, which does not say that they are general.
  FrozenModelsTest() {
    std::string config = kConfig, lines;
    for (int i = 0; i < 8; ++i) lines += fmt::format("{{\"prompt\": \"G:back {}=\"}}\n", 481 + i);
    runtime::LocalFileSystem().WriteAtomically(Path("general.jsonl"), lines);
    const std::string from = "general_prompts: {family: general}";
    config.replace(config.find(from), from.size(),
                   "general_prompts: {verifier: none, jsonl: " + Path("general.jsonl") + "}");
    runtime::LocalFileSystem().WriteAtomically(Path("run.yaml"), config);
  }
  std::string Path(const std::string& name) const { return folder_ / name; }
  Words Command(const std::string& place, const std::string& dir, bool colocated = false) const {
    return HoneCommand(
        0, {"run", Path("run.yaml"), "--run-dir", dir, "--set",
            fmt::format("rollout.lag={}", GetParam()), "--set", "stages.rl.reference=" + place,
            "--set", std::string("stages.rl.scoring=") + (place == "pool" ? "pool" : "learner"),
            "--set", fmt::format("rollout.colocated={}", colocated)});
  }
  rl::RunTrace Trace(const std::string& dir) const { return rl::ReadTrace(dir, {"rl"}); }
  static void ExpectSame(const rl::RunTrace& got, const rl::RunTrace& want) {
    EXPECT_EQ(got.metrics, want.metrics);
    ASSERT_EQ(got.tensors.size(), want.tensors.size());
    for (const auto& [name, values] : want.tensors) {
      EXPECT_TRUE(got.tensors.at(name) == values) << name << " differs";
    }
  }
  runtime::TemporaryFolder folder_;
};

TEST_P(FrozenModelsTest, PoolAndHostReadWhatTheLearnerWould) {
  for (const char* place : {"learner", "pool", "host"}) {
    Program program(Command(place, Path(place)), Path("output"));
    ASSERT_EQ(program.Wait(std::chrono::seconds(120)), 0) << program.output();
  }
  const rl::RunTrace want = Trace(Path("learner"));
  int scored = 0, apart = 0;
  for (const auto& line : want.metrics) {
    scored += line.contains("kind") && line.contains("safe");
    apart += line.contains("kl") && line.at("kl").get<double>() > 0;
  }
  EXPECT_EQ(scored, 12);
  EXPECT_GT(apart, 6) << "the reference is not the policy";
  ExpectSame(Trace(Path("pool")), want);
  ExpectSame(Trace(Path("host")), want);
  for (const char* reading : {"rl/reference", "rl/score/kind", "rl/score/safe"}) {
    EXPECT_TRUE(
        std::filesystem::exists(Path(fmt::format("pool/journal/{}/rollout-000003.bin", reading))));
  }

  // Stopped and started again at a time when the reference is a later policy than the first; and
  // where that can be, learner and workers take turns with their memory.
  const std::string stopped = Path("stopped");
  const bool colocated = GetParam() == 0;
  Program first(Command("pool", stopped, colocated), Path("output"));
  auto reached = [&] {
    const std::string text = ReadFile(stopped + "/metrics.jsonl");
    return text.find(R"("rollout":3)") != std::string::npos;
  };
  for (int i = 0; i < 6000 && !first.Ended() && !reached(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  first.Signal(SIGTERM);
  ASSERT_EQ(first.Wait(), 75) << first.output();
  Program second(Command("pool", stopped, colocated), Path("output"));
  ASSERT_EQ(second.Wait(std::chrono::seconds(120)), 0) << second.output();
  ExpectSame(Trace(stopped), want);
}

// Three sequences or pairs a step, and schedules that want two to four microbatches: each step is
// cut to fit, with the reference in the pool and multi-token prediction in the model.
TEST(SchedulesTest, FewSequencesRunUnderEverySchedule) {
  runtime::TemporaryFolder folder;
  std::string config = kConfig;
  auto change = [&](const std::string& from, const std::string& to) {
    ASSERT_NE(config.find(from), std::string::npos) << from;
    config.replace(config.find(from), from.size(), to);
  };
  change("num_hidden_layers: 2", "num_hidden_layers: 4, num_nextn_predict_layers: 1");
  change("mesh: {dp: 2, ep: 2}", "mesh: {pp: 2}");
  runtime::LocalFileSystem().WriteAtomically(folder / "run.yaml", config);
  std::map<std::string, std::vector<double>> norms;
  for (const std::string schedule : {"1f1b", "interleaved", "zb_h1", "dualpipe_v"}) {
    const std::string dir = folder / schedule;
    Words words = {"run", folder / "run.yaml", "--run-dir", dir};
    for (const std::string& assignment :
         {"pipeline.schedule=" + schedule,
          fmt::format("pipeline.chunks={}", schedule == "interleaved" ? 2 : 1),
          std::string("stages.rl.reference=pool"), std::string("stages.rl.steps=2"),
          std::string("stages.rl.minibatches=1"), std::string("stages.rl.prompts_per_rollout=1"),
          std::string("stages.rl.group_size=3"), std::string("stages.rl.batch.pack_tokens=1024"),
          std::string("stages.helpful.pairs_per_step=3"),
          std::string("stages.safety.pairs_per_step=3")}) {
      words.insert(words.end(), {"--set", assignment});
    }
    Program program(HoneCommand(0, words), folder / "output");
    ASSERT_EQ(program.Wait(std::chrono::seconds(100)), 0) << schedule << program.output();
    for (const auto& line : rl::ReadTrace(dir, {"rl"}).metrics) {
      norms[schedule].push_back(line.at("grad_norm"));
    }
  }
  ASSERT_EQ(norms["1f1b"].size(), 20u);  // 12 + 3 + 3 + 2 steps
  for (const auto& [schedule, values] : norms) {
    ASSERT_EQ(values.size(), 20u) << schedule;
    for (size_t i = 0; i < 18; ++i) {
      EXPECT_NEAR(values[i], norms["1f1b"][i], 1e-3 * norms["1f1b"][i]) << schedule << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, FrozenModelsTest, testing::Values(0, 1), [](const auto& info) {
  return info.param == 0 ? "Synchronous" : "OneBehind";
});

}  // namespace
}  // namespace hone::launcher
