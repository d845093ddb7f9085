#include "kernels/fp8/fp8.h"

#include "kernels/cuda/cublaslt_fp8.h"
#include "kernels/dispatch.h"
#include "kernels/fp8/e4m3.h"
#include "kernels/fp8/fp8_cpu.h"
#include "kernels/fp8/fp8_cuda.h"
#include "kernels/switch_device.h"
#include "runtime/packed_weights.h"

namespace hone::kernels {
namespace {

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int64_t Tiles(int64_t n) { return (n + kFp8Tile - 1) / kFp8Tile; }

// Calls fn(T{}) for f32 and bf16.
template <class Fn>
void SwitchInput(std::string_view op, DType dtype, Fn&& fn) {
  if (dtype == DType::kF32) return fn(float{});
  CheckShape(dtype == DType::kBF16, "[{}] dtype {} is neither f32 nor bf16", op,
             runtime::DTypeName(dtype));
  fn(BF16{});
}

void CheckInput(std::string_view op, const Context& ctx, const Tensor& x) {
  CheckTensor(op, "x_RC", ctx, x, x.dtype());
  CheckShape(x.ndim() == 2, "[{}] shape {}, expected two dims", op,
             runtime::ShapeToString(x.shape()));
}

Fp8Matrix Empty(Context& ctx, int64_t rows, int64_t cols, bool blocks,
                MemoryCategory category = MemoryCategory::kActivations) {
  int64_t high = RoundUp(rows, kFp8RowMultiple), wide = RoundUp(cols, kFp8RowMultiple);
  Shape scale = blocks ? Shape{Tiles(rows), RoundUp(Tiles(cols), 4)} : Shape{Tiles(cols), high};
  return {ctx.Empty({high, wide}, DType::kF8E4M3, category),
          ctx.Empty(scale, DType::kF32, category), rows, cols, blocks};
}

Fp8Matrix QuantizeTiles(Context& ctx, std::string_view op, const Tensor& x, bool transposed) {
  CheckInput(op, ctx, x);
  Fp8Matrix out =
      transposed ? Empty(ctx, x.dim(1), x.dim(0), false) : Empty(ctx, x.dim(0), x.dim(1), false);
  SwitchInput(op, x.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::QuantizeTiles<T>(ctx, x, transposed, out); },
        [&] { cuda::QuantizeTiles<T>(ctx, x, transposed, out); });
  });
  return out;
}

Fp8Matrix QuantizeBlocks(Context& ctx, std::string_view op, const Tensor& w, bool transposed,
                         MemoryCategory category = MemoryCategory::kActivations) {
  CheckInput(op, ctx, w);
  Fp8Matrix out = transposed ? Empty(ctx, w.dim(1), w.dim(0), true, category)
                             : Empty(ctx, w.dim(0), w.dim(1), true, category);
  SwitchInput(op, w.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::QuantizeBlocks<T>(ctx, w, transposed, out); },
        [&] { cuda::QuantizeBlocks<T>(ctx, w, transposed, out); });
  });
  return out;
}

// A weight for a product: as it is kept, or made for this one.
Fp8Matrix Weight(Context& ctx, const Tensor& w_NK, bool transposed) {
  constexpr std::string_view kOp = "quantize_weight";
  if (ctx.packed_weights != nullptr) {
    const auto kept = ctx.packed_weights->GetFp8(w_NK, transposed, [&] {
      Fp8Matrix made = QuantizeBlocks(ctx, kOp, w_NK, transposed, MemoryCategory::kWeights);
      return runtime::PackedWeights::Kept{made.values, made.scale};
    });
    const int64_t rows = w_NK.dim(transposed ? 1 : 0), cols = w_NK.dim(transposed ? 0 : 1);
    if (kept.values.defined()) return {kept.values, kept.scale, rows, cols, true};
  }
  return QuantizeBlocks(ctx, kOp, w_NK, transposed);
}

// The rows of one expert.
struct Part {
  int64_t begin, end;
  Tensor Of(const Tensor& t) const { return t.Slice(begin, end); }
};

// fn(matrix of expert e, its rows) for every expert that has rows.
template <class Fn>
void ForEachExpert(std::string_view op, const Tensor& w_ENK, const std::vector<int64_t>& offset_E,
                   int64_t rows, Fn&& fn) {
  CheckShape(w_ENK.ndim() == 3 && static_cast<int64_t>(offset_E.size()) == w_ENK.dim(0) + 1 &&
                 offset_E.front() == 0 && offset_E.back() == rows,
             "[{}] {} offsets for weights {} and {} rows", op, offset_E.size(),
             runtime::ShapeToString(w_ENK.shape()), rows);
  for (int64_t e = 0; e < w_ENK.dim(0); ++e) {
    if (offset_E[e] == offset_E[e + 1]) continue;
    fn(w_ENK.Slice(e, e + 1).Reshape({w_ENK.dim(1), w_ENK.dim(2)}),
       Part{offset_E[e], offset_E[e + 1]});
  }
}

}  // namespace

Fp8Matrix QuantizeRows(Context& ctx, const Tensor& x_RC) {
  return QuantizeTiles(ctx, "quantize_rows", x_RC, false);
}
Fp8Matrix QuantizeColumns(Context& ctx, const Tensor& x_RC) {
  return QuantizeTiles(ctx, "quantize_columns", x_RC, true);
}
Fp8Matrix QuantizeBlocks(Context& ctx, const Tensor& w_RC) {
  return QuantizeBlocks(ctx, "quantize_blocks", w_RC, false);
}
Fp8Matrix QuantizeBlocksTransposed(Context& ctx, const Tensor& w_RC) {
  return QuantizeBlocks(ctx, "quantize_blocks_transposed", w_RC, true);
}

int64_t Fp8BlocksBytes(int64_t rows, int64_t cols) {
  const int64_t scales = Tiles(rows) * RoundUp(Tiles(cols), 4);
  return RoundUp(rows, kFp8RowMultiple) * RoundUp(cols, kFp8RowMultiple) +
         scales * runtime::DTypeSize(DType::kF32);
}

Tensor Dequantize(Context& ctx, const Fp8Matrix& m) {
  Context host;
  Tensor values = host.Empty(m.values.shape(), DType::kF8E4M3);
  Tensor scale = host.Empty(m.scale.shape(), DType::kF32);
  CopyTo(m.values, values, &ctx.stream());
  CopyTo(m.scale, scale, &ctx.stream());
  const auto* bytes = static_cast<const uint8_t*>(values.raw());
  const float* scales = scale.data<float>();
  Tensor out = host.Empty({m.rows, m.cols}, DType::kF32);
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < m.cols; ++c) {
      int64_t tile =
          m.blocks ? r / kFp8Tile * scale.dim(1) + c / kFp8Tile : c / kFp8Tile * scale.dim(1) + r;
      out.row<float>(r)[c] = FromE4M3(bytes[r * values.dim(1) + c]) * scales[tile];
    }
  }
  return out;
}

void Fp8Multiply(Context& ctx, const Fp8Matrix& a_MK, const Fp8Matrix& b_NK, const Tensor& out_MN,
                 bool accumulate) {
  constexpr std::string_view kOp = "fp8_multiply";
  CheckShape(a_MK.cols == b_NK.cols && !(a_MK.blocks && b_NK.blocks),
             "[{}] [{}, {}] in {} by [{}, {}] in {}", kOp, a_MK.rows, a_MK.cols,
             a_MK.blocks ? "blocks" : "tiles", b_NK.rows, b_NK.cols,
             b_NK.blocks ? "blocks" : "tiles");
  CheckTensor(kOp, "out_MN", ctx, out_MN, accumulate ? DType::kF32 : out_MN.dtype(),
              {a_MK.rows, b_NK.rows});
  SwitchDevice(
      ctx,
      [&] {
        SwitchInput(kOp, out_MN.dtype(), [&](auto t) {
          cpu::Fp8Multiply<decltype(t)>(ctx, a_MK, b_NK, out_MN, accumulate);
        });
      },
      [&] { cuda::MultiplyFp8(ctx, a_MK, b_NK, out_MN, accumulate); });
}

Tensor Fp8Linear(Context& ctx, const Tensor& x_TK, const Tensor& w_NK) {
  Tensor y_TN = ctx.Empty({x_TK.dim(0), w_NK.dim(0)}, x_TK.dtype());
  Fp8Multiply(ctx, QuantizeRows(ctx, x_TK), Weight(ctx, w_NK, false), y_TN);
  return y_TN;
}

Tensor Fp8LinearInputGradient(Context& ctx, const Tensor& dy_TN, const Tensor& w_NK) {
  Tensor dx_TK = ctx.Empty({dy_TN.dim(0), w_NK.dim(1)}, dy_TN.dtype());
  Fp8Multiply(ctx, QuantizeRows(ctx, dy_TN), Weight(ctx, w_NK, true), dx_TK);
  return dx_TK;
}

void Fp8LinearWeightGradient(Context& ctx, const Tensor& dy_TN, const Tensor& x_TK,
                             const Tensor& dw_NK) {
  Fp8Multiply(ctx, QuantizeColumns(ctx, dy_TN), QuantizeColumns(ctx, x_TK), dw_NK, true);
}

Tensor Fp8GroupedLinear(Context& ctx, const Tensor& x_RK, const Tensor& w_ENK,
                        const std::vector<int64_t>& offset_E) {
  Tensor y_RN = ctx.Empty({x_RK.dim(0), w_ENK.dim(1)}, x_RK.dtype());
  ForEachExpert(
      "fp8_grouped_linear", w_ENK, offset_E, x_RK.dim(0), [&](const Tensor& w_NK, Part part) {
        Fp8Multiply(ctx, QuantizeRows(ctx, part.Of(x_RK)), Weight(ctx, w_NK, false), part.Of(y_RN));
      });
  return y_RN;
}

Tensor Fp8GroupedLinearInputGradient(Context& ctx, const Tensor& dy_RN, const Tensor& w_ENK,
                                     const std::vector<int64_t>& offset_E) {
  Tensor dx_RK = ctx.Empty({dy_RN.dim(0), w_ENK.dim(2)}, dy_RN.dtype());
  ForEachExpert("fp8_grouped_linear_input_gradient", w_ENK, offset_E, dy_RN.dim(0),
                [&](const Tensor& w_NK, Part part) {
                  Fp8Multiply(ctx, QuantizeRows(ctx, part.Of(dy_RN)), Weight(ctx, w_NK, true),
                              part.Of(dx_RK));
                });
  return dx_RK;
}

void Fp8GroupedLinearWeightGradient(Context& ctx, const Tensor& dy_RN, const Tensor& x_RK,
                                    const Tensor& dw_ENK, const std::vector<int64_t>& offset_E) {
  ForEachExpert("fp8_grouped_linear_weight_gradient", dw_ENK, offset_E, dy_RN.dim(0),
                [&](const Tensor& dw_NK, Part part) {
                  Fp8LinearWeightGradient(ctx, part.Of(dy_RN), part.Of(x_RK), dw_NK);
                });
}

}  // namespace hone::kernels
