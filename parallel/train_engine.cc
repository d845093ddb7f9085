#include "parallel/train_engine.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "parallel/self_check.h"
#include "runtime/packed_weights.h"

namespace hone::parallel {
namespace {

// Names and values, for AllGatherBytes: length, name, the double's bytes.
std::string Pack(const MetricSums& sums) {
  std::string bytes;
  for (const auto& [name, value] : sums) {
    const auto length = static_cast<uint32_t>(name.size());
    bytes.append(reinterpret_cast<const char*>(&length), sizeof length);
    bytes += name;
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return bytes;
}

void Add(const std::string& name, double value, MetricSums& sums) {
  double& sum = sums[name];
  sum = name.starts_with("largest_") ? std::max(sum, value) : sum + value;
}

void AddUnpacked(const std::string& bytes, MetricSums& sums) {
  for (size_t at = 0; at < bytes.size();) {
    uint32_t length = 0;
    std::memcpy(&length, bytes.data() + at, sizeof length);
    at += sizeof length;
    const std::string name = bytes.substr(at, length);
    at += length;
    double value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    at += sizeof value;
    Add(name, value, sums);
  }
}

// Keeps weights in fp8 for a context while it lives, in which they must not change.
class KeptFp8 {
 public:
  KeptFp8(Context& ctx, const std::vector<Parameter*>& parameters, bool keep) : ctx_(ctx) {
    if (!ctx.fp8 || !keep) return;
    for (const Parameter* p : parameters) weights_.Register(p->value);
    ctx.packed_weights = &weights_;
  }
  ~KeptFp8() { ctx_.packed_weights = before_; }
  KeptFp8(const KeptFp8&) = delete;
  KeptFp8& operator=(const KeptFp8&) = delete;

 private:
  Context& ctx_;
  runtime::PackedWeights* const before_ = ctx_.packed_weights;
  runtime::PackedWeights weights_{runtime::PackedWeights::Form::kFp8};
};

bool HasGradient(const Parameter& p) {
  return p.spec.trainable && !p.spec.buffer && p.gradient.defined();
}

}  // namespace

void PipelineConfig::Read(ConfigReader& reader) {
  schedule = static_cast<ScheduleKind>(
      reader.OneOf("schedule", ScheduleNames(), static_cast<int>(schedule)));
  reader.Optional("chunks", &chunks);
  if (chunks < 1) reader.Fail("chunks", "must be at least 1");
  if (chunks > 1 && schedule != ScheduleKind::kInterleaved) {
    reader.Fail("chunks", "only the schedule 'interleaved' takes more than 1, not '" +
                              ScheduleName(schedule) + "'");
  }
}

int PipelineConfig::chunks_per_rank() const {
  if (schedule == ScheduleKind::kDualPipeV) return 2;
  return schedule == ScheduleKind::kInterleaved ? chunks : 1;
}

struct TrainEngine::Impl {
  Context& ctx;
  const Mesh& mesh;
  std::vector<PipelineStage*> chunks;
  Options options;
  std::vector<Parameter*> parameters;  // all, in the order in which backward finishes them
  std::vector<Parameter*> reduced;     // of those, one a gradient
  // Tied parameters of one rank share a gradient: it is final when all of its owners have been
  // reported.
  struct Sharing {
    Parameter* representative = nullptr;  // the one that is tied to no other
    int owners = 0, reported = 0;
  };
  std::map<const void*, Sharing> sharing;                   // by the gradient's memory
  std::unique_ptr<GradientReducer> reducer;                 // null while gradients are released
  std::map<const void*, std::vector<Parameter*>> released;  // owners, by where the gradient was
  std::unique_ptr<ShardedOptimizer> optimizer;

  Impl(Context& context, const Mesh& m, std::vector<PipelineStage*> c, Options o)
      : ctx(context), mesh(m), chunks(std::move(c)), options(o) {
    for (auto chunk = chunks.rbegin(); chunk != chunks.rend(); ++chunk) {
      const std::vector<Parameter*> own = (*chunk)->Parameters();
      parameters.insert(parameters.end(), own.rbegin(), own.rend());
    }
    ShareTied();
    ReduceGradients();
    optimizer = std::make_unique<ShardedOptimizer>(ctx, mesh, reduced, options.optimizer);
  }

  // As they lie in memory now.
  void ReduceGradients() {
    sharing.clear();
    reduced.clear();
    for (Parameter* p : parameters) {
      if (!HasGradient(*p)) continue;
      Sharing& shared = sharing[p->gradient.raw()];
      ++shared.owners;
      if (shared.representative == nullptr || p->spec.tied_to.empty()) shared.representative = p;
    }
    for (Parameter* p : parameters) {
      if (HasGradient(*p) && sharing[p->gradient.raw()].representative == p) reduced.push_back(p);
    }
    reducer = std::make_unique<GradientReducer>(ctx, mesh, reduced, options.reducer);
  }

  void ReleaseGradients() {
    reducer.reset();
    for (Parameter* p : parameters) {
      if (p->gradient.defined()) released[p->gradient.raw()].push_back(p);
    }
    for (Parameter* p : parameters) p->gradient = Tensor();
  }

  void RestoreGradients() {
    if (reducer) return;
    for (const auto& [memory, owners] : released) {
      const ParamSpec& spec = owners[0]->spec;
      const Tensor gradient =
          ctx.Zeros(spec.slab.extent, spec.gradient, MemoryCategory::kGradients);
      for (Parameter* p : owners) p->gradient = gradient;
    }
    released.clear();
    ReduceGradients();
  }

  // Chunks of one rank that hold the same tied tensor, as DualPipe-V's first and last on rank 0,
  // use one copy of it.
  void ShareTied() {
    std::map<std::string, Parameter*> by_name;
    for (Parameter* p : parameters) {
      if (p->spec.tied_to.empty()) by_name[p->spec.name] = p;
    }
    for (Parameter* p : parameters) {
      auto original = by_name.find(p->spec.tied_to);
      if (original == by_name.end()) continue;
      Check<ConfigError>(original->second->spec.slab.extent == p->spec.slab.extent,
                         "[train engine] {} is tied to {} but has another shape",
                         p->spec.slab.ToString(), original->second->spec.slab.ToString());
      p->value = original->second->value;
      p->gradient = original->second->gradient;
    }
  }

  PipelineShape Shape(size_t microbatches) const {
    return {options.pipeline.schedule, mesh.config().pp, options.pipeline.chunks_per_rank(),
            static_cast<int>(microbatches)};
  }

  void ZeroGradients() {
    for (const Parameter* p : reduced) {
      runtime::FillZero(p->gradient.raw(), p->gradient.device(), p->gradient.bytes(),
                        &ctx.stream());
    }
    for (auto& [memory, shared] : sharing) shared.reported = 0;
  }

  void OnGradient(const Parameter& p) {
    if (!HasGradient(p)) return;
    Sharing& shared = sharing.at(p.gradient.raw());
    if (++shared.reported == shared.owners) reducer->MarkReady(shared.representative);
  }

  void Run(const std::vector<Action>& actions, const PipelineShape& shape,
           const std::vector<TokenBatch>& microbatches, const LossFunction& loss, bool train,
           const PipelineStage::GradientListener& on_gradient = nullptr) {
    KeptFp8 kept(ctx, parameters, options.keep_fp8);
    PipelineExecutor(shape, mesh.pp(), chunks)
        .Run(ctx, actions, microbatches, &loss, train, on_gradient);
  }

  // Buffers that a rule changes are the same on all replicas of a stage, so their counts are added.
  void EndStep() {
    auto sum = [this](std::vector<double>& values) {
      if (values.empty() || mesh.dp()->size() == 1) return;
      Tensor tensor = ctx.Empty({static_cast<int64_t>(values.size())}, DType::kF64,
                                MemoryCategory::kCommunication);
      const auto bytes = static_cast<int64_t>(values.size() * sizeof(double));
      runtime::CopyBytes(tensor.raw(), ctx.device(), values.data(), Device::Cpu(), bytes,
                         &ctx.stream());
      ctx.stream().Synchronize();
      mesh.dp()->AllReduce(tensor)->Wait();
      runtime::CopyBytes(values.data(), Device::Cpu(), tensor.raw(), ctx.device(), bytes,
                         &ctx.stream());
      ctx.stream().Synchronize();
    };
    for (PipelineStage* chunk : chunks) chunk->EndStep(ctx, sum);
  }

  PipelineStage* LastStage() const {
    for (PipelineStage* chunk : chunks) {
      if (chunk->is_last()) return chunk;
    }
    return nullptr;
  }

  std::vector<PipelineStage::Outcome> TakeOutcomes(size_t microbatches) {
    std::vector<PipelineStage::Outcome> outcomes;
    PipelineStage* last = LastStage();
    for (size_t i = 0; last != nullptr && i < microbatches; ++i) {
      outcomes.push_back(last->TakeOutcome(static_cast<int>(i)));
    }
    return outcomes;
  }

  // Adds loss and metrics over microbatches, then over the mesh in rank order.
  void SumOutcomes(size_t microbatches, StepResult& result) {
    MetricSums sums;
    double loss = 0;
    for (const auto& outcome : TakeOutcomes(microbatches)) {
      loss += outcome.loss;
      for (const auto& [name, value] : outcome.metrics) Add(name, value, sums);
    }
    for (PipelineStage* chunk : chunks) {
      const PipelineStage::Outcome auxiliary = chunk->TakeAuxiliary();
      loss += auxiliary.loss;
      for (const auto& [name, value] : auxiliary.metrics) Add(name, value, sums);
    }
    const std::string loss_bytes(reinterpret_cast<const char*>(&loss), sizeof loss);
    for (const std::string& bytes : mesh.world()->AllGatherBytes(loss_bytes + Pack(sums))) {
      double part = 0;
      std::memcpy(&part, bytes.data(), sizeof part);
      result.loss += part;
      AddUnpacked(bytes.substr(sizeof part), result.metrics);
    }
  }
};

TrainEngine::TrainEngine(Context& ctx, const Mesh& mesh, std::vector<PipelineStage*> chunks,
                         Options options)
    : impl_(std::make_unique<Impl>(ctx, mesh, std::move(chunks), options)) {}
TrainEngine::~TrainEngine() = default;

TrainEngine::StepResult TrainEngine::Step(const std::vector<TokenBatch>& microbatches,
                                          const LossFunction& loss, double lr) {
  Impl& impl = *impl_;
  const PipelineShape shape = impl.Shape(microbatches.size());
  const auto lists = BuildSchedule(shape);
  impl.RestoreGradients();
  impl.ZeroGradients();
  for (PipelineStage* chunk : impl.chunks) chunk->BeginStep(/*keep_head_output=*/false);
  impl.Run(lists[impl.mesh.pp_index()], shape, microbatches, loss, /*train=*/true,
           [&impl](const Parameter& p) { impl.OnGradient(p); });
  impl.reducer->Finish();
  if (impl.options.before_update) impl.options.before_update();
  const auto update = impl.optimizer->Step(*impl.reducer, lr);
  StepResult result;
  result.gradient_norm = update.gradient_norm;
  result.skipped = update.skipped;
  if (!update.skipped) impl.EndStep();
  impl.SumOutcomes(microbatches.size(), result);
  return result;
}

std::vector<PipelineStage::Outcome> TrainEngine::Evaluate(
    const std::vector<TokenBatch>& microbatches, const LossFunction& loss, bool keep_head_output) {
  Impl& impl = *impl_;
  const PipelineShape shape = impl.Shape(microbatches.size());
  const auto lists = BuildForwardSchedule(shape);
  for (PipelineStage* chunk : impl.chunks) chunk->BeginStep(keep_head_output);
  impl.Run(lists[impl.mesh.pp_index()], shape, microbatches, loss, /*train=*/false);
  return impl.TakeOutcomes(microbatches.size());
}

void TrainEngine::ReleaseGradients() { impl_->ReleaseGradients(); }
void TrainEngine::RestoreGradients() { impl_->RestoreGradients(); }

ShardedOptimizer& TrainEngine::optimizer() { return *impl_->optimizer; }

std::vector<Parameter*> TrainEngine::Parameters() {
  std::vector<Parameter*> all;
  for (PipelineStage* chunk : impl_->chunks) {
    for (Parameter* p : chunk->Parameters()) all.push_back(p);
  }
  return all;
}

void TrainEngine::SelfCheck(const std::string& config_digest) {
  impl_->RestoreGradients();
  CheckReplicas(impl_->ctx, impl_->mesh, impl_->parameters, config_digest);
  CheckGradientSums(impl_->ctx, impl_->mesh, impl_->reduced, *impl_->reducer);
}

}  // namespace hone::parallel
