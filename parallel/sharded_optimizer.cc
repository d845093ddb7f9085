#include "parallel/sharded_optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

#include "kernels/adamw/adamw.h"
#include "parallel/shard_buckets.h"
#include "parallel/tied_replicas.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr int64_t kBucketBytes = 4 << 20;

}  // namespace

void AdamWConfig::Read(ConfigReader& reader) {
  reader.Optional("beta1", &beta1);
  reader.Optional("beta2", &beta2);
  reader.Optional("eps", &eps);
  reader.Optional("weight_decay", &weight_decay);
  reader.Optional("clip", &clip);
  const int otherwise = moments == DType::kF32 ? 0 : 1;
  moments = reader.OneOf("moments", {"f32", "bf16"}, otherwise) == 0 ? DType::kF32 : DType::kBF16;
}

struct ShardedOptimizer::Impl {
  // What this rank keeps of one parameter: [rows, …] each.
  struct State {
    Parameter* parameter;
    RowRange rows;
    Tensor master, exp_avg, exp_avg_sq;
  };
  struct Bucket {
    ShardBucket layout;
    std::vector<State> states;  // one an entry
    // While values are gathered.
    Tensor own, all;
    WorkPtr work;
  };
  // Fills values[i], this rank's rows of states[i]'s parameter, for a whole bucket.
  using Update = std::function<void(Bucket&, const std::vector<Tensor>& values)>;

  Impl(Context& context, const Mesh& the_mesh, const std::vector<Parameter*>& parameters,
       const AdamWConfig& adamw);
  double GradientNorm(const GradientReducer& reducer);
  void UpdateValues(const Update& update);
  void StartGather(Bucket& bucket, const Update& update);
  void FinishGather(Bucket& bucket);
  void RunAdamW(Bucket& bucket, const std::vector<Tensor>& values, const GradientReducer& reducer,
                const kernels::AdamWStep& arguments);
  void Reset();
  SlabIndex Slabs();

  Context& ctx;
  const Mesh& mesh;
  AdamWConfig config;
  TiedReplicas tied;
  std::vector<Bucket> buckets;
  int64_t step = 0;
};

ShardedOptimizer::Impl::Impl(Context& context, const Mesh& the_mesh,
                             const std::vector<Parameter*>& parameters, const AdamWConfig& adamw)
    : ctx(context), mesh(the_mesh), config(adamw), tied(mesh, TrainableParameters(parameters)) {
  for (ShardBucket& layout : MakeShardBuckets(
           mesh, TrainableParameters(parameters),
           [](const ParamSpec& spec) { return spec.storage; }, kBucketBytes)) {
    Bucket bucket{.layout = std::move(layout), .states = {}, .own = {}, .all = {}, .work = {}};
    for (const BucketEntry& entry : bucket.layout.entries) {
      Parameter& p = *entry.parameter;
      CheckShape(p.value.defined() && p.value.dtype() == p.spec.storage && p.value.contiguous(),
                 "[sharded_optimizer] {} has no contiguous {} value", p.spec.name,
                 runtime::DTypeName(p.spec.storage));
      RowRange rows = bucket.layout.Rows(entry, bucket.layout.group->rank());
      Shape shape = p.spec.slab.extent;
      shape[0] = rows.size();
      DType moments = p.spec.master == DType::kF64 ? DType::kF64 : config.moments;
      bucket.states.push_back({&p, rows,
                               ctx.Empty(shape, p.spec.master, MemoryCategory::kOptimizer),
                               ctx.Empty(shape, moments, MemoryCategory::kOptimizer),
                               ctx.Empty(shape, moments, MemoryCategory::kOptimizer)});
    }
    buckets.push_back(std::move(bucket));
  }
  Reset();
}

void ShardedOptimizer::Impl::Reset() {
  step = 0;
  for (Bucket& bucket : buckets) {
    for (State& s : bucket.states) {
      CopyTo(s.parameter->value.Slice(s.rows.begin, s.rows.end), s.master, &ctx.stream());
      for (const Tensor& moment : {s.exp_avg, s.exp_avg_sq}) {
        runtime::FillZero(moment.raw(), moment.device(), moment.bytes(), &ctx.stream());
      }
    }
  }
}

// Every shard lies on one rank of the mesh, but for replicas on several pipeline ranks, of which
// one counts. Ranks' sums are added in rank order, on every rank alike.
double ShardedOptimizer::Impl::GradientNorm(const GradientReducer& reducer) {
  std::vector<Tensor> shards;
  for (const Bucket& bucket : buckets) {
    for (const State& s : bucket.states) {
      if (!tied.counts(s.parameter) || s.rows.size() == 0) continue;
      shards.push_back(reducer.Shard(s.parameter));
    }
  }
  double own = 0;
  for (double sum : kernels::SumsOfSquares(ctx, shards)) own += sum;
  std::string bytes(sizeof own, '\0');
  std::memcpy(bytes.data(), &own, sizeof own);
  double total = 0;
  for (const std::string& theirs : mesh.world()->AllGatherBytes(bytes)) {
    double sum = 0;
    std::memcpy(&sum, theirs.data(), sizeof sum);
    total += sum;
  }
  return std::sqrt(total);
}

// The gather of one bucket runs while the next is computed.
void ShardedOptimizer::Impl::UpdateValues(const Update& update) {
  Bucket* before = nullptr;
  for (Bucket& bucket : buckets) {
    StartGather(bucket, update);
    if (before != nullptr) FinishGather(*before);
    before = &bucket;
  }
  if (before != nullptr) FinishGather(*before);
}

void ShardedOptimizer::Impl::StartGather(Bucket& bucket, const Update& update) {
  const ShardBucket& layout = bucket.layout;
  int size = layout.group->size();
  std::vector<Tensor> values;
  if (size == 1) {
    for (const State& s : bucket.states) values.push_back(s.parameter->value);
    return update(bucket, values);
  }
  auto category = MemoryCategory::kCommunication;
  bucket.own = ctx.Zeros({layout.section}, layout.dtype, category);
  bucket.all = ctx.Empty({layout.section * size}, layout.dtype, category);
  for (const BucketEntry& entry : layout.entries) {
    values.push_back(layout.View(bucket.own, entry, layout.group->rank()));
  }
  update(bucket, values);
  bucket.work = layout.group->AllGather(bucket.own, bucket.all);
}

void ShardedOptimizer::Impl::FinishGather(Bucket& bucket) {
  if (!bucket.work) return;
  bucket.work->Wait();
  const ShardBucket& layout = bucket.layout;
  for (int r = 0; r < layout.group->size(); ++r) {
    Tensor section = layout.Section(bucket.all, r);
    for (const BucketEntry& entry : layout.entries) {
      RowRange rows = layout.Rows(entry, r);
      CopyTo(layout.View(section, entry, r), entry.parameter->value.Slice(rows.begin, rows.end),
             &ctx.stream());
    }
  }
  bucket.work = nullptr;
  bucket.own = bucket.all = Tensor();
}

void ShardedOptimizer::Impl::RunAdamW(Bucket& bucket, const std::vector<Tensor>& values,
                                      const GradientReducer& reducer,
                                      const kernels::AdamWStep& arguments) {
  std::vector<kernels::AdamWTensor> tensors;
  for (size_t i = 0; i < values.size(); ++i) {
    State& s = bucket.states[i];
    if (s.rows.size() == 0) continue;
    tensors.push_back({.master = s.master,
                       .gradient = reducer.Shard(s.parameter),
                       .exp_avg = s.exp_avg,
                       .exp_avg_sq = s.exp_avg_sq,
                       .value = values[i],
                       .decay = s.parameter->spec.decay});
  }
  kernels::AdamW(ctx, tensors, arguments);
}

SlabIndex ShardedOptimizer::Impl::Slabs() {
  SlabIndex index;
  for (Bucket& bucket : buckets) {
    for (State& s : bucket.states) {
      if (s.rows.size() == 0) continue;
      Slab slab = s.parameter->spec.slab;
      slab.offset[0] += s.rows.begin;
      slab.extent[0] = s.rows.size();
      for (auto& [kind, tensor] : {std::pair<const char*, Tensor&>{"master", s.master},
                                   {"exp_avg", s.exp_avg},
                                   {"exp_avg_sq", s.exp_avg_sq}}) {
        slab.name = fmt::format("optimizer/{}/{}", kind, SharedName(s.parameter->spec));
        index.push_back({slab, tensor});
      }
    }
  }
  return index;
}

ShardedOptimizer::ShardedOptimizer(Context& ctx, const Mesh& mesh,
                                   std::vector<Parameter*> parameters, const AdamWConfig& config)
    : impl_(std::make_unique<Impl>(ctx, mesh, parameters, config)) {}
ShardedOptimizer::~ShardedOptimizer() = default;

ShardedOptimizer::Result ShardedOptimizer::Step(const GradientReducer& reducer, double lr) {
  Impl& impl = *impl_;
  const AdamWConfig& config = impl.config;
  Result result{.gradient_norm = impl.GradientNorm(reducer)};
  result.skipped = !std::isfinite(result.gradient_norm);
  if (result.skipped) return result;
  kernels::AdamWStep arguments{.lr = lr,
                               .beta1 = config.beta1,
                               .beta2 = config.beta2,
                               .eps = config.eps,
                               .weight_decay = config.weight_decay,
                               .step = ++impl.step};
  if (config.clip > 0) {
    // As torch.nn.utils.clip_grad_norm_, 1e-6 included.
    arguments.gradient_scale = std::min(1.0, config.clip / (result.gradient_norm + 1e-6));
  }
  impl.UpdateValues([&](Impl::Bucket& bucket, const std::vector<Tensor>& values) {
    impl.RunAdamW(bucket, values, reducer, arguments);
  });
  return result;
}

int64_t ShardedOptimizer::step() const { return impl_->step; }
void ShardedOptimizer::set_step(int64_t step) { impl_->step = step; }
SlabIndex ShardedOptimizer::State() { return impl_->Slabs(); }
void ShardedOptimizer::Reset() { impl_->Reset(); }

void ShardedOptimizer::PublishMasters() {
  impl_->UpdateValues([&](Impl::Bucket& bucket, const std::vector<Tensor>& values) {
    for (size_t i = 0; i < values.size(); ++i) {
      CopyTo(bucket.states[i].master, values[i], &impl_->ctx.stream());
    }
  });
}

}  // namespace hone::parallel
