// Forward. A block is some consecutive tokens of one sequence with all the query heads that read
// one key/value head: kBlockRows rows (token, head) that walk over the key tiles together. For each
// row it keeps the running maximum m, the sum l of exp(score − m) and the unnormalised output o; a
// tile with a greater maximum m' first scales l and o by exp(m − m'). Products are chains in
// ascending order (gemm.h) and l is summed tile by tile, so neither what else is in the block nor
// the keys behind a row's own token (weight exactly 0) change its bits.
#include "kernels/attention/attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

constexpr int64_t kBlockRows = 112;

// Rows [tokens, heads, dim] as one head's matrix: from `token` on, a row each token.
template <class T>
MatrixView<T> HeadRows(const Tensor& t, int64_t token, int64_t head) {
  return {t.row<T>(token * t.dim(1) + head), t.dim(1) * t.row_stride()};
}

struct Block {
  int64_t sequence, group, first,
      tokens;  // tokens [first, first + tokens) of the sequence's queries
};
std::vector<Block> MakeBlocks(std::span<const int32_t> cu_seqlens, int64_t groups, int64_t share) {
  int64_t height = std::max<int64_t>(1, kBlockRows / share);
  std::vector<Block> blocks;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t t = 0; t < length; t += height) {
        blocks.push_back({static_cast<int64_t>(s), g, t, std::min(height, length - t)});
      }
    }
  }
  return blocks;
}

// What one worker needs for a block of at most `rows` rows.
template <class A>
struct Workspace {
  Tensor memory;
  A *q, *score, *out, *max, *sum, *k, *v;

  Workspace(Context& ctx, int64_t rows, int64_t dim_c, int64_t dim_v) {
    int64_t sizes[] = {PackedLeftSize(rows, dim_c),
                       PackedLeftSize(rows, kKeyTile),
                       rows * dim_v,
                       rows,
                       rows,
                       PackedRightSize<A>(dim_c, kKeyTile),
                       PackedRightSize<A>(kKeyTile, dim_v)};
    A** places[] = {&q, &score, &out, &max, &sum, &k, &v};
    int64_t total = 0;
    for (int64_t& size : sizes) total += size = (size + 15) / 16 * 16;
    memory = ctx.Empty({total}, DTypeOf<A>::value);
    A* next = memory.data<A>();
    for (int i = 0; i < 7; next += sizes[i], ++i) *places[i] = next;
  }
};

// Turns a row of kKeyTile scores into weights; the first `visible` of them count.
template <class A>
void SoftmaxRow(A* score, int64_t visible, A scale, A* max, A* sum, A* out, int64_t dim_v) {
  if (visible == 0) {
    std::fill_n(score, kKeyTile, A(0));
    return;
  }
  for (int u = 0; u < kKeyTile; ++u) score[u] *= scale;
  for (int64_t u = visible; u < kKeyTile; ++u) score[u] = -std::numeric_limits<A>::infinity();
  A greatest = std::max(*max, MaxLanes(score, kKeyTile));
  if (greatest != *max) {
    A shrink = Exp(*max - greatest);
    *sum *= shrink;
    for (int64_t i = 0; i < dim_v; ++i) out[i] *= shrink;
    *max = greatest;
  }
  for (int u = 0; u < kKeyTile; ++u) score[u] = Exp(score[u] - greatest);
  *sum += SumLanes(score, kKeyTile);
}

template <class T>
struct KeyTile {
  MatrixView<T> k, v;  // rows are keys
};

template <class T>
struct ForwardPass {
  using A = Acc<T>;
  const Tensor &q_THC, &out_THV;
  A* lse_TH;  // may be null
  int64_t groups;
  A scale;
  std::span<const int32_t> cu_seqlens;

  int64_t heads() const { return q_THC.dim(1); }
  int64_t share() const { return heads() / groups; }

  // `position` of the block's first token in its sequence; `tile(u0, keys)` gives keys [u0, u0 +
  // keys).
  template <class Tiles>
  void Run(const Block& block, int64_t position, Tiles&& tile, const Workspace<A>& work) const {
    int64_t rows = block.tokens * share(), dim_c = q_THC.dim(2), dim_v = out_THV.dim(2);
    PackQueries(block, work.q);
    std::fill_n(work.out, rows * dim_v, A(0));
    std::fill_n(work.sum, rows, A(0));
    std::fill_n(work.max, rows, -std::numeric_limits<A>::infinity());
    int64_t end = position + block.tokens;
    for (int64_t u0 = 0; u0 < end; u0 += kKeyTile) {
      int64_t keys = std::min(kKeyTile, end - u0);
      KeyTile<T> at = tile(u0, keys);
      MatrixView<T> k_columns = {at.k.data, at.k.stride, true};
      GemmPacked<A>(rows, keys, dim_c, work.q, PackRight(rows, dim_c, keys, k_columns, work.k),
                    work.score, kPackedStride, false);
      for (int64_t t = 0; t < block.tokens; ++t) {
        int64_t visible = std::clamp<int64_t>(position + t + 1 - u0, 0, keys);
        for (int64_t r = t * share(); r < (t + 1) * share(); ++r) {
          SoftmaxRow(work.score + r * kPackedStride, visible, scale, work.max + r, work.sum + r,
                     work.out + r * dim_v, dim_v);
        }
      }
      GemmPacked<A>(rows, dim_v, keys, work.score, PackRight(rows, keys, dim_v, at.v, work.v),
                    work.out, dim_v, true);
    }
    Finish(block, work);
  }

  // Calls fn(r, row) for each row r of the block and where it stands in q and out.
  template <class Fn>
  void ForEachRow(const Block& block, Fn&& fn) const {
    int64_t first = cu_seqlens[block.sequence] + block.first, r = 0;
    for (int64_t t = first; t < first + block.tokens; ++t) {
      for (int64_t h = block.group * share(); h < (block.group + 1) * share(); ++h) {
        fn(r++, t * heads() + h);
      }
    }
  }

  void PackQueries(const Block& block, A* to) const {
    int64_t rows = block.tokens * share(), dim_c = q_THC.dim(2);
    Rows<T> q(q_THC);
    for (int64_t c = 0; c < dim_c; c += kPackedK, to += rows * kPackedStride) {
      ForEachRow(block, [&](int64_t r, int64_t row) {
        LoadRow(q[row] + c, to + r * kPackedStride, std::min(kPackedK, dim_c - c));
      });
    }
  }

  // Adding 0 makes a −0 that some keys of weight 0 may or may not have turned into 0 the same.
  void Finish(const Block& block, const Workspace<A>& work) const {
    int64_t dim_v = out_THV.dim(2);
    Rows<T> out(out_THV);
    ForEachRow(block, [&](int64_t r, int64_t row) {
      A* from = work.out + r * dim_v;
      for (int64_t i = 0; i < dim_v; ++i) from[i] = from[i] / work.sum[r] + A(0);
      StoreRow(from, out[row], dim_v);
      if (lse_TH != nullptr) lse_TH[row] = work.max[r] + std::log(work.sum[r]);
    });
  }

  // Calls work(block, workspace) for every block, shared among the threads.
  template <class Work>
  void ForEachBlock(Context& ctx, Work&& work) const {
    std::vector<Block> blocks = MakeBlocks(cu_seqlens, groups, share());
    int64_t rows = 0;
    for (const Block& block : blocks) rows = std::max(rows, block.tokens * share());
    ctx.pool().ParallelFor(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
      Workspace<A> workspace(ctx, rows, q_THC.dim(2), out_THV.dim(2));
      for (int64_t i = begin; i < end; ++i) work(blocks[i], workspace);
    });
  }
};

// One head's keys or values out of pages that are smaller than a key tile are copied to `to`; a
// tile inside one page is read where it stands.
template <class T>
MatrixView<T> FromPages(const Tensor& pages_PSGD, std::span<const int32_t> pages, int64_t head,
                        int64_t u0, int64_t keys, std::vector<T>* to) {
  int64_t page_size = pages_PSGD.dim(1), heads = pages_PSGD.dim(2), dim = pages_PSGD.dim(3);
  auto row = [&](int64_t u) {
    return pages_PSGD.row<T>((pages[u / page_size] * page_size + u % page_size) * heads + head);
  };
  if (page_size % kKeyTile == 0) return {row(u0), heads * pages_PSGD.row_stride()};
  to->resize(kKeyTile * dim);
  for (int64_t u = 0; u < keys; ++u) std::copy_n(row(u0 + u), dim, to->data() + u * dim);
  return {to->data(), dim};
}

}  // namespace

template <class T>
void Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC, const Tensor& v_TGV,
               std::span<const int32_t> cu_seqlens, double scale, const AttentionResult& result) {
  using A = Acc<T>;
  ForwardPass<T> pass{q_THC,        result.out_THV,        result.lse_TH.data<A>(),
                      k_TGC.dim(1), static_cast<A>(scale), cu_seqlens};
  pass.ForEachBlock(ctx, [&](const Block& block, const Workspace<A>& work) {
    int64_t start = cu_seqlens[block.sequence];
    auto tile = [&](int64_t u0, int64_t) {
      return KeyTile<T>{HeadRows<T>(k_TGC, start + u0, block.group),
                        HeadRows<T>(v_TGV, start + u0, block.group)};
    };
    pass.Run(block, block.first, tile, work);
  });
}

template <class T>
void PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                    std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV) {
  using A = Acc<T>;
  ForwardPass<T> pass{q_THC, out_THV, nullptr, kv.k_PSGC.dim(2), static_cast<A>(scale), cu_seqlens};
  pass.ForEachBlock(ctx, [&](const Block& block, const Workspace<A>& work) {
    int64_t s = block.sequence, queries = cu_seqlens[s + 1] - cu_seqlens[s];
    std::vector<T> k, v;
    auto tile = [&](int64_t u0, int64_t keys) {
      return KeyTile<T>{FromPages(kv.k_PSGC, kv.pages_S[s], block.group, u0, keys, &k),
                        FromPages(kv.v_PSGV, kv.pages_S[s], block.group, u0, keys, &v)};
    };
    pass.Run(block, kv.length_S[s] - queries + block.first, tile, work);
  });
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

}  // namespace hone::kernels::cpu
