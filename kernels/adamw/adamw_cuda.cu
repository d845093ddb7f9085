// A table on the device lists the tensors; a block finds in it the piece of a tensor that it works
// on.
#include <cmath>
#include <cstring>

#include "kernels/adamw/adamw_cuda.h"
#include "kernels/cuda/elementwise.h"

namespace hone::kernels::cuda {
namespace {

constexpr std::string_view kOp = "adamw";
constexpr int kThreads = 256;
constexpr int64_t kPiece = 8192;  // elements of a block

// As in adamw_cpu.cc, where the formulas are.
template <class M>
struct Constants {
  explicit Constants(const AdamWStep& s)
      : scale(M(s.gradient_scale)),
        keep_decayed(M(1 - s.lr * s.weight_decay)),
        one_minus_beta1(M(1 - s.beta1)),
        beta2(M(s.beta2)),
        one_minus_beta2(M(1 - s.beta2)),
        step_size(M(s.lr / (1 - std::pow(s.beta1, static_cast<double>(s.step))))),
        root_c2(M(std::sqrt(1 - std::pow(s.beta2, static_cast<double>(s.step))))),
        eps(M(s.eps)) {}
  M scale, keep_decayed, one_minus_beta1, beta2, one_minus_beta2, step_size, root_c2, eps;
};

// M: master and gradient; S: moments. Blocks [first_block, next entry's) work on this tensor.
template <class M, class S>
struct Entry {
  M* master;
  const M* gradient;
  S *exp_avg, *exp_avg_sq;
  void* value;  // may be null
  int64_t size, first_block;
  DType value_dtype;
  bool decay, aligned;
};

// The entry whose piece block `block` is.
template <class E>
__device__ const E& FindEntry(const E* entries, int64_t count, int64_t block) {
  int64_t low = 0,
          high = count;  // entries[low] begins at or before the block, entries[high] behind
  while (high - low > 1) {
    int64_t middle = (low + high) / 2;
    (entries[middle].first_block <= block ? low : high) = middle;
  }
  return entries[low];
}

template <int N, class M>
__device__ void StoreValue(const M* master, int64_t count, bool aligned, void* value, DType dtype,
                           int64_t i) {
  if (dtype == DType::kBF16) {
    float v[N];
    for (int j = 0; j < N; ++j) v[j] = static_cast<float>(master[j]);
    StorePacks<N>(v, count, aligned, static_cast<BF16*>(value) + i);
  } else if (dtype == DType::kF32) {
    float v[N];
    for (int j = 0; j < N; ++j) v[j] = static_cast<float>(master[j]);
    StorePacks<N>(v, count, aligned, static_cast<float*>(value) + i);
  } else {
    double v[N];
    for (int j = 0; j < N; ++j) v[j] = static_cast<double>(master[j]);
    StorePacks<N>(v, count, aligned, static_cast<double*>(value) + i);
  }
}

template <class M, class S>
__global__ void AdamWKernel(const Entry<M, S>* entries, int64_t count, Constants<M> c) {
  constexpr int kWidth = kWidthOf<M, S, BF16>;
  const Entry<M, S>& t = FindEntry(entries, count, blockIdx.x);
  M keep = t.decay ? c.keep_decayed : M(1);
  int64_t begin = (blockIdx.x - t.first_block) * kPiece;
  int64_t end = begin + kPiece < t.size ? begin + kPiece : t.size;
  for (int64_t i = begin + threadIdx.x * kWidth; i < end; i += kThreads * kWidth) {
    M master[kWidth], g[kWidth];
    Acc<S> m_wide[kWidth], v_wide[kWidth];
    int64_t left = end - i;
    LoadPacks<kWidth>(t.master + i, left, t.aligned, master);
    LoadPacks<kWidth>(t.gradient + i, left, t.aligned, g);
    LoadPacks<kWidth>(t.exp_avg + i, left, t.aligned, m_wide);
    LoadPacks<kWidth>(t.exp_avg_sq + i, left, t.aligned, v_wide);
    for (int j = 0; j < kWidth; ++j) {
      M gradient = g[j] * c.scale, m = static_cast<M>(m_wide[j]), v = static_cast<M>(v_wide[j]);
      m = Fma(c.one_minus_beta1, gradient - m, m);
      v = Fma(c.one_minus_beta2 * gradient, gradient, c.beta2 * v);
      m_wide[j] = static_cast<Acc<S>>(m);
      v_wide[j] = static_cast<Acc<S>>(v);
      M denominator = Sqrt(v) / c.root_c2 + c.eps;
      if (denominator == M(0)) denominator = Infinity<M>();
      master[j] = Fma(-c.step_size, m / denominator, master[j] * keep);
    }
    StorePacks<kWidth>(m_wide, left, t.aligned, t.exp_avg + i);
    StorePacks<kWidth>(v_wide, left, t.aligned, t.exp_avg_sq + i);
    StorePacks<kWidth>(master, left, t.aligned, t.master + i);
    if (t.value != nullptr) {
      StoreValue<kWidth>(master, left, t.aligned, t.value, t.value_dtype, i);
    }
  }
}

template <class E>
Tensor UploadTable(Context& ctx, const std::vector<E>& entries) {
  std::vector<uint8_t> bytes(entries.size() * sizeof(E));
  std::memcpy(bytes.data(), entries.data(), bytes.size());
  return Upload(ctx, std::span<const uint8_t>(bytes));
}

template <class M, class S>
Entry<M, S> MakeEntry(const AdamWTensor& t, int64_t first_block) {
  bool publish = t.value.defined() && t.value.raw() != t.master.raw();
  auto aligned = [](const Tensor& x) { return reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0; };
  return {t.master.data<M>(),
          t.gradient.data<M>(),
          t.exp_avg.data<S>(),
          t.exp_avg_sq.data<S>(),
          publish ? t.value.raw() : nullptr,
          t.master.size(),
          first_block,
          publish ? t.value.dtype() : DType::kF32,
          t.decay,
          aligned(t.master) && aligned(t.gradient) && aligned(t.exp_avg) && aligned(t.exp_avg_sq) &&
              (!publish || aligned(t.value))};
}

// Those of the tensors that have these dtypes.
template <class M, class S>
void Update(Context& ctx, const std::vector<AdamWTensor>& tensors, const AdamWStep& step) {
  std::vector<Entry<M, S>> entries;
  int64_t blocks = 0;
  for (const AdamWTensor& t : tensors) {
    bool mine = t.master.dtype() == DTypeOf<M>::value && t.exp_avg.dtype() == DTypeOf<S>::value;
    if (!mine || t.master.size() == 0) continue;
    entries.push_back(MakeEntry<M, S>(t, blocks));
    blocks += CeilDiv(t.master.size(), kPiece);
  }
  if (entries.empty()) return;
  Tensor table = UploadTable(ctx, entries);
  Launch(ctx, kOp, AdamWKernel<M, S>, {static_cast<unsigned>(blocks), kThreads},
         static_cast<const Entry<M, S>*>(table.raw()), static_cast<int64_t>(entries.size()),
         Constants<M>(step));
}

template <class T>
struct Squares {
  const T* data;
  int64_t size, first_block;
};

template <class T>
__global__ void PieceKernel(const Squares<T>* entries, int64_t count, double* partial) {
  constexpr int kSize = Pack<T>::kSize;
  const Squares<T>& t = FindEntry(entries, count, blockIdx.x);
  bool aligned = reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
  int64_t begin = (blockIdx.x - t.first_block) * kPiece;
  double sum = 0;
  ForPacks<kThreads, T>(static_cast<int>(threadIdx.x),
                        t.size - begin < kPiece ? t.size - begin : kPiece,
                        [&](int64_t i, int64_t n) {
                          Acc<T> x[kSize];
                          LoadPacks<kSize>(t.data + begin + i, n, aligned, x);
                          for (int j = 0; j < kSize; ++j)
                            sum = fma(double(x[j]), double(x[j]), sum);
                        });
  sum = BlockSum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T>
__global__ void TotalKernel(const Squares<T>* entries, int64_t count, int64_t blocks,
                            const double* partial, double* total) {
  int64_t e = blockIdx.x;
  int64_t end = e + 1 < count ? entries[e + 1].first_block : blocks;
  double sum = 0;
  for (int64_t b = entries[e].first_block + threadIdx.x; b < end; b += kThreads) sum += partial[b];
  sum = BlockSum(sum);
  if (threadIdx.x == 0) total[e] = sum;
}

template <class T>
std::vector<double> Sums(Context& ctx, const std::vector<Tensor>& tensors) {
  constexpr std::string_view op = "sum_of_squares";
  std::vector<Squares<T>> entries;
  int64_t blocks = 0, count = static_cast<int64_t>(tensors.size());
  for (const Tensor& t : tensors) {
    entries.push_back({t.data<T>(), t.size(), blocks});
    blocks += CeilDiv(t.size(), kPiece);
  }
  Tensor table = UploadTable(ctx, entries);
  Tensor partial = ctx.Empty({blocks}, DType::kF64), total = ctx.Empty({count}, DType::kF64);
  auto* list = static_cast<const Squares<T>*>(table.raw());
  Launch(ctx, op, PieceKernel<T>, {static_cast<unsigned>(blocks), kThreads}, list, count,
         partial.data<double>());
  Launch(ctx, op, TotalKernel<T>, {static_cast<unsigned>(count), kThreads}, list, count, blocks,
         partial.data<double>(), total.data<double>());
  std::vector<double> sums(tensors.size());
  runtime::CopyBytes(sums.data(), Device::Cpu(), total.raw(), ctx.device(), total.bytes(),
                     &ctx.stream());
  return sums;
}

}  // namespace

void AdamW(Context& ctx, const std::vector<AdamWTensor>& tensors, const AdamWStep& step) {
  Update<float, float>(ctx, tensors, step);
  Update<float, BF16>(ctx, tensors, step);
  Update<double, double>(ctx, tensors, step);
  Update<double, BF16>(ctx, tensors, step);
}

std::vector<double> SumsOfSquares(Context& ctx, const std::vector<Tensor>& tensors) {
  if (tensors.empty()) return {};
  switch (tensors.front().dtype()) {
    case DType::kF64:
      return Sums<double>(ctx, tensors);
    case DType::kBF16:
      return Sums<BF16>(ctx, tensors);
    default:
      return Sums<float>(ctx, tensors);
  }
}

}  // namespace hone::kernels::cuda
