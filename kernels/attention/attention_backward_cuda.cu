// Backward, with the formulas of attention_backward_cpu.cc: P and dS are rebuilt tile by tile from
// the saved log-sum-exp. Nothing is added to by two blocks: one kernel has a block for each key
// tile, which walks over the queries that see it and sums dk and dv in shared memory; the other one
// for each query tile, which walks over its keys and sums dq. So every sum has one order.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_tile_cuda.h"

namespace hone::kernels::cuda {
namespace {

constexpr std::string_view kOp = "attention_backward";

template <class T>
struct Inputs {
  Rows<T> dout, q, k, v;
  Rows<Acc<T>> lse_TH;
  const Acc<T>* delta_TH;  // Σ(dout ∘ out) of each row
  int64_t heads, groups, dim_c, dim_v;
  Acc<T> scale;
  bool dout_aligned, q_aligned, k_aligned, v_aligned;
};

// A block's tile: tokens [first, …) of the sequence [start, start + length), for one head (of
// queries or of keys).
struct Work {
  int32_t start, length, first, head;
};

template <class T>
__global__ void DeltaKernel(Rows<T> dout, Rows<T> out, int64_t rows, int64_t dim, bool aligned,
                            Acc<T>* delta) {
  constexpr int kSize = Pack<T>::kSize;
  int64_t r = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarpSize) + Warp();
  if (r >= rows) return;  // a whole warp
  Acc<T> dot = 0;
  ForPacks<kWarpSize, T>(Lane(), dim, [&](int64_t i, int64_t count) {
    Acc<T> a[kSize], b[kSize];
    LoadPacks<kSize>(dout[r] + i, count, aligned, a);
    LoadPacks<kSize>(out[r] + i, count, aligned, b);
    for (int j = 0; j < kSize; ++j) dot = Fma(a[j], b[j], dot);
  });
  dot = WarpSum(dot);
  if (Lane() == 0) delta[r] = dot;
}

// A block's shared memory: kA · 16 queries against kB · 16 keys.
template <class T, int kA, int kB>
struct Shared {
  using A = Acc<T>;
  static constexpr int kQueries = kA * kSide, kKeys = kB * kSide, kStride = kKeys + kPad;
  static constexpr int64_t kNumbers = kStageSize<kA, kB> + 2 * kQueries * kStride + 2 * kQueries;
  A *stage, *weight, *slope, *lse, *delta, *sums;
  const T **q, **dout, **k, **v;

  // `sums`: elements of the gradients that are summed.
  static int64_t Bytes(int64_t sum_elements) {
    return (kNumbers + sum_elements) * static_cast<int64_t>(sizeof(A)) +
           2 * (kQueries + kKeys) * static_cast<int64_t>(sizeof(T*));
  }
  __device__ explicit Shared(int64_t sum_elements)
      : stage(DynamicShared<A>()),
        weight(stage + kStageSize<kA, kB>),
        slope(weight + kQueries * kStride),
        lse(slope + kQueries * kStride),
        delta(lse + kQueries),
        sums(delta + kQueries),
        q(reinterpret_cast<const T**>(sums + sum_elements)),
        dout(q + kQueries),
        k(dout + kQueries),
        v(k + kKeys) {}

  __device__ void PointAtQueries(const Inputs<T>& in, const Work& work, int64_t t0, int64_t head) {
    for (int r = static_cast<int>(threadIdx.x); r < kQueries; r += kTileThreads) {
      bool there = t0 + r < work.length;
      int64_t token = work.start + t0 + r, row = token * in.heads + head;
      q[r] = there ? in.q[row] : nullptr;
      dout[r] = there ? in.dout[row] : nullptr;
      lse[r] = there ? in.lse_TH[token][head] : A(0);
      delta[r] = there ? in.delta_TH[row] : A(0);
    }
  }
  __device__ void PointAtKeys(const Inputs<T>& in, const Work& work, int64_t u0, int64_t group) {
    for (int u = static_cast<int>(threadIdx.x); u < kKeys; u += kTileThreads) {
      bool there = u0 + u < work.length;
      int64_t row = (work.start + u0 + u) * in.groups + group;
      k[u] = there ? in.k[row] : nullptr;
      v[u] = there ? in.v[row] : nullptr;
    }
  }
  // weight = P and slope = dS of queries [t0, …) and keys [u0, …); 0 where a query sees no key. A
  // barrier must follow before they are read: AddWeighted has one.
  __device__ void Scores(const Inputs<T>& in, const Work& work, int64_t t0, int64_t u0) {
    A p[kA][kB], ds[kA][kB];
    Product(q, k, in.dim_c, in.q_aligned, in.k_aligned, stage, p);
    Product(dout, v, in.dim_v, in.dout_aligned, in.v_aligned, stage, ds);
    for (int a = 0; a < kA; ++a) {
      int r = TileY() * kA + a;
      for (int b = 0; b < kB; ++b) {
        int u = TileX() * kB + b;
        bool seen = t0 + r < work.length && u0 + u <= t0 + r;
        A w = seen ? Exp(p[a][b] * in.scale - lse[r]) : A(0);
        weight[r * kStride + u] = w;
        slope[r * kStride + u] = seen ? w * (ds[a][b] - delta[r]) * in.scale : A(0);
      }
    }
  }
};

__device__ inline void Clear(auto* data, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += kTileThreads) data[i] = 0;
}

// Rows first … of the sums become rows of a gradient.
template <class T>
__device__ void StoreSums(const Acc<T>* sums, int64_t dim, const Work& work, int64_t count,
                          int64_t heads, const Rows<T>& gradient) {
  int64_t stride = AccumulatorStride(dim);
  for (int64_t n = threadIdx.x; n < count * dim; n += kTileThreads) {
    int64_t r = n / dim, i = n % dim;
    if (work.first + r >= work.length) return;
    gradient[(work.start + work.first + r) * heads + work.head][i] = Store<T>(sums[r * stride + i]);
  }
}

// dk and dv of a key tile: over the heads that read it, then over the queries that see it.
template <class T, int kB>
__global__ void __launch_bounds__(kTileThreads)
    KeyKernel(const Work* works, Inputs<T> in, Rows<T> dk, Rows<T> dv) {
  constexpr int kKeys = kB * kSide;
  const Work work = works[blockIdx.x];
  int64_t k_size = kKeys * AccumulatorStride(in.dim_c),
          v_size = kKeys * AccumulatorStride(in.dim_v);
  Shared<T, 4, kB> shared(k_size + v_size);
  Acc<T>*dk_sums = shared.sums, *dv_sums = shared.sums + k_size;
  Clear(shared.sums, k_size + v_size);
  shared.PointAtKeys(in, work, work.first, work.head);
  int64_t share = in.heads / in.groups;
  for (int64_t head = work.head * share; head < (work.head + 1) * share; ++head) {
    for (int64_t t0 = work.first / kTile * kTile; t0 < work.length; t0 += kTile) {
      shared.PointAtQueries(in, work, t0, head);
      __syncthreads();
      shared.Scores(in, work, t0, work.first);
      AddWeighted<kB, true>(shared.weight, shared.kStride, shared.dout, in.dim_v, in.dout_aligned,
                            static_cast<const Acc<T>*>(nullptr), shared.stage, dv_sums);
      AddWeighted<kB, true>(shared.slope, shared.kStride, shared.q, in.dim_c, in.q_aligned,
                            static_cast<const Acc<T>*>(nullptr), shared.stage, dk_sums);
    }
  }
  StoreSums(dk_sums, in.dim_c, work, kKeys, in.groups, dk);
  StoreSums(dv_sums, in.dim_v, work, kKeys, in.groups, dv);
}

// dq of a query tile: over the keys that it sees.
template <class T, int kA>
__global__ void __launch_bounds__(kTileThreads)
    QueryKernel(const Work* works, Inputs<T> in, Rows<T> dq) {
  constexpr int kQueries = kA * kSide;
  const Work work = works[blockIdx.x];
  int64_t size = kQueries * AccumulatorStride(in.dim_c);
  int64_t end = work.first + kQueries < work.length ? work.first + kQueries : work.length;
  Shared<T, kA, 4> shared(size);
  Clear(shared.sums, size);
  shared.PointAtQueries(in, work, work.first, work.head);
  for (int64_t u0 = 0; u0 < end; u0 += kTile) {
    shared.PointAtKeys(in, work, u0, work.head / (in.heads / in.groups));
    __syncthreads();
    shared.Scores(in, work, work.first, u0);
    AddWeighted<kA, false>(shared.slope, shared.kStride, shared.k, in.dim_c, in.k_aligned,
                           static_cast<const Acc<T>*>(nullptr), shared.stage, shared.sums);
  }
  StoreSums(shared.sums, in.dim_c, work, kQueries, in.heads, dq);
}

// A tile of `tile` tokens each, for every head; those with most to do come first.
Tensor MakeWorks(Context& ctx, std::span<const int32_t> cu_seqlens, int64_t heads, int32_t tile,
                 bool last_first, int64_t* count) {
  std::vector<Work> works;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    int32_t length = cu_seqlens[s + 1] - cu_seqlens[s], tiles = (length + tile - 1) / tile;
    for (int32_t n = 0; n < tiles; ++n) {
      int32_t first = (last_first ? tiles - 1 - n : n) * tile;
      for (int32_t h = 0; h < heads; ++h) works.push_back({cu_seqlens[s], length, first, h});
    }
  }
  *count = static_cast<int64_t>(works.size());
  std::vector<uint8_t> bytes(works.size() * sizeof(Work));
  if (!works.empty()) std::memcpy(bytes.data(), works.data(), bytes.size());
  return Upload(ctx, std::span<const uint8_t>(bytes));
}

// The wide forms' shared memory must fit every GPU from sm_80 on.
constexpr int64_t kSharedLimit = 160 * 1024;

template <class T, int kB>
bool RunKeys(Context& ctx, std::span<const int32_t> cu_seqlens, const Inputs<T>& in,
             const AttentionGradients& gradients) {
  constexpr int kKeys = kB * kSide;
  int64_t columns = AccumulatorStride(in.dim_c) + AccumulatorStride(in.dim_v), count = 0;
  int64_t bytes = Shared<T, 4, kB>::Bytes(kKeys * columns);
  if (kB > 1 && bytes > kSharedLimit) return false;
  Tensor works = MakeWorks(ctx, cu_seqlens, in.groups, kKeys, false, &count);
  Launch(ctx, kOp, KeyKernel<T, kB>, {static_cast<unsigned>(count), kTileThreads, bytes},
         static_cast<const Work*>(works.raw()), in, Rows<T>(gradients.dk_TGC),
         Rows<T>(gradients.dv_TGV));
  return true;
}

template <class T, int kA>
bool RunQueries(Context& ctx, std::span<const int32_t> cu_seqlens, const Inputs<T>& in,
                const AttentionGradients& gradients) {
  constexpr int kQueries = kA * kSide;
  int64_t count = 0, bytes = Shared<T, kA, 4>::Bytes(kQueries * AccumulatorStride(in.dim_c));
  if (kA > 1 && bytes > kSharedLimit) return false;
  Tensor works = MakeWorks(ctx, cu_seqlens, in.heads, kQueries, true, &count);
  Launch(ctx, kOp, QueryKernel<T, kA>, {static_cast<unsigned>(count), kTileThreads, bytes},
         static_cast<const Work*>(works.raw()), in, Rows<T>(gradients.dq_THC));
  return true;
}

}  // namespace

template <class T>
void AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                       const Tensor& k_TGC, const Tensor& v_TGV, const AttentionResult& saved,
                       std::span<const int32_t> cu_seqlens, double scale,
                       const AttentionGradients& gradients) {
  using A = Acc<T>;
  constexpr int kWarps = 8;
  int64_t rows = dout_THV.rows();
  Tensor delta_TH = ctx.Empty({q_THC.dim(0), q_THC.dim(1)}, DTypeOf<A>::value);
  Launch(ctx, kOp, DeltaKernel<T>,
         {static_cast<unsigned>(CeilDiv(rows, kWarps)), kWarps * kWarpSize}, Rows<T>(dout_THV),
         Rows<T>(saved.out_THV), rows, dout_THV.cols(), RowsAligned(dout_THV, saved.out_THV),
         delta_TH.data<A>());
  Inputs<T> in{Rows<T>(dout_THV),  Rows<T>(q_THC),        Rows<T>(k_TGC),
               Rows<T>(v_TGV),     Rows<A>(saved.lse_TH), delta_TH.data<A>(),
               q_THC.dim(1),       k_TGC.dim(1),          q_THC.dim(2),
               v_TGV.dim(2),       static_cast<A>(scale), RowsAligned(dout_THV),
               RowsAligned(q_THC), RowsAligned(k_TGC),    RowsAligned(v_TGV)};
  RunKeys<T, 4>(ctx, cu_seqlens, in, gradients) || RunKeys<T, 1>(ctx, cu_seqlens, in, gradients);
  RunQueries<T, 4>(ctx, cu_seqlens, in, gradients) ||
      RunQueries<T, 1>(ctx, cu_seqlens, in, gradients);
}

#define HONE_ATTENTION(T)                                                                   \
  template void AttentionBackward<T>(Context&, const Tensor&, const Tensor&, const Tensor&, \
                                     const Tensor&, const AttentionResult&,                 \
                                     std::span<const int32_t>, double, const AttentionGradients&);
HONE_ATTENTION(float)
HONE_ATTENTION(double)
HONE_ATTENTION(BF16)
#undef HONE_ATTENTION

}  // namespace hone::kernels::cuda
