// timeout: 300
// The plan's memory against what the allocator counted, rank by rank and category by category.
#include <gtest/gtest.h>

#include <mutex>

#include "parallel/comm/process_group.h"
#include "parallel/train_engine.h"
#include "rl/plan/memory.h"
#include "rl/policy_loss.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

using parallel::GroupPtr;
using parallel::ScheduleKind;

constexpr double kWithin = 0.1;
constexpr double kControl = 1024;  // bytes of small sums between ranks

model::ModelConfig ModelOf(const std::string& text) {
  ConfigReader reader(Config::FromString(text, "model"));
  model::ModelConfig config;
  config.Read(reader);
  reader.Finish();
  return config;
}

model::ModelConfig Dense() {
  return ModelOf(R"({family: llama, hidden_size: 64, intermediate_size: 176, num_hidden_layers: 8,
    num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 512, max_position_embeddings: 512})");
}
model::ModelConfig NormedAndTied() {
  return ModelOf(R"({family: qwen3, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4,
    num_attention_heads: 4, num_key_value_heads: 4, head_dim: 32, vocab_size: 300,
    tie_word_embeddings: true, max_position_embeddings: 512})");
}
// Everything that DeepSeek-V3 has.
model::ModelConfig Experts() {
  return ModelOf(R"({family: deepseek_v3, hidden_size: 64, intermediate_size: 176,
    moe_intermediate_size: 48, num_hidden_layers: 8, first_k_dense_replace: 1,
    num_attention_heads: 4, q_lora_rank: 32, kv_lora_rank: 24, qk_nope_head_dim: 16,
    qk_rope_head_dim: 8, v_head_dim: 16, n_routed_experts: 8, n_shared_experts: 1,
    num_experts_per_tok: 2, n_group: 2, topk_group: 2, balance_loss_alpha: 0.0001,
    num_nextn_predict_layers: 1, vocab_size: 512, max_position_embeddings: 512,
    initializer_range: 0.02})");
}
model::ModelConfig PlainExperts() {
  return ModelOf(R"({family: qwen3_moe, hidden_size: 64, moe_intermediate_size: 64,
    num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, num_experts: 4,
    num_experts_per_tok: 2, vocab_size: 400, max_position_embeddings: 512})");
}

Layout LayoutWith(parallel::MeshConfig mesh, ScheduleKind schedule = ScheduleKind::k1F1B) {
  Layout layout;
  layout.mesh = mesh;
  layout.pipeline = {schedule, schedule == ScheduleKind::kInterleaved ? 2 : 1};
  return layout;
}

// One pack of whole sequences; every expert is chosen as often as the others.
TokenBatch PackOf(const model::ModelConfig& model, const StepShape& step, uint64_t seed) {
  TokenBatch batch;
  const int64_t length = step.tokens / step.sequences;
  RandomStream random{seed, 1, 2};
  batch.cu_seqlens.push_back(0);
  for (int64_t t = 0; t < step.tokens; ++t) {
    const auto draw = static_cast<int32_t>(random.Bits(t) % model.vocab_size);
    batch.token_T.push_back(draw);
    batch.target_T.push_back((draw + 1) % static_cast<int32_t>(model.vocab_size));
    batch.position_T.push_back(static_cast<int32_t>(t % length));
    batch.loss_weight_T.push_back(1e-4f);
    if ((t + 1) % length == 0) batch.cu_seqlens.push_back(static_cast<int32_t>(t + 1));
  }
  if (!model.is_moe()) return batch;
  const int64_t layers =
      model.num_hidden_layers - model.first_k_dense_replace + model.num_nextn_predict_layers;
  for (int64_t t = 0; t < step.tokens; ++t) {
    for (int64_t l = 0; l < layers; ++l) {
      for (int64_t k = 0; k < model.num_experts_per_tok; ++k) {
        batch.routing_TLK.push_back(
            static_cast<int32_t>((t * model.num_experts_per_tok + k) % model.n_routed_experts));
      }
    }
  }
  return batch;
}

// Peaks of each rank in a step that is not the first.
std::vector<runtime::MemoryUsage> Measure(const model::ModelConfig& model, const Layout& layout,
                                          const StepShape& step) {
  std::vector<runtime::MemoryUsage> usage(layout.mesh.ranks());
  parallel::RunThreadRanks(layout.mesh.ranks(), [&](const GroupPtr& world) {
    Context ctx;
    ctx.fp8 = layout.keep_fp8;
    parallel::Mesh mesh(layout.mesh, world);
    const auto stages = layout.Stages(model);
    std::vector<std::unique_ptr<model::TransformerStage>> chunks;
    std::vector<parallel::PipelineStage*> own;
    const parallel::PipelineShape shape = layout.Shape(step.microbatches);
    for (int c = 0; c < shape.chunks; ++c) {
      chunks.push_back(std::make_unique<model::TransformerStage>(
          ctx, model, stages[shape.StageOf(mesh.pp_index(), c)], mesh.ep()));
      chunks.back()->Initialize(1);
      own.push_back(chunks.back().get());
    }
    parallel::TrainEngine::Options options;
    options.pipeline = layout.pipeline;
    options.optimizer.moments = layout.moments;
    parallel::TrainEngine engine(ctx, mesh, own, options);
    std::vector<TokenBatch> batches;
    for (int64_t i = 0; i < step.microbatches; ++i) {
      batches.push_back(PackOf(model, step, 100 * mesh.dp_index() + i));
    }
    engine.Step(batches, CrossEntropyLoss(), 1e-4);
    world->Barrier();
    ctx.allocator()->ResetPeaks();
    engine.Step(batches, CrossEntropyLoss(), 1e-4);
    usage[world->rank()] = ctx.allocator()->Usage();
  });
  return usage;
}

struct Case {
  const char* name;
  model::ModelConfig model;
  Layout layout;
  int64_t microbatches = 4;
};

class PlanMemoryTest : public testing::TestWithParam<bool> {};

void Compare(const Case& c, const StepShape& step) {
  SCOPED_TRACE(fmt::format("{} {}", c.name, c.layout.ToString()));
  const std::vector<RankMemory> planned = EstimateMemory(c.model, c.layout, step);
  const std::vector<runtime::MemoryUsage> measured = Measure(c.model, c.layout, step);
  for (int rank = 0; rank < c.layout.mesh.ranks(); ++rank) {
    const RankMemory& plan = planned[rank / c.layout.mesh.dp];
    const runtime::MemoryUsage& usage = measured[rank];
    auto peak = [&](MemoryCategory category) {
      return static_cast<double>(usage.peak[static_cast<size_t>(category)]);
    };
    for (auto category :
         {MemoryCategory::kWeights, MemoryCategory::kGradients, MemoryCategory::kOther}) {
      EXPECT_EQ(plan[category], usage.peak[static_cast<size_t>(category)])
          << "rank " << rank << " " << MemoryCategoryName(category);
    }
    for (auto category : {MemoryCategory::kOptimizer, MemoryCategory::kActivations,
                          MemoryCategory::kCommunication}) {
      EXPECT_NEAR(static_cast<double>(plan[category]), peak(category),
                  kWithin * peak(category) + kControl)
          << "rank " << rank << " " << MemoryCategoryName(category);
    }
    const auto total = static_cast<double>(usage.peak_total);
    EXPECT_NEAR(static_cast<double>(plan.total), total, kWithin * total) << "rank " << rank;
  }
}

TEST_P(PlanMemoryTest, IsWhatTheAllocatorCounts) {
  StepShape step;
  step.tokens = 256;
  step.sequences = 2;
  std::vector<Case> cases = {
      {"dense", Dense(), LayoutWith({1, 1, 1})},
      {"dense", Dense(), LayoutWith({1, 2, 1})},
      {"dense", Dense(), LayoutWith({2, 1, 1})},
      {"dense", Dense(), LayoutWith({2, 2, 1})},
      {"dense", Dense(), LayoutWith({2, 1, 1}, ScheduleKind::kGPipe)},
      {"dense", Dense(), LayoutWith({2, 1, 1}, ScheduleKind::kInterleaved)},
      {"dense", Dense(), LayoutWith({2, 1, 1}, ScheduleKind::kZbH1)},
      {"dense", Dense(), LayoutWith({2, 1, 1}, ScheduleKind::kDualPipeV)},
      {"tied", NormedAndTied(), LayoutWith({1, 1, 1})},
      {"tied", NormedAndTied(), LayoutWith({2, 2, 1})},
      {"tied", NormedAndTied(), LayoutWith({2, 1, 1}, ScheduleKind::kDualPipeV)},
      {"experts", Experts(), LayoutWith({1, 1, 1})},
      {"experts", Experts(), LayoutWith({1, 2, 1})},
      {"experts", Experts(), LayoutWith({1, 2, 2})},
      {"experts", Experts(), LayoutWith({2, 1, 1})},
      {"experts", Experts(), LayoutWith({2, 2, 2})},
      {"experts", Experts(), LayoutWith({2, 2, 2}, ScheduleKind::kZbH1)},
      {"experts", Experts(), LayoutWith({2, 2, 2}, ScheduleKind::kDualPipeV)},
      {"plain experts", PlainExperts(), LayoutWith({1, 1, 1})},
      {"plain experts", PlainExperts(), LayoutWith({2, 2, 2})},
  };
  for (Case& c : cases) {
    c.layout.activation_checkpointing = GetParam();
    step.microbatches = c.microbatches;
    Compare(c, step);
  }
}

TEST_P(PlanMemoryTest, InOtherPrecisions) {
  StepShape step;
  step.tokens = 128;
  step.microbatches = 2;
  for (DType dtype : {DType::kBF16, DType::kF64}) {
    for (const Case& given : {Case{"dense", Dense(), LayoutWith({1, 2, 1})},
                              Case{"experts", Experts(), LayoutWith({2, 2, 2})}}) {
      Case c = given;
      c.layout.dtype = dtype;
      c.layout.moments = dtype;
      c.layout.activation_checkpointing = GetParam();
      Compare(c, step);
    }
  }
}

TEST_P(PlanMemoryTest, OfWeightsThatStayInFp8) {
  StepShape step;
  step.tokens = 128;
  step.microbatches = 2;
  model::ModelConfig biased = NormedAndTied();
  biased.attention_bias = biased.value_head = true;
  for (Case c : {Case{"biased", biased, LayoutWith({1, 1, 1})},
                 Case{"experts", Experts(), LayoutWith({1, 2, 2})}}) {
    c.layout.keep_fp8 = true;
    c.layout.activation_checkpointing = GetParam();
    Compare(c, step);
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpointing, PlanMemoryTest, testing::Bool(), [](const auto& info) {
  return info.param ? std::string("On") : std::string("Off");
});

}  // namespace
}  // namespace hone::rl
