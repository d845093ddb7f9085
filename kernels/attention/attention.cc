#include "kernels/attention/attention.h"

#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

void CheckSequences(std::string_view op, std::span<const int32_t> cu_seqlens, int64_t tokens) {
  CheckShape(!cu_seqlens.empty() && cu_seqlens.front() == 0 && cu_seqlens.back() == tokens,
             "[{}] {} offsets do not go from 0 to the {} tokens", op, cu_seqlens.size(), tokens);
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    CheckShape(cu_seqlens[s] <= cu_seqlens[s + 1], "[{}] offsets fall from {} to {} at sequence {}",
               op, cu_seqlens[s], cu_seqlens[s + 1], s);
  }
}

void CheckHeads(std::string_view op, int64_t heads, int64_t groups) {
  CheckShape(groups > 0 && heads % groups == 0,
             "[{}] {} query heads are no multiple of {} key/value heads", op, heads, groups);
}

void CheckInputs(std::string_view op, const Context& ctx, const Tensor& q_THC, const Tensor& k_TGC,
                 const Tensor& v_TGV, std::span<const int32_t> cu_seqlens) {
  CheckTensor(op, "q_THC", ctx, q_THC, q_THC.dtype());
  CheckShape(q_THC.ndim() == 3 && k_TGC.ndim() == 3 && v_TGV.ndim() == 3,
             "[{}] shapes {}, {}, {}: expected three dims each", op,
             runtime::ShapeToString(q_THC.shape()), runtime::ShapeToString(k_TGC.shape()),
             runtime::ShapeToString(v_TGV.shape()));
  int64_t tokens = q_THC.dim(0), groups = k_TGC.dim(1);
  CheckTensor(op, "k_TGC", ctx, k_TGC, q_THC.dtype(), {tokens, groups, q_THC.dim(2)});
  CheckTensor(op, "v_TGV", ctx, v_TGV, q_THC.dtype(), {tokens, groups, v_TGV.dim(2)});
  CheckHeads(op, q_THC.dim(1), groups);
  CheckSequences(op, cu_seqlens, tokens);
}

void CheckPages(std::string_view op, const Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                std::span<const int32_t> cu_seqlens) {
  CheckTensor(op, "q_THC", ctx, q_THC, q_THC.dtype());
  CheckShape(q_THC.ndim() == 3 && kv.k_PSGC.ndim() == 4 && kv.v_PSGV.ndim() == 4,
             "[{}] shapes {}, {}, {}: expected three dims of q, four of the pages", op,
             runtime::ShapeToString(q_THC.shape()), runtime::ShapeToString(kv.k_PSGC.shape()),
             runtime::ShapeToString(kv.v_PSGV.shape()));
  const bool by_head = kv.layout == KvLayout::kByHead;
  CheckShape(!by_head || ctx.device().is_cpu(), "[{}] pages by head are for the cpu", op);
  int64_t pages = kv.v_PSGV.dim(0), dim_c = q_THC.dim(2);
  int64_t page_size = kv.v_PSGV.dim(by_head ? 2 : 1), groups = kv.v_PSGV.dim(by_head ? 1 : 2);
  Shape k_shape =
      by_head ? Shape{pages, groups, dim_c, page_size} : Shape{pages, page_size, groups, dim_c};
  CheckTensor(op, "k_PSGC", ctx, kv.k_PSGC, q_THC.dtype(), k_shape);
  CheckTensor(op, "v_PSGV", ctx, kv.v_PSGV, q_THC.dtype(), kv.v_PSGV.shape());
  CheckShape(!by_head || (kv.k_PSGC.contiguous() && kv.v_PSGV.contiguous()),
             "[{}] pages by head are not contiguous", op);
  CheckHeads(op, q_THC.dim(1), groups);
  CheckSequences(op, cu_seqlens, q_THC.dim(0));
  CheckShape(page_size > 0 && (page_size % kKeyTile == 0 || kKeyTile % page_size == 0),
             "[{}] a page of {} tokens is neither a multiple nor a divisor of the key tile {}", op,
             page_size, kKeyTile);
  size_t sequences = cu_seqlens.size() - 1;
  CheckShape(kv.length_S.size() == sequences && kv.pages_S.size() == sequences,
             "[{}] {} lengths and {} page lists for {} sequences", op, kv.length_S.size(),
             kv.pages_S.size(), sequences);
  for (size_t s = 0; s < sequences; ++s) {
    int32_t queries = cu_seqlens[s + 1] - cu_seqlens[s], length = kv.length_S[s];
    int64_t room = static_cast<int64_t>(kv.pages_S[s].size()) * page_size;
    CheckShape(queries <= length && length <= room,
               "[{}] sequence {} has {} queries, {} tokens and room for {}; expected them to rise",
               op, s, queries, length, room);
    for (int32_t page : kv.pages_S[s]) {
      CheckShape(page >= 0 && page < pages, "[{}] sequence {} names page {} of {}", op, s, page,
                 pages);
    }
  }
}

// Whether cuDNN may be asked, which has the last word on what it serves.
bool Fast(const Context& ctx) { return ctx.numerics != runtime::Numerics::kBatchInvariant; }

// In the accumulation dtype throughout, rounded at the end.
AttentionGradients BackwardOnCpu(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                                 const Tensor& k_TGC, const Tensor& v_TGV,
                                 const AttentionResult& saved, std::span<const int32_t> cu_seqlens,
                                 double scale) {
  DType dtype = q_THC.dtype(), acc = AccDType(dtype);
  AttentionGradients sum{ctx.Empty(q_THC.shape(), acc), ctx.Empty(k_TGC.shape(), acc),
                         ctx.Empty(v_TGV.shape(), acc)};
  AttentionResult wide{Cast(ctx, saved.out_THV, acc), saved.lse_TH};
  Tensor q = Cast(ctx, q_THC, acc), k = Cast(ctx, k_TGC, acc), v = Cast(ctx, v_TGV, acc);
  Tensor dout = Cast(ctx, dout_THV, acc);
  auto run = acc == DType::kF64 ? cpu::AttentionBackward<double> : cpu::AttentionBackward<float>;
  run(ctx, dout, q, k, v, wide, cu_seqlens, scale, sum);
  return {Cast(ctx, sum.dq_THC, dtype), Cast(ctx, sum.dk_TGC, dtype), Cast(ctx, sum.dv_TGV, dtype)};
}

}  // namespace

AttentionResult Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC,
                          const Tensor& v_TGV, std::span<const int32_t> cu_seqlens, double scale) {
  CheckInputs("attention", ctx, q_THC, k_TGC, v_TGV, cu_seqlens);
  int64_t tokens = q_THC.dim(0), heads = q_THC.dim(1);
  AttentionResult result{ctx.Empty({tokens, heads, v_TGV.dim(2)}, q_THC.dtype()),
                         ctx.Empty({tokens, heads}, AccDType(q_THC.dtype()))};
  SwitchFloat("attention", q_THC.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::Attention<T>(ctx, q_THC, k_TGC, v_TGV, cu_seqlens, scale, result); },
        [&] {
          if (Fast(ctx) && cudnn::Attention(ctx, q_THC, k_TGC, v_TGV, cu_seqlens, scale, result)) {
            return;
          }
          cuda::Attention<T>(ctx, q_THC, k_TGC, v_TGV, cu_seqlens, scale, result);
        });
  });
  return result;
}

AttentionGradients AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                                     const Tensor& k_TGC, const Tensor& v_TGV,
                                     const AttentionResult& saved,
                                     std::span<const int32_t> cu_seqlens, double scale) {
  constexpr std::string_view kOp = "attention_backward";
  CheckInputs(kOp, ctx, q_THC, k_TGC, v_TGV, cu_seqlens);
  int64_t tokens = q_THC.dim(0), heads = q_THC.dim(1);
  DType dtype = q_THC.dtype(), acc = AccDType(dtype);
  Shape out_shape = {tokens, heads, v_TGV.dim(2)};
  CheckTensor(kOp, "dout_THV", ctx, dout_THV, dtype, out_shape);
  CheckTensor(kOp, "out_THV", ctx, saved.out_THV, dtype, out_shape);
  CheckTensor(kOp, "lse_TH", ctx, saved.lse_TH, acc, {tokens, heads});
  AttentionGradients gradients;
  auto on_cuda = [&](auto t) {
    gradients = {ctx.EmptyLike(q_THC), ctx.EmptyLike(k_TGC), ctx.EmptyLike(v_TGV)};
    if (Fast(ctx) && cudnn::AttentionBackward(ctx, dout_THV, q_THC, k_TGC, v_TGV, saved, cu_seqlens,
                                              scale, gradients)) {
      return;
    }
    cuda::AttentionBackward<decltype(t)>(ctx, dout_THV, q_THC, k_TGC, v_TGV, saved, cu_seqlens,
                                         scale, gradients);
  };
  SwitchDevice(
      ctx,
      [&] {
        gradients = BackwardOnCpu(ctx, dout_THV, q_THC, k_TGC, v_TGV, saved, cu_seqlens, scale);
      },
      [&] { SwitchFloat(kOp, dtype, on_cuda); });
  return gradients;
}

void WriteByHead(Context& ctx, const Tensor& k_TGC, const Tensor& v_TGV,
                 std::span<const int64_t> row_T, const Tensor& k_PGCS, const Tensor& v_PGSV) {
  constexpr std::string_view kOp = "write_by_head";
  RequireCpu(kOp, ctx);
  CheckShape(k_PGCS.ndim() == 4 && v_PGSV.ndim() == 4 && k_PGCS.contiguous() && v_PGSV.contiguous(),
             "[{}] pools of shapes {}, {}: expected four contiguous dims", kOp,
             runtime::ShapeToString(k_PGCS.shape()), runtime::ShapeToString(v_PGSV.shape()));
  int64_t tokens = static_cast<int64_t>(row_T.size()), pages = v_PGSV.dim(0);
  int64_t groups = v_PGSV.dim(1), page_size = v_PGSV.dim(2), dim_c = k_PGCS.dim(2);
  CheckTensor(kOp, "k_TGC", ctx, k_TGC, k_PGCS.dtype(), {tokens, groups, dim_c});
  CheckTensor(kOp, "v_TGV", ctx, v_TGV, k_PGCS.dtype(), {tokens, groups, v_PGSV.dim(3)});
  CheckTensor(kOp, "k_PGCS", ctx, k_PGCS, k_PGCS.dtype(), {pages, groups, dim_c, page_size});
  CheckTensor(kOp, "v_PGSV", ctx, v_PGSV, k_PGCS.dtype());
  for (int64_t row : row_T) {
    CheckShape(row >= 0 && row < pages * page_size, "[{}] row {} of {} pages of {}", kOp, row,
               pages, page_size);
  }
  SwitchFloat(kOp, k_PGCS.dtype(), [&](auto t) {
    cpu::WriteByHead<decltype(t)>(ctx, k_TGC, v_TGV, row_T, k_PGCS, v_PGSV);
  });
}

Tensor PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                      std::span<const int32_t> cu_seqlens, double scale) {
  CheckPages("paged_attention", ctx, q_THC, kv, cu_seqlens);
  Tensor out_THV = ctx.Empty({q_THC.dim(0), q_THC.dim(1), kv.v_PSGV.dim(3)}, q_THC.dtype());
  SwitchFloat("paged_attention", q_THC.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::PagedAttention<T>(ctx, q_THC, kv, cu_seqlens, scale, out_THV); },
        [&] {
          if (Fast(ctx) && cudnn::PagedAttention(ctx, q_THC, kv, cu_seqlens, scale, out_THV)) {
            return;
          }
          cuda::PagedAttention<T>(ctx, q_THC, kv, cu_seqlens, scale, out_THV);
        });
  });
  return out_THV;
}

}  // namespace hone::kernels
