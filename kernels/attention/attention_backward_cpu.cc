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

constexpr int64_t kQueryTile = 64;

template <class A>
struct BackwardOf {
  const Tensor &dout, &q, &k, &v;
  const AttentionResult& saved;
  const AttentionGradients& gradients;
  A scale;
  int64_t share;  // query heads a key/value head

  // Rows of one head of a [T, heads, dim] tensor from `token` on.
  static A* Head(const Tensor& t, int64_t token, int64_t head) {
    return t.row<A>(token * t.dim(1) + head);
  }
  static int64_t Stride(const Tensor& t) { return t.dim(1) * t.row_stride(); }
  static MatrixView<A> View(const Tensor& t, int64_t token, int64_t head, bool transposed = false) {
    return {Head(t, token, head), Stride(t), transposed};
  }

  void Sequence(int64_t start, int64_t end, int64_t g) const {
    int64_t length = end - start;
    std::vector<A> delta(share * length);
    for (int64_t h = 0; h < share; ++h) {
      for (int64_t t = 0; t < length; ++t) {
        delta[h * length + t] = Dot(Head(dout, start + t, g * share + h),
                                    Head(saved.out_THV, start + t, g * share + h), dout.dim(2));
      }
    }
    for (int64_t u0 = 0; u0 < length; u0 += kKeyTile) {
      for (int64_t h = 0; h < share; ++h) {
        for (int64_t t0 = u0 - u0 % kQueryTile; t0 < length; t0 += kQueryTile) {
          TilePair(start, length, t0, u0, g * share + h, g, delta.data() + h * length);
        }
      }
    }
  }

  // Queries [t0, …) against keys [u0, …) of a sequence that begins at token `start`.
  void TilePair(int64_t start, int64_t length, int64_t t0, int64_t u0, int64_t h, int64_t g,
                const A* delta) const {
    int64_t rows = std::min(kQueryTile, length - t0), keys = std::min(kKeyTile, length - u0);
    int64_t t = start + t0, u = start + u0, dim_c = q.dim(2), dim_v = v.dim(2);
    A weight[kQueryTile * kKeyTile], slope[kQueryTile * kKeyTile];
    GemmSerial<A>(rows, keys, dim_c, View(q, t, h), View(k, u, g, true), weight, kKeyTile, false);
    GemmSerial<A>(rows, keys, dim_v, View(dout, t, h), View(v, u, g, true), slope, kKeyTile, false);
    for (int64_t r = 0; r < rows; ++r) {
      A *p = weight + r * kKeyTile, *ds = slope + r * kKeyTile;
      A lse = *(saved.lse_TH.template data<A>() + (t + r) * q.dim(1) + h);
      A shift = delta[t0 + r];
      int64_t visible = std::clamp<int64_t>(t0 + r + 1 - u0, 0, keys);
      for (int64_t i = 0; i < visible; ++i) p[i] = Exp(p[i] * scale - lse);
      for (int64_t i = 0; i < visible; ++i) ds[i] = p[i] * (ds[i] - shift) * scale;
      std::fill(p + visible, p + keys, A(0));
      std::fill(ds + visible, ds + keys, A(0));
    }
    const Tensor &dq = gradients.dq_THC, &dk = gradients.dk_TGC, &dv = gradients.dv_TGV;
    GemmSerial<A>(keys, dim_v, rows, {weight, kKeyTile, true}, View(dout, t, h), Head(dv, u, g),
                  Stride(dv), true);
    GemmSerial<A>(keys, dim_c, rows, {slope, kKeyTile, true}, View(q, t, h), Head(dk, u, g),
                  Stride(dk), true);
    GemmSerial<A>(rows, dim_c, keys, {slope, kKeyTile}, View(k, u, g), Head(dq, t, h), Stride(dq),
                  true);
  }
};

}  // namespace

template <class A>
void AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                       const Tensor& k_TGC, const Tensor& v_TGV, const AttentionResult& saved,
                       std::span<const int32_t> cu_seqlens, double scale,
                       const AttentionGradients& gradients) {
  int64_t groups = k_TGC.dim(1), sequences = static_cast<int64_t>(cu_seqlens.size()) - 1;
  BackwardOf<A> backward{dout_THV,
                         q_THC,
                         k_TGC,
                         v_TGV,
                         saved,
                         gradients,
                         static_cast<A>(scale),
                         q_THC.dim(1) / groups};
  ctx.pool().ParallelFor(sequences * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      backward.Sequence(cu_seqlens[i / groups], cu_seqlens[i / groups + 1], i % groups);
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
