#include "rl/plan/memory.h"

#include <algorithm>
#include <map>
#include <set>

#include "kernels/dispatch.h"
#include "kernels/fp8/fp8.h"
#include "model/kv_cache.h"
#include "parallel/gradient_reducer.h"
#include "parallel/shard_buckets.h"
#include "parallel/sharded_optimizer.h"
#include "parallel/state_stream.h"

namespace hone::rl {
namespace {

using model::ActivationBytes;
using model::TensorInfo;
using parallel::Action;

// A tensor of a rank, and how much of its pipeline rank's last backward is still to come when its
// gradient is final: the activations of that.
struct Held {
  TensorInfo tensor;
  int64_t activations_after = 0;
  bool replicated = false;
};

class RankEstimate {
 public:
  RankEstimate(const model::ModelConfig& model, const std::vector<TensorInfo>& table,
               const Layout& layout, const StepShape& step, std::vector<model::StageOptions> chunks)
      : model_(model), layout_(layout), step_(step), chunks_(std::move(chunks)) {
    for (const auto& stage : chunks_) {
      model::MicrobatchShape micro;
      micro.tokens = step.tokens;
      micro.sequences = step.sequences;
      micro.ep = layout.mesh.ep;
      micro.threads = layout.threads;
      micro.cpu = layout.cpu;
      micro.loss = step.loss;
      activations_.push_back(EstimateActivations(model, stage, micro));
    }
    CollectTensors(table);
  }

  RankMemory Run(const std::vector<Action>& actions) {
    memory_ = {};
    CountParameters();
    WalkSchedule(actions);
    CountExchanges();
    return memory_;
  }

 private:
  int64_t element() const { return runtime::DTypeSize(layout_.dtype); }
  int64_t accumulator() const { return runtime::DTypeSize(kernels::AccDType(layout_.dtype)); }
  int GroupSize(const TensorInfo& t) const {
    return t.experts ? layout_.mesh.dp / layout_.mesh.ep : layout_.mesh.dp;
  }
  // Only cross-entropy trains the prediction layer.
  bool Trained(const TensorInfo& t) const {
    return !t.buffer && (!t.mtp || step_.loss == model::MicrobatchShape::Loss::kCrossEntropy);
  }
  // Rows of the first replica, which has the most; elements.
  int64_t SectionSize(const TensorInfo& t) const {
    const int64_t rows = t.shape[0], size = runtime::NumElements(t.shape);
    return parallel::ShardRows(rows, 0, GroupSize(t)).size() * (rows > 0 ? size / rows : 0);
  }

  // In the order in which backward finishes them; a table that two chunks share once.
  void CollectTensors(const std::vector<TensorInfo>& table) {
    std::set<std::string> seen;
    for (size_t c = chunks_.size(); c-- > 0;) {
      std::vector<TensorInfo> own = StageTensors(model_, table, chunks_[c], layout_.mesh.ep);
      for (auto t = own.rbegin(); t != own.rend(); ++t) {
        if (!seen.insert(t->name).second) continue;
        const bool elsewhere = t->name == model::kEmbeddingName && EmbeddingIsReplicated();
        tensors_.push_back({*t, ActivationsAfter(c, *t), elsewhere});
      }
    }
  }
  // On the first and on the last rank, unless those are one.
  bool EmbeddingIsReplicated() const {
    const bool both = model_.tie_word_embeddings || model_.num_nextn_predict_layers > 0;
    return both && layout_.Shape(1).RankOf(layout_.Shape(1).stages() - 1) != 0;
  }
  int64_t ActivationsAfter(size_t chunk, const TensorInfo& t) const {
    const model::StageOptions& stage = chunks_[chunk];
    if (chunk > 0) return activations_[0].BackwardPeak();
    const std::vector<int64_t>& peaks = activations_[chunk].backward_at;
    size_t done = 0;  // blocks whose backward is over
    if (t.name == model::kEmbeddingName && stage.has_embedding) {
      done = peaks.size();
    } else if (!t.mtp && model::LayerOf(t.name) >= 0) {
      done = static_cast<size_t>(stage.end_layer - model::LayerOf(t.name));
    }
    int64_t highest = 0;
    for (size_t i = done; i < peaks.size(); ++i) highest = std::max(highest, peaks[i]);
    return highest;
  }

  void CountParameters() {
    const int64_t moment = layout_.dtype == DType::kF64 ? 8 : runtime::DTypeSize(layout_.moments);
    int64_t weights = 0;
    for (const Held& held : tensors_) {
      const int64_t size = runtime::NumElements(held.tensor.shape);
      weights += size * (held.tensor.buffer ? accumulator() : element());
      if (held.tensor.buffer) continue;
      ParameterCounts& count = memory_.parameters;
      (held.tensor.experts ? count.experts : count.data) += size;
      if (held.replicated) count.replicated += size;
      memory_[MemoryCategory::kGradients] += size * accumulator() * (1 + step_.idle_models);
      if (!Trained(held.tensor)) continue;
      memory_[MemoryCategory::kOptimizer] +=
          SectionSize(held.tensor) * (accumulator() + 2 * moment);
    }
    if (layout_.offload && !layout_.cpu) Offload(&memory_[MemoryCategory::kOptimizer]);
    const int64_t models = 1 + step_.frozen_models + step_.idle_models;
    const int64_t tables =
        static_cast<int64_t>(chunks_.size()) * RopeTableBytes(model_, layout_.dtype);
    memory_.kept_fp8 = layout_.keep_fp8 ? KeptFp8() : 0;
    memory_[MemoryCategory::kWeights] =
        weights * (models + step_.visiting_models) + memory_.kept_fp8;
    memory_[MemoryCategory::kOther] = tables * (models + step_.visiting_models);
    visit_ = step_.visiting_models * (weights + tables);
    memory_.host_weights = step_.visiting_models * weights;
  }
  // Weights of linear layers without a bias and of experts, and their transposes.
  int64_t KeptFp8() const {
    std::set<std::string> names;
    for (const Held& held : tensors_) names.insert(held.tensor.name);
    int64_t bytes = 0;
    for (const Held& held : tensors_) {
      const TensorInfo& t = held.tensor;
      const bool linear = t.name.find("_proj") != std::string::npos;
      const std::string name = t.name.substr(0, t.name.rfind('.'));
      if (!linear || t.shape.size() < 2 || names.contains(name + ".bias") || !Trained(t)) continue;
      const int64_t rows = t.shape[t.shape.size() - 2], cols = t.shape.back();
      const int64_t each =
          kernels::Fp8BlocksBytes(rows, cols) + kernels::Fp8BlocksBytes(cols, rows);
      bytes += each * (t.experts ? t.shape[0] : 1);
    }
    return bytes;
  }
  // Of the state the pieces under way are on the device.
  void Offload(int64_t* state) {
    memory_.host_optimizer = *state;
    *state = std::min(*state,
                      parallel::StateStream::kPieces * parallel::AdamWConfig().offload_piece_bytes);
  }

  // All the while.
  int64_t Static() const {
    return memory_[MemoryCategory::kWeights] + memory_[MemoryCategory::kGradients] +
           memory_[MemoryCategory::kOptimizer] + memory_[MemoryCategory::kOther] - visit_ -
           memory_.kept_fp8;
  }

  // What this rank's microbatches hold at each action.
  void WalkSchedule(const std::vector<Action>& actions) {
    // A tensor handed on stays until the next one is.
    int64_t live = layout_.mesh.pp > 1 ? activations_[0].handed_on : 0, peak = 0;
    int flying = 0;
    auto reach = [&](int64_t bytes) { peak = std::max(peak, live + bytes); };
    for (const Action& a : actions) {
      const ActivationBytes& chunk = activations_[a.chunk];
      switch (a.kind) {
        case Action::Kind::kForward:
          reach(chunk.ForwardPeak());
          live += chunk.kept;
          ++flying;
          break;
        case Action::Kind::kBackward:
          live -= chunk.kept;
          reach(chunk.BackwardPeak());
          --flying;
          break;
        case Action::Kind::kBackwardInput:
          live -= chunk.kept;
          reach(chunk.InputHalfPeak());
          live += chunk.queued;
          break;
        case Action::Kind::kBackwardWeight:
          reach(0);
          live -= chunk.queued;
          --flying;
          break;
        case Action::Kind::kForwardBackward: {
          const ActivationBytes& other = activations_[a.pair_chunk];
          live -= other.kept;
          reach(PairPeak(chunk, other));
          live += chunk.kept;
          break;
        }
      }
      memory_.in_flight = std::max(memory_.in_flight, flying + (a.pair_chunk >= 0 ? 1 : 0));
    }
    memory_[MemoryCategory::kActivations] = peak;
  }

  // The two run block beside block where experts are exchanged, in phases of which one computes at
  // a time; else one after the other.
  int64_t PairPeak(const ActivationBytes& f, const ActivationBytes& b) const {
    if (layout_.mesh.ep == 1) return std::max(f.ForwardPeak() + b.kept, f.kept + b.BackwardPeak());
    int64_t peak = 0;
    const size_t forwards = f.forward_at.size(), backwards = b.backward_at.size();
    for (size_t i = 0; i < std::max(forwards, backwards); ++i) {
      const bool forward = i < forwards, backward = i < backwards;
      peak = std::max(
          {peak, (forward ? f.forward_at[i] : f.kept) + (backward ? b.backward_before[i] : 0),
           (forward ? f.forward_after[i] : f.kept) + (backward ? b.backward_at[i] : 0)});
    }
    return peak;
  }

  struct Bucket {
    int64_t section = 0, buffer = 0;  // bytes
    size_t last = 0;                  // its last tensor
    int64_t activations_after = 0;
  };
  // As MakeShardBuckets: one list a reduce group (and side of `replicated`), closed when full; in
  // the order in which they are complete. Groups of one rank exchange nothing.
  std::vector<Bucket> Buckets(int64_t width, int64_t bucket_bytes, bool replicated_apart) const {
    std::vector<Bucket> buckets;
    std::map<std::pair<bool, bool>, size_t> open;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const Held& held = tensors_[i];
      const int size = GroupSize(held.tensor);
      if (!Trained(held.tensor) || size == 1) continue;
      const bool apart = replicated_apart && held.replicated;
      const std::pair key{held.tensor.experts, apart};
      if (!open.contains(key)) {
        open[key] = buckets.size();
        buckets.emplace_back();
      }
      Bucket& bucket = buckets[open[key]];
      bucket.section += SectionSize(held.tensor) * width;
      bucket.buffer = bucket.section * size;
      bucket.last = apart ? tensors_.size() + i : i;
      bucket.activations_after = apart ? 0 : held.activations_after;
      if (bucket.buffer >= bucket_bytes) open.erase(key);
    }
    std::stable_sort(buckets.begin(), buckets.end(),
                     [](const Bucket& a, const Bucket& b) { return a.last < b.last; });
    // A bucket waits for those before it.
    int64_t lowest = INT64_MAX;
    for (Bucket& b : buckets) {
      lowest = b.activations_after = std::min(lowest, b.activations_after);
    }
    return buckets;
  }

  // Communication, and the total: what is exchanged while how much of the activations is there.
  void CountExchanges() {
    constexpr size_t kInFlight = 4;  // buckets of gradients under way
    constexpr int64_t kGatherBytes = 4 << 20;
    const int64_t bucket_bytes = parallel::GradientReducer::Options().bucket_bytes;
    const std::vector<Bucket> gradients = Buckets(accumulator(), bucket_bytes, true);
    int64_t sums = 0, exchange = 0;
    for (const Bucket& b : gradients) sums += b.section;
    for (const ActivationBytes& a : activations_) exchange = std::max(exchange, a.exchange);
    int64_t communication = sums + exchange;
    int64_t moving = memory_[MemoryCategory::kActivations] + sums + exchange;
    int64_t under_way = 0;
    for (size_t i = 0; i < gradients.size(); ++i) {
      under_way += gradients[i].buffer - (i >= kInFlight ? gradients[i - kInFlight].buffer : 0);
      const int64_t after = gradients[i].activations_after;
      const int64_t also = after > 0 ? exchange : 0;
      communication = std::max(communication, sums + under_way + also);
      moving = std::max(moving, sums + under_way + also + after);
    }
    int64_t tied = 0;  // a copy of the other's gradient, before the last buckets start
    for (const Held& held : tensors_) {
      if (held.replicated) tied += runtime::NumElements(held.tensor.shape) * accumulator();
    }
    communication = std::max(communication, sums + tied + BeforeReplicated(gradients));
    const std::vector<Bucket> values = Buckets(element(), kGatherBytes, false);
    for (size_t i = 0; i < values.size(); ++i) {
      int64_t pair = values[i].section + values[i].buffer;
      if (i > 0) pair += values[i - 1].section + values[i - 1].buffer;
      communication = std::max(communication, sums + pair);
    }
    memory_[MemoryCategory::kCommunication] = communication;
    memory_.total = Static() + std::max({moving + memory_.kept_fp8, communication, Visit()});
  }

  // A model that visits, its weights quantised, and its forward of one microbatch, while neither
  // activations nor sums of gradients nor pieces of the optimizer's state are there.
  int64_t Visit() const {
    int64_t forward = 0;
    for (const ActivationBytes& a : activations_) {
      forward = std::max(forward, a.ForwardPeak() + a.handed_on + a.exchange);
    }
    return visit_ > 0 ? visit_ + forward + memory_.kept_fp8 / 2 : 0;
  }

  // Buffers under way when the gradients that other pipeline ranks share arrive.
  int64_t BeforeReplicated(const std::vector<Bucket>& buckets) const {
    int64_t bytes = 0;
    int counted = 0;
    for (auto b = buckets.rbegin(); b != buckets.rend() && counted < 4; ++b) {
      if (b->last >= tensors_.size()) continue;
      bytes += b->buffer;
      ++counted;
    }
    return bytes;
  }

  const model::ModelConfig& model_;
  const Layout& layout_;
  const StepShape& step_;
  std::vector<model::StageOptions> chunks_;
  std::vector<ActivationBytes> activations_;
  std::vector<Held> tensors_;
  int64_t visit_ = 0;  // bytes of models that visit
  RankMemory memory_;
};

// As many microbatches as it takes to reach the peak: those of a schedule that bounds it.
int64_t MicrobatchesForPeak(const Layout& layout, int64_t microbatches) {
  if (layout.pipeline.schedule == parallel::ScheduleKind::kGPipe) return microbatches;
  const int64_t enough = int64_t{4} * layout.mesh.pp * layout.pipeline.chunks_per_rank();
  return std::min(microbatches, enough + microbatches % layout.mesh.pp);
}

}  // namespace

Layout LayoutOf(const RunConfig& config, bool cpu) {
  Layout layout;
  layout.mesh = config.mesh;
  layout.pipeline = config.pipeline;
  layout.dtype = config.train.dtype;
  layout.activation_checkpointing = config.train.activation_checkpointing;
  layout.keep_fp8 = config.train.fp8 && config.train.keep_fp8;
  layout.threads = config.train.threads;
  layout.cpu = cpu;
  for (const StageConfig& stage : config.stages) {
    layout.moments = stage.optimizer.moments;
    layout.offload = stage.optimizer.offload == parallel::AdamWConfig::Offload::kHost;
  }
  return layout;
}

parallel::PipelineShape Layout::Shape(int64_t microbatches) const {
  return {pipeline.schedule, mesh.pp, pipeline.chunks_per_rank(), static_cast<int>(microbatches)};
}

std::vector<model::StageOptions> Layout::Stages(const model::ModelConfig& model) const {
  model::StageOptions base;
  base.dtype = dtype;
  base.activation_checkpointing = activation_checkpointing;
  return model::SplitLayers(model, Shape(1).stages(), base);
}

void Layout::Validate(const model::ModelConfig& model) const {
  mesh.Validate(mesh.ranks());
  Check<ConfigError>(mesh.ep == 1 || (model.is_moe() && model.n_routed_experts % mesh.ep == 0),
                     "[plan] {} experts do not split over ep = {}", model.n_routed_experts,
                     mesh.ep);
  Shape(1).ValidateLayout();
  model::SplitLayers(model, Shape(1).stages(), {});
}

std::string Layout::ToString() const {
  std::string text = fmt::format("{} {}", mesh.ToString(), ScheduleName(pipeline.schedule));
  if (pipeline.schedule == parallel::ScheduleKind::kInterleaved) {
    text += fmt::format("×{}", pipeline.chunks);
  }
  return text + (activation_checkpointing ? ", checkpointing" : "");
}

std::vector<RankMemory> EstimateMemory(const model::ModelConfig& model, const Layout& layout,
                                       const StepShape& step) {
  layout.Validate(model);
  const std::vector<model::StageOptions> stages = layout.Stages(model);
  const std::vector<TensorInfo> table = TensorTable(model);
  const parallel::PipelineShape shape =
      layout.Shape(MicrobatchesForPeak(layout, step.microbatches));
  const auto lists = BuildSchedule(shape);
  std::vector<RankMemory> ranks;
  for (int r = 0; r < layout.mesh.pp; ++r) {
    std::vector<model::StageOptions> chunks;
    for (int c = 0; c < shape.chunks; ++c) chunks.push_back(stages[shape.StageOf(r, c)]);
    ranks.push_back(RankEstimate(model, table, layout, step, std::move(chunks)).Run(lists[r]));
  }
  return ranks;
}

namespace {

// Frozen models of the stage that has most of them in the pool: how many are published, and how
// many a worker holds, which is one for each kind of reading.
struct PoolModels {
  int64_t published = 0, held = 0;
};
PoolModels FrozenInPool(const RunConfig& config) {
  using Place = GrpoConfig::Place;
  PoolModels most;
  bool reads = false, scores = false;
  for (const StageConfig& stage : config.stages) {
    if (stage.kind != StageKind::kGrpo) continue;
    const GrpoConfig& g = stage.grpo;
    const bool reference = g.reference == Place::kPool && g.loss.kl_coefficient > 0;
    const auto models =
        static_cast<int64_t>(g.scoring == Place::kPool ? g.reward_models.size() : 0);
    most.published = std::max(most.published, models + (reference ? 1 : 0));
    reads = reads || reference;
    scores = scores || models > 0;
  }
  most.held = (reads ? 1 : 0) + (scores ? 1 : 0);
  return most;
}

int64_t WeightBytes(const RunConfig& config) {
  const DType accumulated = kernels::AccDType(config.train.dtype);
  int64_t bytes = 0;
  for (const TensorInfo& t : TensorTable(config.model)) {
    bytes += runtime::NumElements(t.shape) *
             runtime::DTypeSize(t.buffer ? accumulated : config.train.dtype);
  }
  return bytes;
}

}  // namespace

int64_t EstimatePublishedBytes(const RunConfig& config) {
  return (config.rollout.versions() + FrozenInPool(config).published) * WeightBytes(config);
}

RankMemory EstimateWorkerMemory(const RunConfig& config) {
  RankMemory memory;
  const RolloutConfig& r = config.rollout;
  const model::ModelConfig& m = config.model;
  const int64_t each = (m.max_position_embeddings + r.page_size - 1) / r.page_size + 1;
  const int64_t pages = r.cache_pages > 0 ? r.cache_pages : r.max_batch * each;
  memory[MemoryCategory::kKvCache] =
      pages * model::KvCache::BytesPerPage(
                  m, m.num_hidden_layers, r.page_size, config.train.dtype,
                  r.absorb ? model::KvCache::Mla::kLatent : model::KvCache::Mla::kExpanded);
  const int64_t models = 1 + FrozenInPool(config).held;
  memory[MemoryCategory::kWeights] = models * WeightBytes(config);
  memory[MemoryCategory::kOther] = models * RopeTableBytes(m, config.train.dtype);
  for (int64_t bytes : memory.bytes) memory.total += bytes;
  return memory;
}

RankMemory EstimateWaitingWorkerMemory(const RunConfig& config) {
  RankMemory memory;
  memory[MemoryCategory::kWeights] = WeightBytes(config);
  memory[MemoryCategory::kOther] = RopeTableBytes(config.model, config.train.dtype);
  for (int64_t bytes : memory.bytes) memory.total += bytes;
  return memory;
}

RankMemory WithWorkersInTurns(const RankMemory& learner, const RunConfig& config) {
  const int64_t ranks = config.mesh.ranks();
  const int64_t workers = (config.rollout.workers + ranks - 1) / ranks;
  const RankMemory working = EstimateWorkerMemory(config);
  const RankMemory waiting = EstimateWaitingWorkerMemory(config);
  RankMemory kept;
  kept[MemoryCategory::kWeights] =
      learner[MemoryCategory::kWeights] - learner.host_weights - learner.kept_fp8;
  kept[MemoryCategory::kOptimizer] = learner[MemoryCategory::kOptimizer];
  kept[MemoryCategory::kOther] = learner[MemoryCategory::kOther];
  for (int64_t bytes : kept.bytes) kept.total += bytes;
  RankMemory both = learner;
  for (size_t c = 0; c < both.bytes.size(); ++c) {
    both.bytes[c] = std::max(learner.bytes[c] + workers * waiting.bytes[c],
                             kept.bytes[c] + workers * working.bytes[c]);
  }
  both.total =
      std::max(learner.total + workers * waiting.total, kept.total + workers * working.total);
  return both;
}

}  // namespace hone::rl
