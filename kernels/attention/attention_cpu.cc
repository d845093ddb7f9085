// Forward. A block of query rows of one head walks over the key tiles of its sequence. For each row
// it keeps the running maximum m, the sum l of exp(score − m) and the unnormalised output o; a tile
// with a greater maximum m' first scales l and o by exp(m − m'). Products are chains in ascending
// order (gemm.h) and l is summed tile by tile, so neither the height of the block nor the keys
// behind a row's own token (weight exactly 0) change its bits.
#include "kernels/attention/attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

constexpr int64_t kQueryTile = 64;

// Rows (token, head) of one head of a [T, heads, dim] tensor, `stride` elements from token to
// token.
template <class A>
struct HeadRows {
  A* data;
  int64_t stride, dim;
  HeadRows(const Tensor& t, int64_t token, int64_t head)
      : data(t.row<A>(token * t.dim(1) + head)), stride(t.dim(1) * t.row_stride()), dim(t.dim(2)) {}
  A* operator[](int64_t token) const { return data + token * stride; }
  MatrixView<A> Matrix(int64_t token, bool transposed = false) const {
    return {(*this)[token], stride, transposed};
  }
};

// The state of a block of query rows while it walks over the keys.
template <class A>
struct QueryBlock {
  A max[kQueryTile], sum[kQueryTile];
  A score[kQueryTile * kKeyTile];
  std::vector<A> out;

  QueryBlock(int64_t rows, int64_t dim_v) : out(rows * dim_v, A(0)) {
    std::fill_n(max, kQueryTile, -std::numeric_limits<A>::infinity());
    std::fill_n(sum, kQueryTile, A(0));
  }
};

// Turns `keys` scores of one row into weights; the first `visible` of them count.
template <class A>
void SoftmaxRow(A* score, int64_t keys, int64_t visible, A scale, A* max, A* sum, A* out,
                int64_t dim_v) {
  std::fill(score + visible, score + keys, A(0));
  if (visible == 0) return;
  for (int64_t u = 0; u < visible; ++u) score[u] *= scale;
  A greatest = std::max(*max, MaxLanes(score, visible));
  if (greatest != *max) {
    A shrink = Exp(*max - greatest);
    *sum *= shrink;
    for (int64_t i = 0; i < dim_v; ++i) out[i] *= shrink;
    *max = greatest;
  }
  for (int64_t u = 0; u < visible; ++u) score[u] = Exp(score[u] - greatest);
  *sum += SumLanes(score, visible);
}

// `rows` queries, the first of which stands at `position` of its sequence. `tile(u0, keys)` gives
// the keys [u0, u0 + keys) and their values as matrices.
template <class A, class KeyTiles>
void AttendBlock(int64_t rows, int64_t position, MatrixView<A> q, int64_t dim_c, int64_t dim_v,
                 A scale, KeyTiles&& tile, QueryBlock<A>* block) {
  int64_t end = position + rows;
  for (int64_t u0 = 0; u0 < end; u0 += kKeyTile) {
    int64_t keys = std::min(kKeyTile, end - u0);
    auto [k, v] = tile(u0, keys);
    GemmSerial<A>(rows, keys, dim_c, q, k, block->score, kKeyTile, false);
    for (int64_t r = 0; r < rows; ++r) {
      int64_t visible = std::clamp<int64_t>(position + r + 1 - u0, 0, keys);
      SoftmaxRow(block->score + r * kKeyTile, keys, visible, scale, &block->max[r], &block->sum[r],
                 block->out.data() + r * dim_v, dim_v);
    }
    GemmSerial<A>(rows, dim_v, keys, {block->score, kKeyTile}, v, block->out.data(), dim_v, true);
  }
}

// Adding 0 makes a −0 that some keys of weight 0 may or may not have turned into 0 the same.
template <class A>
void FinishBlock(const QueryBlock<A>& block, int64_t rows, const HeadRows<A>& out) {
  for (int64_t r = 0; r < rows; ++r) {
    const A* from = block.out.data() + r * out.dim;
    for (int64_t i = 0; i < out.dim; ++i) out[r][i] = from[i] / block.sum[r] + A(0);
  }
}

struct Item {
  int64_t sequence, first;  // first row of the block, inside the sequence
};
std::vector<Item> QueryBlocks(std::span<const int32_t> cu_seqlens) {
  std::vector<Item> items;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    for (int64_t t = 0; t < length; t += kQueryTile) items.push_back({static_cast<int64_t>(s), t});
  }
  return items;
}

}  // namespace

template <class A>
void Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC, const Tensor& v_TGV,
               std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV,
               const Tensor& lse_TH) {
  int64_t heads = q_THC.dim(1), share = heads / k_TGC.dim(1);
  std::vector<Item> items = QueryBlocks(cu_seqlens);
  auto work = [&](int64_t i) {
    int64_t h = i % heads;
    Item item = items[i / heads];
    int64_t start = cu_seqlens[item.sequence], first = start + item.first;
    int64_t rows = std::min<int64_t>(kQueryTile, cu_seqlens[item.sequence + 1] - first);
    HeadRows<A> q(q_THC, first, h), out(out_THV, first, h);
    HeadRows<A> k(k_TGC, start, h / share), v(v_TGV, start, h / share);
    QueryBlock<A> block(rows, out.dim);
    AttendBlock<A>(
        rows, item.first, q.Matrix(0), q.dim, out.dim, static_cast<A>(scale),
        [&](int64_t u0, int64_t) { return std::pair(k.Matrix(u0, true), v.Matrix(u0)); }, &block);
    FinishBlock(block, rows, out);
    A* lse = lse_TH.data<A>() + first * heads + h;
    for (int64_t r = 0; r < rows; ++r) lse[r * heads] = block.max[r] + std::log(block.sum[r]);
  };
  ctx.pool().ParallelFor(static_cast<int64_t>(items.size()) * heads, 1,
                         [&](int64_t begin, int64_t end) {
                           for (int64_t i = begin; i < end; ++i) work(i);
                         });
}

namespace {

// Copies keys [u0, u0 + keys) of one head out of the pages, widened.
template <class T>
void GatherRows(const Tensor& pages_PSGD, std::span<const int32_t> pages, int64_t head, int64_t u0,
                int64_t keys, Acc<T>* to) {
  int64_t page_size = pages_PSGD.dim(1), heads = pages_PSGD.dim(2), dim = pages_PSGD.dim(3);
  for (int64_t u = u0; u < u0 + keys; ++u) {
    int64_t slot = pages[u / page_size] * page_size + u % page_size;
    LoadRow(pages_PSGD.row<T>(slot * heads + head), to + (u - u0) * dim, dim);
  }
}

}  // namespace

template <class T>
void PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                    std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV) {
  using A = Acc<T>;
  int64_t heads = q_THC.dim(1), share = heads / kv.k_PSGC.dim(2);
  int64_t dim_c = q_THC.dim(2), dim_v = out_THV.dim(2);
  std::vector<Item> items = QueryBlocks(cu_seqlens);
  auto work = [&](int64_t i) {
    int64_t h = i % heads, g = h / share;
    Item item = items[i / heads];
    int64_t begin = cu_seqlens[item.sequence], end = cu_seqlens[item.sequence + 1];
    int64_t first = begin + item.first, rows = std::min(kQueryTile, end - first);
    std::span<const int32_t> pages = kv.pages_S[item.sequence];
    HeadRows<A> q(q_THC, first, h), out(out_THV, first, h);
    QueryBlock<A> block(rows, dim_v);
    std::vector<A> k(kKeyTile * dim_c), v(kKeyTile * dim_v);
    AttendBlock<A>(
        rows, kv.length_S[item.sequence] - (end - begin) + item.first, q.Matrix(0), dim_c, dim_v,
        static_cast<A>(scale),
        [&](int64_t u0, int64_t keys) {
          GatherRows<T>(kv.k_PSGC, pages, g, u0, keys, k.data());
          GatherRows<T>(kv.v_PSGV, pages, g, u0, keys, v.data());
          return std::pair(MatrixView<A>{k.data(), dim_c, true}, MatrixView<A>{v.data(), dim_v});
        },
        &block);
    FinishBlock(block, rows, out);
  };
  ctx.pool().ParallelFor(static_cast<int64_t>(items.size()) * heads, 1, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) work(i);
  });
}

#define HONE_ATTENTION(A)                                                           \
  template void Attention<A>(Context&, const Tensor&, const Tensor&, const Tensor&, \
                             std::span<const int32_t>, double, const Tensor&, const Tensor&);
HONE_ATTENTION(float)
HONE_ATTENTION(double)
#undef HONE_ATTENTION
#define HONE_PAGED(T)                                                      \
  template void PagedAttention<T>(Context&, const Tensor&, const PagedKv&, \
                                  std::span<const int32_t>, double, const Tensor&);
HONE_PAGED(float)
HONE_PAGED(double)
HONE_PAGED(BF16)
#undef HONE_PAGED

}  // namespace hone::kernels::cpu
