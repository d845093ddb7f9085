// Backward, after Dao et al. (arXiv 2205.14135, algorithm 4). With P = softmax(scale · q kᵀ),
// rebuilt tile by tile from the saved log-sum-exp:
//   dv = Pᵀ dout;  dP = dout vᵀ;  dS = scale · P ∘ (dP − Σ(dout ∘ out));  dq = dS k;  dk = dSᵀ q
// One worker owns a key/value head of a sequence, with all the query heads that read it, and goes
// through key tiles, heads and query tiles in one order; so nothing depends on the thread count.
#include <algorithm>
#include <vector>

#include "kernels/attention/attention_cpu.h"
#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

constexpr int64_t kQueryTile = kHalfTile;  // the earlier queries see few of the keys

// One head's rows of a [tokens, heads, dim] tensor, from the first token of a sequence on.
template <class A>
struct HeadRows {
  A* data;
  int64_t stride, dim;

  HeadRows(const Tensor& t, int64_t token, int64_t head)
      : data(t.row<A>(token * t.dim(1) + head)), stride(t.dim(1) * t.row_stride()), dim(t.dim(2)) {}
  A* operator[](int64_t token) const { return data + token * stride; }
  MatrixView<A> From(int64_t token, bool transposed = false) const {
    return {(*this)[token], stride, transposed};
  }
};

// A key tile as right operands, packed once for all the query tiles it meets.
template <class A>
struct PackedKeys {
  std::vector<A> memory;
  RightOperand<A> k_columns, v_columns, k_rows;

  void Pack(const HeadRows<A>& k, const HeadRows<A>& v, int64_t u0, int64_t keys) {
    int64_t size_k = PackedRightSize<A>(k.dim, kKeyTile),
            size_v = PackedRightSize<A>(v.dim, kKeyTile);
    memory.resize(size_k + size_v + PackedRightSize<A>(kKeyTile, k.dim));
    k_columns = PackRight(kQueryTile, k.dim, keys, k.From(u0, true), memory.data());
    v_columns = PackRight(kQueryTile, v.dim, keys, v.From(u0, true), memory.data() + size_k);
    k_rows = PackRight(kQueryTile, keys, k.dim, k.From(u0), memory.data() + size_k + size_v);
  }
};

// One worker's memory: a key tile, and scores of a tile pair as left operands.
template <class A>
struct TileBuffers {
  PackedKeys<A> packed;
  std::vector<A> left, weight, slope;

  TileBuffers(int64_t dim_c, int64_t dim_v)
      : left(PackedLeftSize(kQueryTile, std::max(dim_c, dim_v))),
        weight(PackedLeftSize(kQueryTile, kKeyTile)),
        slope(PackedLeftSize(kQueryTile, kKeyTile)) {}
};

// A key/value head of one sequence with the query heads that read it.
template <class A>
struct SequenceBackward {
  TileBuffers<A>& buffers;
  HeadRows<A> k, v, dk, dv;
  int64_t length;
  A scale;

  struct QueryHead {
    HeadRows<A> q, out, dout, dq;
    const A* lse;
    int64_t lse_stride;
    std::vector<A> delta;  // Σ(dout ∘ out)
  };

  void Run(std::vector<QueryHead>& heads) {
    for (QueryHead& head : heads) {
      head.delta.resize(length);
      for (int64_t t = 0; t < length; ++t) {
        head.delta[t] = Dot(head.dout[t], head.out[t], v.dim);
      }
    }
    for (int64_t u0 = 0; u0 < length; u0 += kKeyTile) {
      const int64_t keys = std::min(kKeyTile, length - u0);
      buffers.packed.Pack(k, v, u0, keys);
      for (int64_t u = u0; u < u0 + keys; ++u) {
        std::fill_n(dk[u], k.dim, A(0));
        std::fill_n(dv[u], v.dim, A(0));
      }
      for (const QueryHead& head : heads) {
        for (int64_t t0 = u0; t0 < length; t0 += kQueryTile) TilePair(head, t0, u0, keys);
      }
    }
  }

  void Scores(int64_t rows, int64_t keys, const HeadRows<A>& queries, int64_t t0,
              const RightOperand<A>& columns, A* to) {
    PackLeft(rows, queries.dim, queries.From(t0), buffers.left.data());
    GemmPacked<A>(rows, keys, queries.dim, {buffers.left.data(), rows * kPackedStride}, columns, to,
                  kPackedStride, false);
  }

  // Queries [t0, …) against keys [u0, u0 + keys), of which they see the first `seen`.
  void TilePair(const QueryHead& head, int64_t t0, int64_t u0, int64_t keys) {
    const int64_t rows = std::min(kQueryTile, length - t0), seen = std::min(keys, t0 + rows - u0);
    A *weight = buffers.weight.data(), *slope = buffers.slope.data();
    const A scale = this->scale;
    Scores(rows, seen, head.q, t0, buffers.packed.k_columns, weight);
    Scores(rows, seen, head.dout, t0, buffers.packed.v_columns, slope);
    for (int64_t r = 0; r < rows; ++r) {
      A *p = weight + r * kPackedStride, *ds = slope + r * kPackedStride;
      A lse = head.lse[(t0 + r) * head.lse_stride], shift = head.delta[t0 + r];
      ForKeys(InHalves(seen), [=](int64_t u) { p[u] = Exp(p[u] * scale - lse); });
      ForKeys(InHalves(seen), [=](int64_t u) { ds[u] = p[u] * (ds[u] - shift) * scale; });
      const int64_t visible = std::min(seen, t0 + r + 1 - u0);
      std::fill(p + visible, p + seen, A(0));
      std::fill(ds + visible, ds + seen, A(0));
    }
    GemmSerial<A>(seen, v.dim, rows, {weight, kPackedStride, true}, head.dout.From(t0), dv[u0],
                  dv.stride, true);
    GemmSerial<A>(seen, k.dim, rows, {slope, kPackedStride, true}, head.q.From(t0), dk[u0],
                  dk.stride, true);
    GemmPacked<A>(rows, k.dim, seen, {slope, 0}, buffers.packed.k_rows, head.dq[t0], head.dq.stride,
                  u0 > 0);
  }
};

}  // namespace

template <class A>
void AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                       const Tensor& k_TGC, const Tensor& v_TGV, const AttentionResult& saved,
                       std::span<const int32_t> cu_seqlens, double scale,
                       const AttentionGradients& gradients) {
  int64_t heads = q_THC.dim(1), groups = k_TGC.dim(1), share = heads / groups;
  int64_t sequences = static_cast<int64_t>(cu_seqlens.size()) - 1;
  auto work = [&](TileBuffers<A>& buffers, int64_t start, int64_t length, int64_t g) {
    SequenceBackward<A> backward{buffers,
                                 {k_TGC, start, g},
                                 {v_TGV, start, g},
                                 {gradients.dk_TGC, start, g},
                                 {gradients.dv_TGV, start, g},
                                 length,
                                 static_cast<A>(scale)};
    std::vector<typename SequenceBackward<A>::QueryHead> queries;
    for (int64_t h = g * share; h < (g + 1) * share; ++h) {
      queries.push_back({{q_THC, start, h},
                         {saved.out_THV, start, h},
                         {dout_THV, start, h},
                         {gradients.dq_THC, start, h},
                         saved.lse_TH.data<A>() + start * heads + h,
                         heads,
                         {}});
    }
    backward.Run(queries);
  };
  ctx.pool().ParallelFor(sequences * groups, 1, [&](int64_t begin, int64_t end) {
    TileBuffers<A> buffers(q_THC.dim(2), v_TGV.dim(2));
    for (int64_t i = begin; i < end; ++i) {
      int64_t start = cu_seqlens[i / groups];
      work(buffers, start, cu_seqlens[i / groups + 1] - start, i % groups);
    }
  });
}

#define HONE_ATTENTION_BACKWARD(A)                                                          \
  template void AttentionBackward<A>(Context&, const Tensor&, const Tensor&, const Tensor&, \
                                     const Tensor&, const AttentionResult&,                 \
                                     std::span<const int32_t>, double, const AttentionGradients&);
HONE_ATTENTION_BACKWARD(float)
HONE_ATTENTION_BACKWARD(double)
#undef HONE_ATTENTION_BACKWARD

}  // namespace hone::kernels::cpu
