// What training runs report of their memory, against what was planned from their configs.
// timeout: 180
#include <gtest/gtest.h>

#include "rl/plan/plan.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

constexpr double kWithin = 0.1;

std::string Run(const std::string& model) {
  return R"(run: {name: planned, seed: 5}
tokenizer: byte
model: )" +
         model + R"(
optimizer: {weight_decay: 0.0}
stages:
  - {name: text, kind: pretrain, steps: 2, lr: {peak: 0.001}, batch: {packs: 4, pack_tokens: 256},
     data: {family: chain, text: answer}}
  - {name: more, kind: sft, from: text, steps: 1, lr: {peak: 0.001},
     batch: {packs: 4, pack_tokens: 192}, data: {family: chain, text: answer}}
)";
}

const char kDense[] = R"({family: llama, hidden_size: 64, intermediate_size: 176,
  num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 263,
  max_position_embeddings: 256})";
const char kExperts[] = R"({family: deepseek_v3, hidden_size: 64, intermediate_size: 160,
  moe_intermediate_size: 48, num_hidden_layers: 4, first_k_dense_replace: 1,
  num_attention_heads: 4, q_lora_rank: 32, kv_lora_rank: 24, qk_nope_head_dim: 16,
  qk_rope_head_dim: 8, v_head_dim: 16, n_routed_experts: 8, n_shared_experts: 1,
  num_experts_per_tok: 2, n_group: 1, topk_group: 1, num_nextn_predict_layers: 1, vocab_size: 263,
  max_position_embeddings: 256, initializer_range: 0.02})";

void Compare(const std::string& model, std::vector<std::string> overrides) {
  SCOPED_TRACE(testing::PrintToString(overrides));
  runtime::TemporaryFolder folder;
  Config file = Config::FromString(Run(model), "planned.yaml");
  for (const std::string& assignment : overrides) file.Override(assignment);
  const RunConfig config = ReadRunConfig(file);
  const RunPlan plan = PlanRun(config, LayoutOf(config, true), MachineModel::Cpu(1));
  ASSERT_TRUE(Train(Run(model), overrides, folder / "run"));
  RunState state = RunDirectory(runtime::LocalFileSystem(), folder / "run").ReadState();
  for (const StagePlan& stage : plan.stages) {
    SCOPED_TRACE(stage.name);
    const auto& measured = state.Find(stage.name)->peak_bytes;
    ASSERT_EQ(measured.size(), stage.ranks.size());
    for (size_t r = 0; r < measured.size(); ++r) {
      const RankMemory& planned = stage.ranks[r];
      EXPECT_EQ(measured[r].at("weights"), planned[MemoryCategory::kWeights]);
      EXPECT_EQ(measured[r].at("gradients"), planned[MemoryCategory::kGradients]);
      EXPECT_EQ(measured[r].at("optimizer"), planned[MemoryCategory::kOptimizer]);
      for (const auto& [name, bytes] :
           {std::pair{"activations", planned[MemoryCategory::kActivations]},
            {"total", planned.total}}) {
        const auto peak = static_cast<double>(measured[r].at(name));
        EXPECT_NEAR(static_cast<double>(bytes), peak, kWithin * peak) << name << " of rank " << r;
      }
    }
  }
}

TEST(PlanRun, TrainingNeedsWhatWasPlanned) {
  for (const char* checkpointing : {"false", "true"}) {
    const std::string train = std::string("train.activation_checkpointing=") + checkpointing;
    for (const char* model : {kDense, kExperts}) {
      Compare(model, {train});
      Compare(model, {train, "mesh.dp=2"});
      Compare(model, {train, "mesh.pp=2"});
    }
    Compare(kExperts, {train, "mesh.dp=2", "mesh.ep=2"});
    Compare(kExperts, {train, "mesh.pp=2", "mesh.dp=2", "mesh.ep=2"});
  }
}

}  // namespace
}  // namespace hone::rl
