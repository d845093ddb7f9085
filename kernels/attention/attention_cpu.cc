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
#include <utility>
#include <vector>

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
  A *q, *k, *v, *score, *out, *sum, *max, *greatest, *shrink;

  Workspace(Context& ctx, int64_t rows, int64_t dim_c, int64_t dim_v) {
    std::pair<A**, int64_t> parts[] = {{&q, PackedLeftSize(rows, dim_c)},
                                       {&k, PackedRightSize<A>(dim_c, kKeyTile)},
                                       {&v, PackedRightSize<A>(kKeyTile, dim_v)},
                                       {&score, PackedLeftSize(rows, kKeyTile)},
                                       {&out, rows * dim_v},
                                       {&sum, rows},
                                       {&max, rows},
                                       {&greatest, rows},
                                       {&shrink, rows}};
    int64_t total = 0;
    for (auto& [place, size] : parts) total += size = (size + 15) / 16 * 16;
    memory = ctx.Empty({total}, DTypeOf<A>::value);
    A* next = memory.data<A>();
    for (auto& [place, size] : parts) *place = std::exchange(next, next + size);
  }
};

// Turns rows [first, rows) of scores into weights of `keys` keys, in whole halves of a tile;
// visible(r) of the scores of row r count. All rows take a step together, so that the processor
// overlaps their short chains.
template <class A, class Visible>
void SoftmaxTile(const Workspace<A>& work, int64_t first, int64_t rows, int64_t keys, int64_t dim_v,
                 A scale, Visible visible) {
  for (int64_t r = first; r < rows; ++r) {
    A* score = work.score + r * kPackedStride;
    ForKeys(keys, [=](int64_t u) { score[u] *= scale; });
    std::fill(score + visible(r), score + keys, -std::numeric_limits<A>::infinity());
    work.greatest[r] = std::max(work.max[r], MaxLanes(score, keys));
  }
  for (int64_t r = first; r < rows; ++r) work.shrink[r] = Exp(work.max[r] - work.greatest[r]);
  for (int64_t r = first; r < rows; ++r) {
    if (work.greatest[r] == work.max[r]) continue;
    A* out = work.out + r * dim_v;
    for (int64_t i = 0; i < dim_v; ++i) out[i] *= work.shrink[r];
    work.sum[r] *= work.shrink[r];
    work.max[r] = work.greatest[r];
  }
  for (int64_t r = first; r < rows; ++r) {
    A *score = work.score + r * kPackedStride, max = work.max[r];
    ForKeys(keys, [=](int64_t u) { score[u] = Exp(score[u] - max); });
    work.sum[r] += SumLanes(score, keys);
  }
}

// Some consecutive keys of one head, and their values. Columns of k behind the last key may be
// there too: their scores are hidden.
template <class T>
struct KeyTile {
  MatrixView<T> k_CU, v_UV;
  int64_t columns;  // of k_CU
};

template <class T>
struct ForwardPass {
  using A = Acc<T>;
  Rows<T> q, out;
  A* lse_TH;  // may be null
  int64_t heads, groups, share, dim_c, dim_v;
  A scale;
  std::span<const int32_t> cu_seqlens;

  ForwardPass(const Tensor& q_THC, const Tensor& out_THV, A* lse, int64_t kv_heads,
              double score_scale, std::span<const int32_t> offsets)
      : q(q_THC),
        out(out_THV),
        lse_TH(lse),
        heads(q_THC.dim(1)),
        groups(kv_heads),
        share(heads / kv_heads),
        dim_c(q_THC.dim(2)),
        dim_v(out_THV.dim(2)),
        scale(static_cast<A>(score_scale)),
        cu_seqlens(offsets) {}

  // `position` of the block's first token in its sequence; `tile(u0, keys)` gives keys [u0, u0 +
  // keys).
  template <class Tiles>
  void Run(const Block& block, int64_t position, Tiles&& tile, const Workspace<A>& work) const {
    int64_t rows = block.tokens * share, end = position + block.tokens;
    PackQueries(block, work.q);
    std::fill_n(work.out, rows * dim_v, A(0));
    std::fill_n(work.sum, rows, A(0));
    std::fill_n(work.max, rows, -std::numeric_limits<A>::infinity());
    for (int64_t u0 = 0; u0 < end; u0 += kKeyTile) {
      const int64_t keys = std::min(kKeyTile, end - u0);
      // The first row that sees key u of the tile.
      auto seeing = [&](int64_t u) {
        return std::clamp<int64_t>((u0 + u - position) * share, 0, rows);
      };
      const int64_t first = seeing(0), count = rows - first;
      const int64_t middle = keys > kHalfTile ? seeing(kHalfTile) : first;
      const KeyTile<T> at = tile(u0, keys);
      const RightOperand<A> k = PackRight(count, dim_c, at.columns, at.k_CU, work.k),
                            v = PackRight(count, keys, dim_v, at.v_UV, work.v);
      auto take = [&](int64_t begin, int64_t stop, int64_t seen, int64_t columns) {
        A* score = work.score + begin * kPackedStride;
        GemmPacked<A>(stop - begin, columns, dim_c,
                      {work.q + begin * kPackedStride, rows * kPackedStride}, k, score,
                      kPackedStride, false);
        SoftmaxTile(work, begin, stop, InHalves(seen), dim_v, scale,
                    [&](int64_t r) { return std::min(seen, position - u0 + r / share + 1); });
        GemmPacked<A>(stop - begin, dim_v, seen, {score, 0}, v, work.out + begin * dim_v, dim_v,
                      true);
      };
      if (middle > first) take(first, middle, kHalfTile, kHalfTile);
      if (rows > middle) take(middle, rows, keys, at.columns);
    }
    Finish(block, work);
  }

  // Calls fn(r, row) for each row r of the block and where it stands in q and out.
  template <class Fn>
  void ForEachRow(const Block& block, Fn&& fn) const {
    int64_t first = cu_seqlens[block.sequence] + block.first, r = 0;
    for (int64_t t = first; t < first + block.tokens; ++t) {
      for (int64_t h = 0; h < share; ++h) fn(r++, t * heads + block.group * share + h);
    }
  }

  void PackQueries(const Block& block, A* to) const {
    for (int64_t c = 0; c < dim_c; c += kPackedK, to += block.tokens * share * kPackedStride) {
      ForEachRow(block, [&](int64_t r, int64_t row) {
        LoadRow(q[row] + c, to + r * kPackedStride, std::min(kPackedK, dim_c - c));
      });
    }
  }

  // Adding 0 makes a −0 that some keys of weight 0 may or may not have turned into 0 the same.
  void Finish(const Block& block, const Workspace<A>& work) const {
    ForEachRow(block, [&](int64_t r, int64_t row) {
      A* from = work.out + r * dim_v;
      for (int64_t i = 0; i < dim_v; ++i) from[i] = from[i] / work.sum[r] + A(0);
      StoreRow(from, out[row], dim_v);
      if (lse_TH != nullptr) lse_TH[row] = work.max[r] + std::log(work.sum[r]);
    });
  }

  // Calls work(block, the block that follows or null, workspace) for every block, shared among the
  // threads.
  template <class Work>
  void ForEachBlock(Context& ctx, Work&& work) const {
    std::vector<Block> blocks = MakeBlocks(cu_seqlens, groups, share);
    int64_t rows = 0;
    for (const Block& block : blocks) rows = std::max(rows, block.tokens * share);
    ctx.pool().ParallelFor(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
      Workspace<A> workspace(ctx, rows, dim_c, dim_v);
      for (int64_t i = begin; i < end; ++i) {
        work(blocks[i], i + 1 < end ? &blocks[i + 1] : nullptr, workspace);
      }
    });
  }
};

// The key tiles of one sequence's head, out of its pages. A tile inside one page is read where it
// stands; one of several smaller pages is gathered.
template <class T>
class PagedTiles {
 public:
  PagedTiles(const PagedKv& kv, const Block& block)
      : k_(kv.k_PSGC),
        v_(kv.v_PSGV),
        by_head_(kv.layout == KvLayout::kByHead),
        page_size_(v_.dim(by_head_ ? 2 : 1)),
        heads_(v_.dim(by_head_ ? 1 : 2)),
        dim_c_(by_head_ ? k_.dim(2) : k_.dim(3)),
        dim_v_(v_.dim(3)),
        head_(block.group),
        length_(kv.length_S[block.sequence]),
        pages_(kv.pages_S[block.sequence]) {}

  KeyTile<T> At(int64_t u0, int64_t keys) {
    if (page_size_ % kKeyTile != 0) return Gathered(u0, keys);
    if (!by_head_) return {{Key(u0), KeyStep(), true}, {Value(u0), ValueStep()}, keys};
    // Whole vectors, so that they too are read in place.
    constexpr int64_t kW = Simd<Acc<T>>::kWidth;
    return {{Key(u0), page_size_}, {Value(u0), ValueStep()}, (keys + kW - 1) / kW * kW};
  }

  // Asks for what At(u0, …) gives, as far as there is any: the processor foresees it only in part.
  void Prefetch(int64_t u0) const {
    if (page_size_ % kKeyTile != 0 || u0 >= length_) return;
    int64_t keys = std::min(kKeyTile, length_ - u0);
    by_head_ ? PrefetchRows(Key(u0), page_size_, dim_c_, keys)
             : PrefetchRows(Key(u0), KeyStep(), keys, dim_c_);
    PrefetchRows(Value(u0), ValueStep(), keys, dim_v_);
  }

 private:
  // The first element of key and value u, and how far the next token's are.
  const T* Key(int64_t u) const {
    int64_t page = pages_[u / page_size_], slot = u % page_size_;
    if (by_head_) return k_.row<T>((page * heads_ + head_) * dim_c_) + slot;
    return k_.row<T>((page * page_size_ + slot) * heads_ + head_);
  }
  const T* Value(int64_t u) const {
    int64_t page = pages_[u / page_size_], slot = u % page_size_;
    if (by_head_) return v_.row<T>((page * heads_ + head_) * page_size_ + slot);
    return v_.row<T>((page * page_size_ + slot) * heads_ + head_);
  }
  int64_t KeyStep() const { return by_head_ ? 1 : heads_ * k_.row_stride(); }
  int64_t ValueStep() const { return (by_head_ ? 1 : heads_) * v_.row_stride(); }

  KeyTile<T> Gathered(int64_t u0, int64_t keys) {
    gathered_k_.resize(kKeyTile * dim_c_);
    gathered_v_.resize(kKeyTile * dim_v_);
    for (int64_t u = 0; u < keys; ++u) {
      const T* key = Key(u0 + u);
      for (int64_t c = 0; c < dim_c_; ++c) {
        gathered_k_[u * dim_c_ + c] = key[by_head_ ? c * page_size_ : c];
      }
      std::copy_n(Value(u0 + u), dim_v_, gathered_v_.data() + u * dim_v_);
    }
    return {{gathered_k_.data(), dim_c_, true}, {gathered_v_.data(), dim_v_}, keys};
  }

  static void PrefetchRows(const T* data, int64_t stride, int64_t rows, int64_t cols) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < cols; i += kLine) __builtin_prefetch(data + r * stride + i, 0, 2);
    }
  }

  const Tensor &k_, &v_;
  bool by_head_;
  int64_t page_size_, heads_, dim_c_, dim_v_, head_, length_;
  std::span<const int32_t> pages_;
  std::vector<T> gathered_k_, gathered_v_;
};

}  // namespace

template <class T>
void Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC, const Tensor& v_TGV,
               std::span<const int32_t> cu_seqlens, double scale, const AttentionResult& result) {
  using A = Acc<T>;
  ForwardPass<T> pass(q_THC, result.out_THV, result.lse_TH.data<A>(), k_TGC.dim(1), scale,
                      cu_seqlens);
  pass.ForEachBlock(ctx, [&](const Block& block, const Block*, const Workspace<A>& work) {
    int64_t start = cu_seqlens[block.sequence];
    auto tile = [&](int64_t u0, int64_t keys) {
      MatrixView<T> k_UC = HeadRows<T>(k_TGC, start + u0, block.group);
      return KeyTile<T>{
          {k_UC.data, k_UC.stride, true}, HeadRows<T>(v_TGV, start + u0, block.group), keys};
    };
    pass.Run(block, block.first, tile, work);
  });
}

template <class T>
void PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                    std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV) {
  using A = Acc<T>;
  const int64_t groups = kv.v_PSGV.dim(kv.layout == KvLayout::kByHead ? 1 : 2);
  ForwardPass<T> pass(q_THC, out_THV, nullptr, groups, scale, cu_seqlens);
  pass.ForEachBlock(ctx, [&](const Block& block, const Block* next, const Workspace<A>& work) {
    int64_t s = block.sequence, queries = cu_seqlens[s + 1] - cu_seqlens[s];
    int64_t position = kv.length_S[s] - queries + block.first;
    PagedTiles<T> tiles(kv, block);
    auto tile = [&](int64_t u0, int64_t keys) {
      if (u0 + keys < position + block.tokens) {
        tiles.Prefetch(u0 + keys);
      } else if (next != nullptr) {
        PagedTiles<T>(kv, *next).Prefetch(0);
      }
      return tiles.At(u0, keys);
    };
    pass.Run(block, position, tile, work);
  });
}

template <class T>
void WriteByHead(Context& ctx, const Tensor& k_TGC, const Tensor& v_TGV,
                 std::span<const int64_t> row_T, const Tensor& k_PGCS, const Tensor& v_PGSV) {
  Rows<T> k(k_TGC), v(v_TGV), k_pool(k_PGCS), v_pool(v_PGSV);
  int64_t tokens = k_TGC.dim(0), groups = k_TGC.dim(1), page_size = v_PGSV.dim(2);
  int64_t dim_c = k_TGC.dim(2), dim_v = v_TGV.dim(2);
  // Head by head: consecutive tokens share the cache lines of a head's keys.
  ctx.pool().ParallelFor(groups * tokens, RowGrain(dim_c + dim_v), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t g = i / tokens, t = i % tokens;
      int64_t head = row_T[t] / page_size * groups + g, slot = row_T[t] % page_size;
      const T* key = k[t * groups + g];
      T* to = k_pool[head * dim_c] + slot;
      for (int64_t c = 0; c < dim_c; ++c) to[c * page_size] = key[c];
      std::copy_n(v[t * groups + g], dim_v, v_pool[head * page_size + slot]);
    }
  });
}

#define HONE_ATTENTION(T)                                                                        \
  template void Attention<T>(Context&, const Tensor&, const Tensor&, const Tensor&,              \
                             std::span<const int32_t>, double, const AttentionResult&);          \
  template void PagedAttention<T>(Context&, const Tensor&, const PagedKv&,                       \
                                  std::span<const int32_t>, double, const Tensor&);              \
  template void WriteByHead<T>(Context&, const Tensor&, const Tensor&, std::span<const int64_t>, \
                               const Tensor&, const Tensor&);
HONE_ATTENTION(float)
HONE_ATTENTION(double)
HONE_ATTENTION(BF16)
#undef HONE_ATTENTION

}  // namespace hone::kernels::cpu
