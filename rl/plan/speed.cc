#include "rl/plan/speed.h"

#include <algorithm>

#include "kernels/dispatch.h"

namespace hone::rl {
namespace {

constexpr int kOneNode = 1 << 20;  // ranks: more than there are

using parallel::PipelineShape;
using parallel::ScheduleCosts;
using parallel::ScheduleKind;
using parallel::ScheduleSimulation;

// What one token costs on a stage.
struct TokenCost {
  double products = 0;   // FLOPs forward; the input half and the weight half of backward as much
  double attention = 0;  // FLOPs forward; twice that backward, all in the input half
  int64_t moe_layers = 0;
};

double AttentionFlops(const model::ModelConfig& c, int64_t sequence) {
  const int64_t keys = c.head_dim, values = c.is_mla() ? c.v_head_dim : c.head_dim;
  const double looked_at = static_cast<double>(sequence) / 2;  // causal
  return 2.0 * static_cast<double>(c.num_attention_heads * (keys + values)) * looked_at;
}

TokenCost CostOfStage(const model::ModelConfig& c, const std::vector<model::TensorInfo>& table,
                      const model::StageOptions& stage, int64_t sequence, bool with_mtp) {
  TokenCost cost;
  for (const model::TensorInfo& t : StageTensors(c, table, stage, 1)) {
    const bool embedding = t.name == model::kEmbeddingName;
    const bool is_head = stage.has_head && c.tie_word_embeddings;
    if (t.buffer || t.shape.size() < 2 || (t.mtp && !with_mtp)) continue;
    if (embedding && !is_head) continue;  // looked up
    auto size = static_cast<double>(runtime::NumElements(t.shape));
    if (t.experts) size *= static_cast<double>(c.num_experts_per_tok) / c.n_routed_experts;
    const bool head = t.name == model::kHeadName || embedding;
    if (head && with_mtp && c.num_nextn_predict_layers > 0) size *= 2;
    cost.products += 2 * size;
  }
  int64_t blocks = stage.end_layer - stage.first_layer;
  if (stage.has_head && with_mtp) blocks += c.num_nextn_predict_layers;
  cost.attention = static_cast<double>(blocks) * AttentionFlops(c, sequence);
  if (c.is_moe()) {
    const int64_t dense = std::max<int64_t>(0, c.first_k_dense_replace - stage.first_layer);
    cost.moe_layers = blocks - std::min(stage.end_layer - stage.first_layer, dense);
  }
  return cost;
}

// Seconds of one microbatch on the slowest stage.
struct StageSeconds {
  double forward = 0, input_half = 0, weight_half = 0, exchange = 0;  // exchange: one direction
};

class StepModel {
 public:
  StepModel(const model::ModelConfig& model, const Layout& layout, const StepShape& step,
            const std::vector<RankMemory>& memory, const MachineModel& machine)
      : model_(model), layout_(layout), step_(step), memory_(memory), machine_(machine) {}

  StepEstimate Run() {
    const auto stages = layout_.Stages(model_);
    const std::vector<model::TensorInfo> table = TensorTable(model_);
    const bool mtp = step_.loss == model::MicrobatchShape::Loss::kCrossEntropy;
    StageSeconds slowest;
    double exchanged = 0;  // by the stages of the busiest rank
    for (const auto& stage : stages) {
      const TokenCost cost = CostOfStage(model_, table, stage, step_.tokens / step_.sequences, mtp);
      slowest = Slower(slowest, SecondsOf(cost));
      exchanged = std::max(exchanged, ExpertBytes(cost) * layout_.pipeline.chunks_per_rank());
    }
    estimate_.traffic.experts = exchanged * static_cast<double>(step_.microbatches);
    RunSchedule(slowest);
    CountTraffic();
    CountTail(slowest);
    return estimate_;
  }

 private:
  double tokens() const { return static_cast<double>(step_.tokens); }

  StageSeconds SecondsOf(const TokenCost& cost) const {
    const double products = machine_.SecondsOfFlops(cost.products * tokens());
    const double attention = machine_.SecondsOfFlops(cost.attention * tokens());
    const double forward = products + attention;
    const double again = layout_.activation_checkpointing ? forward : 0;
    const int passes = layout_.activation_checkpointing ? 3 : 2;
    return {forward, products + 2 * attention + again, products,
            machine_.SecondsToExchange(ExpertBytes(cost) / passes, layout_.mesh.ep)};
  }
  static StageSeconds Slower(const StageSeconds& a, const StageSeconds& b) {
    auto all = [](const StageSeconds& s) {
      return s.forward + s.input_half + s.weight_half + 2 * s.exchange;
    };
    return all(b) > all(a) ? b : a;
  }

  // Of one microbatch on one stage: rows out and back, in every pass.
  double ExpertBytes(const TokenCost& cost) const {
    if (layout_.mesh.ep == 1) return 0;
    const double row = static_cast<double>(model_.hidden_size * model_.num_experts_per_tok *
                                           runtime::DTypeSize(layout_.dtype));
    const double away = 1.0 - 1.0 / layout_.mesh.ep;
    const int passes = layout_.activation_checkpointing ? 3 : 2;
    return static_cast<double>(cost.moe_layers) * 2 * passes * tokens() * row * away;
  }

  // More microbatches than it takes to fill the pipeline only lengthen the steady state.
  void RunSchedule(const StageSeconds& s) {
    ScheduleCosts costs;
    const int again = layout_.activation_checkpointing ? 1 : 0;
    costs.forward = s.forward + s.exchange;
    costs.backward_input = s.input_half + (1 + again) * s.exchange;
    costs.backward_weight = s.weight_half;
    const double compute = s.forward + s.input_half + s.weight_half;
    const double exchange = (2 + again) * s.exchange;
    const double one_by_one = compute + exchange;
    costs.overlapped_pair = std::max({compute, exchange, one_by_one - 2 * s.exchange});
    const int64_t pp = layout_.mesh.pp, chunks = layout_.pipeline.chunks_per_rank();
    const int64_t most = 8 * pp + step_.microbatches % pp;
    const int64_t simulated = std::min(step_.microbatches, most);
    const PipelineShape shape = layout_.Shape(simulated);
    const ScheduleSimulation run = Simulate(shape, BuildSchedule(shape), costs);
    const bool pairs = layout_.pipeline.schedule == ScheduleKind::kDualPipeV;
    const double each = pairs ? costs.overlapped_pair : one_by_one;
    estimate_.schedule_seconds =
        run.total + static_cast<double>((step_.microbatches - simulated) * chunks) * each;
    estimate_.bubble_seconds = *std::max_element(run.bubble.begin(), run.bubble.end());
    estimate_.bubble = estimate_.bubble_seconds / estimate_.schedule_seconds;
  }

  void CountTraffic() {
    StepTraffic& t = estimate_.traffic;
    const int dp = layout_.mesh.dp, copies = dp / layout_.mesh.ep, pp = layout_.mesh.pp;
    const double element = static_cast<double>(runtime::DTypeSize(layout_.dtype));
    const double gradient =
        static_cast<double>(runtime::DTypeSize(kernels::AccDType(layout_.dtype)));
    for (const RankMemory& rank : memory_) {
      const ParameterCounts& count = rank.parameters;
      const double moved = static_cast<double>(count.data) * (dp - 1) / dp +
                           static_cast<double>(count.experts) * (copies - 1) / copies;
      t.gradients = std::max(t.gradients, moved * gradient);
      t.weights = std::max(t.weights, moved * element);
      t.tied = std::max(t.tied, static_cast<double>(count.replicated) * gradient);
    }
    if (pp == 1) return;
    const double hidden = tokens() * static_cast<double>(model_.hidden_size) * element;
    t.pipeline =
        2 * hidden * static_cast<double>(step_.microbatches) * layout_.pipeline.chunks_per_rank();
  }

  void CountTail(const StageSeconds& s) {
    StepEstimate& e = estimate_;
    const double backward = s.input_half + s.weight_half;
    const double reduce =
        machine_.SecondsToExchange(e.traffic.gradients, layout_.mesh.dp) +
        e.traffic.tied / (machine_.network_bandwidth * machine_.bandwidth_efficiency);
    e.reduce_seconds = std::max(0.0, reduce - backward);
    e.gather_seconds = machine_.SecondsToExchange(e.traffic.weights, layout_.mesh.dp);
    double state = 0, offloaded = 0;
    for (const RankMemory& m : memory_) {
      state = std::max(state, static_cast<double>(m[MemoryCategory::kOptimizer]));
      offloaded = std::max(offloaded, static_cast<double>(m.host_optimizer));
    }
    // Read and written; the gradients' shard is read with it. What is offloaded comes and leaves at
    // the same time.
    e.optimizer_seconds = (offloaded > 0 ? offloaded / machine_.host_bandwidth
                                         : 2.3 * state / machine_.memory_bandwidth) /
                          machine_.bandwidth_efficiency;
    e.seconds = e.schedule_seconds + e.reduce_seconds + e.gather_seconds + e.optimizer_seconds;
    e.tokens_per_second =
        tokens() * static_cast<double>(step_.microbatches * layout_.mesh.dp) / e.seconds;
  }

  const model::ModelConfig& model_;
  const Layout& layout_;
  const StepShape& step_;
  const std::vector<RankMemory>& memory_;
  const MachineModel& machine_;
  StepEstimate estimate_;
};

}  // namespace

MachineModel MachineModel::Cpu(int threads) {
  return {.flops = 147e9 * threads,
          .efficiency = 0.75,
          .memory_bandwidth = 10e9 * threads,
          .node_bandwidth = 4e9,
          .network_bandwidth = 1e9,
          .bandwidth_efficiency = 0.8,
          .node_ranks = kOneNode};
}

std::string MachineModel::ToString() const {
  const std::string beyond = node_ranks < kOneNode
                                 ? fmt::format(" of {}, {:g} GB/s a rank between nodes", node_ranks,
                                               network_bandwidth / 1e9)
                                 : "";
  return fmt::format(
      "{:g} TFLOP/s a rank, {:.0f} % of it reached; {:g} GB/s of memory; {:g} GB/s from rank to "
      "rank "
      "in a node{}{}; {:.0f} % of the bandwidths reached",
      flops / 1e12, 100 * efficiency, memory_bandwidth / 1e9, node_bandwidth / 1e9, beyond,
      node_ranks < kOneNode ? fmt::format(", {:g} GB/s to its host", host_bandwidth / 1e9) : "",
      100 * bandwidth_efficiency);
}

double MachineModel::SecondsToExchange(double bytes, int group) const {
  if (group <= 1 || bytes == 0) return 0;
  const int here = std::clamp(node_ranks, 1, group);
  const double beyond = static_cast<double>(group - here) / (group - 1);
  const double inside = bytes * (1 - beyond) / (node_bandwidth * bandwidth_efficiency);
  const double outside = bytes * beyond / (network_bandwidth * bandwidth_efficiency);
  return std::max(inside, outside);
}

StepEstimate EstimateStep(const model::ModelConfig& model, const Layout& layout,
                          const StepShape& step, const std::vector<RankMemory>& memory,
                          const MachineModel& machine) {
  return StepModel(model, layout, step, memory, machine).Run();
}

}  // namespace hone::rl
