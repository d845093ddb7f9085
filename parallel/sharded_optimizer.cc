#include "parallel/sharded_optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>

#include "kernels/adamw/adamw.h"
#include "parallel/shard_buckets.h"
#include "parallel/state_stream.h"
#include "parallel/tied_replicas.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr int64_t kBucketBytes = 4 << 20;
constexpr double kLargestNorm = 1e19;  // second moments, which are squares, fit f32 and bf16

Tensor PinnedTensor(int64_t size, DType dtype) {
  std::shared_ptr<void> memory = runtime::MakePinned(size * DTypeSize(dtype));
  return Tensor(memory.get(), {size}, dtype, Device::Cpu(), memory);
}

}  // namespace

void AdamWConfig::Read(ConfigReader& reader) {
  reader.Optional("beta1", &beta1);
  reader.Optional("beta2", &beta2);
  reader.Optional("eps", &eps);
  reader.Optional("weight_decay", &weight_decay);
  reader.Optional("clip", &clip);
  for (const auto& [key, beta] : {std::pair{"beta1", beta1}, {"beta2", beta2}}) {
    if (beta < 0 || beta >= 1) reader.Fail(key, fmt::format("is {}; it must lie in [0, 1)", beta));
  }
  if (eps <= 0) reader.Fail("eps", fmt::format("is {}; it must be above 0", eps));
  if (weight_decay < 0) reader.Fail("weight_decay", "must not be negative");
  if (clip < 0) reader.Fail("clip", "must not be negative; 0: no clipping");
  const int otherwise = moments == DType::kF32 ? 0 : 1;
  moments = reader.OneOf("moments", {"f32", "bf16"}, otherwise) == 0 ? DType::kF32 : DType::kBF16;
  offload =
      static_cast<Offload>(reader.OneOf("offload", {"none", "host"}, static_cast<int>(offload)));
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
    // When offloaded: flat, the rank's section; the states are views of them.
    Tensor master, exp_avg, exp_avg_sq;
    // While values are gathered.
    Tensor own, all;
    WorkPtr work;
  };
  // Fills values[i], this rank's rows of states[i]'s parameter, for a whole bucket.
  using Update = std::function<void(Bucket&, const std::vector<Tensor>& values)>;

  Impl(Context& context, const Mesh& the_mesh, const std::vector<Parameter*>& parameters,
       const AdamWConfig& adamw);
  void MakeStates(Bucket& bucket);
  void WaitForStates();
  double GradientNorm(const GradientReducer& reducer);
  void UpdateValues(const Update& update);
  void StartGather(Bucket& bucket, const Update& update);
  void FinishGather(Bucket& bucket);
  void RunAdamW(Bucket& bucket, const std::vector<Tensor>& values, const GradientReducer& reducer,
                const kernels::AdamWStep& arguments);
  void StreamAdamW(Bucket& bucket, const std::vector<Tensor>& values,
                   const GradientReducer& reducer, const kernels::AdamWStep& arguments);
  void Reset();
  SlabIndex Slabs();

  Context& ctx;
  const Mesh& mesh;
  AdamWConfig config;
  TiedReplicas tied;
  std::vector<Bucket> buckets;
  std::optional<StateStream> stream;  // when offloaded
  int64_t step = 0;
};

ShardedOptimizer::Impl::Impl(Context& context, const Mesh& the_mesh,
                             const std::vector<Parameter*>& parameters, const AdamWConfig& adamw)
    : ctx(context), mesh(the_mesh), config(adamw), tied(mesh, TrainableParameters(parameters)) {
  if (config.offload == AdamWConfig::Offload::kHost && !ctx.device().is_cpu()) {
    stream.emplace(ctx, config.offload_piece_bytes);
  }
  for (ShardBucket& layout : MakeShardBuckets(
           mesh, TrainableParameters(parameters),
           [](const ParamSpec& spec) { return spec.storage; }, kBucketBytes)) {
    Bucket& bucket = buckets.emplace_back();
    bucket.layout = std::move(layout);
    MakeStates(bucket);
  }
  Reset();
}

void ShardedOptimizer::Impl::MakeStates(Bucket& bucket) {
  const ShardBucket& layout = bucket.layout;
  const ParamSpec& first = layout.entries.front().parameter->spec;
  const DType master = first.master;
  const DType moments = master == DType::kF64 ? DType::kF64 : config.moments;
  if (stream) {
    bucket.master = PinnedTensor(layout.section, master);
    bucket.exp_avg = PinnedTensor(layout.section, moments);
    bucket.exp_avg_sq = PinnedTensor(layout.section, moments);
  }
  for (const BucketEntry& entry : layout.entries) {
    Parameter& p = *entry.parameter;
    CheckShape(p.value.defined() && p.value.dtype() == p.spec.storage && p.value.contiguous(),
               "[sharded_optimizer] {} has no contiguous {} value", p.spec.name,
               runtime::DTypeName(p.spec.storage));
    CheckShape(p.spec.master == master, "[sharded_optimizer] {} has a master in {}, {} one in {}",
               p.spec.name, runtime::DTypeName(p.spec.master), first.name,
               runtime::DTypeName(master));
    const int rank = layout.group->rank();
    auto state = [&](const Tensor& offloaded, DType dtype) {
      if (stream) return layout.View(offloaded, entry, rank);
      Shape shape = p.spec.slab.extent;
      shape[0] = layout.Rows(entry, rank).size();
      return ctx.Empty(shape, dtype, MemoryCategory::kOptimizer);
    };
    bucket.states.push_back({&p, layout.Rows(entry, rank), state(bucket.master, master),
                             state(bucket.exp_avg, moments), state(bucket.exp_avg_sq, moments)});
  }
}

// Offloaded states are changed by the stream's work.
void ShardedOptimizer::Impl::WaitForStates() {
  if (stream) ctx.stream().Synchronize();
}

void ShardedOptimizer::Impl::Reset() {
  step = 0;
  WaitForStates();
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
  if (stream) return StreamAdamW(bucket, values, reducer, arguments);
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

// Every element is updated by itself, so it does not matter where a piece cuts a tensor.
void ShardedOptimizer::Impl::StreamAdamW(Bucket& bucket, const std::vector<Tensor>& values,
                                         const GradientReducer& reducer,
                                         const kernels::AdamWStep& arguments) {
  auto update = [&](const StateStream::Piece& piece) {
    std::vector<kernels::AdamWTensor> tensors;
    for (size_t i = 0; i < values.size(); ++i) {
      const State& s = bucket.states[i];
      const int64_t offset = bucket.layout.entries[i].offset, size = s.master.size();
      const int64_t begin = std::max(piece.begin, offset);
      const int64_t end = std::min(piece.end, offset + size);
      if (begin >= end) continue;
      auto of_piece = [&](const Tensor& t) {
        return t.Slice(begin - piece.begin, end - piece.begin);
      };
      auto of_tensor = [&](const Tensor& t) {
        return t.Reshape({size}).Slice(begin - offset, end - offset);
      };
      tensors.push_back({.master = of_piece(piece.arrays[0]),
                         .gradient = of_tensor(reducer.Shard(s.parameter)),
                         .exp_avg = of_piece(piece.arrays[1]),
                         .exp_avg_sq = of_piece(piece.arrays[2]),
                         .value = of_tensor(values[i]),
                         .decay = s.parameter->spec.decay});
    }
    kernels::AdamW(ctx, tensors, arguments);
  };
  stream->Run({bucket.master, bucket.exp_avg, bucket.exp_avg_sq}, update);
}

SlabIndex ShardedOptimizer::Impl::Slabs() {
  WaitForStates();
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
  // As torch.nn.utils.clip_grad_norm_, 1e-6 included.
  double scale = config.clip > 0 ? std::min(1.0, config.clip / (result.gradient_norm + 1e-6)) : 1.0;
  result.skipped = !(result.gradient_norm * scale <= kLargestNorm);  // also where it is NaN
  if (result.skipped) return result;
  kernels::AdamWStep arguments{.lr = lr,
                               .beta1 = config.beta1,
                               .beta2 = config.beta2,
                               .eps = config.eps,
                               .weight_decay = config.weight_decay,
                               .step = ++impl.step,
                               .gradient_scale = scale};
  if (impl.stream) impl.stream->Begin();
  impl.UpdateValues([&](Impl::Bucket& bucket, const std::vector<Tensor>& values) {
    impl.RunAdamW(bucket, values, reducer, arguments);
  });
  if (impl.stream) impl.stream->End();
  return result;
}

int64_t ShardedOptimizer::step() const { return impl_->step; }
void ShardedOptimizer::set_step(int64_t step) { impl_->step = step; }
SlabIndex ShardedOptimizer::State() { return impl_->Slabs(); }
void ShardedOptimizer::Reset() { impl_->Reset(); }

void ShardedOptimizer::PublishMasters() {
  impl_->WaitForStates();
  impl_->UpdateValues([&](Impl::Bucket& bucket, const std::vector<Tensor>& values) {
    for (size_t i = 0; i < values.size(); ++i) {
      CopyTo(bucket.states[i].master, values[i], &impl_->ctx.stream());
    }
  });
}

}  // namespace hone::parallel
