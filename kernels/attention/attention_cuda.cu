// Forward. A block takes consecutive rows (token, head) of one sequence that read one key/value
// head and walks with them over the key tiles, keeping a running maximum, the sum of exp(score −
// max) and the unnormalised output of each row, as attention_cpu.cc does. A row's products are
// chains in ascending order, a tile's sum is one fixed tree, and keys that a row does not see weigh
// exactly 0: so its bits depend neither on the rows beside it, nor on the chunking, nor on kRows.
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_tile_cuda.h"

namespace hone::kernels::cuda {
namespace {

static_assert(kTile == kKeyTile);

// What a block works on: rows [row, row + kRows) of the queries · share rows of a sequence.
struct Work {
  int32_t query;     // the sequence's first query token, as q counts
  int32_t queries;   // how many it has
  int32_t position;  // of that token in the sequence
  int32_t key;       // the first key token, or where its pages begin in the list of pages
  int32_t group, row;
};

template <class T>
struct Inputs {
  Rows<T> q, k, v, out;
  Acc<T>* lse_TH;        // may be null
  const int32_t* pages;  // null: keys are packed as queries are
  int64_t page_size, heads, groups, dim_c, dim_v;
  Acc<T> scale;
  bool q_aligned, k_aligned, v_aligned;

  __device__ int64_t KeyRow(const Work& work, int64_t u) const {
    int64_t token = pages == nullptr ? work.key + u
                                     : pages[work.key + u / page_size] * page_size + u % page_size;
    return token * groups + work.group;
  }
};

// A block's shared memory.
template <class T, int kRows>
struct Shared {
  using A = Acc<T>;
  A *stage, *score, *out, *sum, *max, *shrink;
  const T **q, **k, **v;

  static constexpr int64_t kFixed = kStageSize<kRows / kSide, 4> + kRows * (kTileStride + 3);
  static int64_t Bytes(int64_t dim_v) {
    return (kFixed + kRows * AccumulatorStride(dim_v)) * static_cast<int64_t>(sizeof(A)) +
           (kRows + 2 * kTile) * static_cast<int64_t>(sizeof(T*));
  }
  __device__ explicit Shared(int64_t dim_v)
      : stage(DynamicShared<A>()),
        score(stage + kStageSize<kRows / kSide, 4>),
        out(score + kRows * kTileStride),
        sum(out + kRows * AccumulatorStride(dim_v)),
        max(sum + kRows),
        shrink(max + kRows),
        q(reinterpret_cast<const T**>(shrink + kRows)),
        k(q + kRows),
        v(k + kTile) {}
};

// Turns a tile's scores into weights: a warp takes a row, lane l its keys l and l + 32. visible(r)
// of the scores of row r count, which may be none or less.
template <class T, int kRows, class Visible>
__device__ void SoftmaxTile(const Shared<T, kRows>& shared, int64_t rows, Acc<T> scale,
                            Visible visible) {
  using A = Acc<T>;
  for (int r = Warp(); r < rows; r += kTileThreads / kWarpSize) {
    A* score = shared.score + r * kTileStride;
    int64_t count = visible(r);
    A low = Lane() < count ? score[Lane()] * scale : -Infinity<A>();
    A high = Lane() + kWarpSize < count ? score[Lane() + kWarpSize] * scale : -Infinity<A>();
    A before = shared.max[r], sum = shared.sum[r];
    A greatest = Max{}(before, WarpMax(Max{}(low, high)));
    low = Exp(low - greatest);
    high = Exp(high - greatest);
    A shrink = Exp(before - greatest), tile = WarpSum(low + high);
    __syncwarp();  // all lanes have read the row
    score[Lane()] = low;
    score[Lane() + kWarpSize] = high;
    if (Lane() == 0) {
      shared.max[r] = greatest;
      shared.sum[r] = sum * shrink + tile;
      shared.shrink[r] = shrink;
    }
  }
}

template <class T, int kRows>
__global__ void __launch_bounds__(kTileThreads) ForwardKernel(const Work* works, Inputs<T> in) {
  using A = Acc<T>;
  constexpr int kA = kRows / kSide;
  Shared<T, kRows> shared(in.dim_v);
  const Work work = works[blockIdx.x];
  int64_t share = in.heads / in.groups;
  int64_t left = work.queries * share - work.row, rows = left < kRows ? left : kRows;
  int64_t stride = AccumulatorStride(in.dim_v);
  auto token = [&](int64_t r) { return (work.row + r) / share; };  // counted from work.query
  auto query_row = [&](int64_t r) {
    return (work.query + token(r)) * in.heads + work.group * share + (work.row + r) % share;
  };
  int thread = static_cast<int>(threadIdx.x);
  for (int r = thread; r < kRows; r += kTileThreads) {
    shared.q[r] = r < rows ? in.q[query_row(r)] : nullptr;
    shared.sum[r] = 0;
    shared.max[r] = -Infinity<A>();
    shared.shrink[r] = 1;
  }
  for (int64_t i = thread; i < kRows * stride; i += kTileThreads) shared.out[i] = 0;
  int64_t end = work.position + token(rows - 1) + 1;
  for (int64_t u0 = 0; u0 < end; u0 += kTile) {
    if (thread < kTile) {
      bool seen = u0 + thread < end;
      shared.k[thread] = seen ? in.k[in.KeyRow(work, u0 + thread)] : nullptr;
      shared.v[thread] = seen ? in.v[in.KeyRow(work, u0 + thread)] : nullptr;
    }
    __syncthreads();
    A score[kA][4];
    Product(shared.q, shared.k, in.dim_c, in.q_aligned, in.k_aligned, shared.stage, score);
    for (int a = 0; a < kA; ++a) {
      StorePacks<4>(score[a], 4, true,
                    shared.score + (TileY() * kA + a) * kTileStride + TileX() * 4);
    }
    __syncthreads();
    SoftmaxTile(shared, rows, in.scale,
                [&](int64_t r) { return work.position + token(r) + 1 - u0; });
    AddWeighted<kA, false>(shared.score, kTileStride, shared.v, in.dim_v, in.v_aligned,
                           shared.shrink, shared.stage, shared.out);
  }
  __syncthreads();
  // Adding 0 makes a −0 that some keys of weight 0 may or may not have turned into 0 the same.
  for (int64_t n = thread; n < rows * in.dim_v; n += kTileThreads) {
    int64_t r = n / in.dim_v, i = n % in.dim_v;
    in.out[query_row(r)][i] = Store<T>(shared.out[r * stride + i] / shared.sum[r] + A(0));
  }
  if (in.lse_TH != nullptr && thread < rows) {
    in.lse_TH[query_row(thread)] = shared.max[thread] + Log(shared.sum[thread]);
  }
}

// Blocks of sequences whose rows number at most kFew walk with few rows at a time.
constexpr int kFew = 16, kMany = 64;

template <class T, int kRows>
void Run(Context& ctx, std::string_view op, const std::vector<Work>& sequences,
         const Inputs<T>& in) {
  std::vector<Work> works;
  for (Work work : sequences) {
    int64_t rows = work.queries * (in.heads / in.groups);
    for (int64_t row = (rows - 1) / kRows * kRows; row >= 0; row -= kRows) {  // longest first
      work.row = static_cast<int32_t>(row);
      for (work.group = 0; work.group < in.groups; ++work.group) works.push_back(work);
    }
  }
  if (works.empty()) return;
  std::vector<uint8_t> bytes(works.size() * sizeof(Work));
  std::memcpy(bytes.data(), works.data(), bytes.size());
  Tensor table = Upload(ctx, std::span<const uint8_t>(bytes));
  Launch(ctx, op, ForwardKernel<T, kRows>,
         {static_cast<unsigned>(works.size()), kTileThreads, Shared<T, kRows>::Bytes(in.dim_v)},
         static_cast<const Work*>(table.raw()), in);
}

// The wide form's shared memory must fit every GPU from sm_80 on.
constexpr int64_t kSharedLimit = 160 * 1024;

template <class T>
void RunAll(Context& ctx, std::string_view op, const std::vector<Work>& sequences,
            const Inputs<T>& in) {
  bool wide = Shared<T, kMany>::Bytes(in.dim_v) <= kSharedLimit;
  std::vector<Work> few, many;
  for (const Work& work : sequences) {
    if (work.queries == 0) continue;
    (wide && work.queries * (in.heads / in.groups) > kFew ? many : few).push_back(work);
  }
  Run<T, kMany>(ctx, op, many, in);
  Run<T, kFew>(ctx, op, few, in);
}

}  // namespace

template <class T>
void Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC, const Tensor& v_TGV,
               std::span<const int32_t> cu_seqlens, double scale, const AttentionResult& result) {
  Inputs<T> in{Rows<T>(q_THC),
               Rows<T>(k_TGC),
               Rows<T>(v_TGV),
               Rows<T>(result.out_THV),
               result.lse_TH.data<Acc<T>>(),
               nullptr,
               0,
               q_THC.dim(1),
               k_TGC.dim(1),
               q_THC.dim(2),
               v_TGV.dim(2),
               static_cast<Acc<T>>(scale),
               RowsAligned(q_THC),
               RowsAligned(k_TGC),
               RowsAligned(v_TGV)};
  std::vector<Work> sequences;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    sequences.push_back({cu_seqlens[s], cu_seqlens[s + 1] - cu_seqlens[s], 0, cu_seqlens[s], 0, 0});
  }
  RunAll(ctx, "attention", sequences, in);
}

template <class T>
void PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                    std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV) {
  std::vector<Work> sequences;
  std::vector<int32_t> list;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    int32_t queries = cu_seqlens[s + 1] - cu_seqlens[s];
    sequences.push_back({cu_seqlens[s], queries, kv.length_S[s] - queries,
                         static_cast<int32_t>(list.size()), 0, 0});
    list.insert(list.end(), kv.pages_S[s].begin(), kv.pages_S[s].end());
  }
  list.resize(std::bit_ceil(list.size()));  // a step that is replayed finds few different lengths
  Tensor pages = Upload(ctx, std::span<const int32_t>(list));
  Inputs<T> in{Rows<T>(q_THC),
               Rows<T>(kv.k_PSGC),
               Rows<T>(kv.v_PSGV),
               Rows<T>(out_THV),
               nullptr,
               pages.data<int32_t>(),
               kv.k_PSGC.dim(1),
               q_THC.dim(1),
               kv.k_PSGC.dim(2),
               q_THC.dim(2),
               kv.v_PSGV.dim(3),
               static_cast<Acc<T>>(scale),
               RowsAligned(q_THC),
               RowsAligned(kv.k_PSGC),
               RowsAligned(kv.v_PSGV)};
  RunAll(ctx, "paged_attention", sequences, in);
}

#define HONE_ATTENTION(T)                                                               \
  template void Attention<T>(Context&, const Tensor&, const Tensor&, const Tensor&,     \
                             std::span<const int32_t>, double, const AttentionResult&); \
  template void PagedAttention<T>(Context&, const Tensor&, const PagedKv&,              \
                                  std::span<const int32_t>, double, const Tensor&);
HONE_ATTENTION(float)
HONE_ATTENTION(double)
HONE_ATTENTION(BF16)
#undef HONE_ATTENTION

}  // namespace hone::kernels::cuda
