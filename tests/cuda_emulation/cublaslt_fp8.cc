// Stands in for kernels/cuda/cublaslt_fp8_cuda.cc: reads values and scales where cuBLASLt is
// documented to read them.
#include "kernels/cuda/cublaslt_fp8.h"

#include <cuda_runtime.h>

#include "kernels/fp8/e4m3.h"
#include "runtime/cuda_check.h"
#include "runtime/step_recorder.h"

namespace hone::kernels::cuda {
namespace {

struct Operand {
  const uint8_t* values;
  const float* scale;
  int64_t wide, scale_stride;
  bool blocks;

  explicit Operand(const Fp8Matrix& m)
      : values(static_cast<const uint8_t*>(m.values.raw())),
        scale(m.scale.data<float>()),
        wide(m.values.dim(1)),
        scale_stride(m.scale.dim(1)),
        blocks(m.blocks) {}
  double operator()(int64_t r, int64_t k) const {
    int64_t tile =
        blocks ? r / kFp8Tile * scale_stride + k / kFp8Tile : k / kFp8Tile * scale_stride + r;
    return static_cast<double>(FromE4M3(values[r * wide + k])) * scale[tile];
  }
};

template <class T>
bool Multiply(const Operand& a, const Operand& b, T* out, int64_t stride, int64_t rows,
              int64_t cols, int64_t inner, bool accumulate) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < cols; ++n) {
      double sum = accumulate ? static_cast<double>(static_cast<float>(out[m * stride + n])) : 0.0;
      for (int64_t k = 0; k < inner; ++k) sum += a(m, k) * b(n, k);
      out[m * stride + n] = static_cast<T>(static_cast<float>(sum));
    }
  }
  return true;
}

}  // namespace

void MultiplyFp8(Context& ctx, const Fp8Matrix& a, const Fp8Matrix& b, const Tensor& out,
                 bool accumulate) {
  if (auto* recorder = runtime::StepRecorder::Of(ctx.stream());
      recorder &&
      !recorder->Issue(runtime::Piece::kFp8Product, Fp8Product(a, b, out, accumulate))) {
    return;
  }
  auto work = [=, first = Operand(a), second = Operand(b)] {
    if (out.dtype() == DType::kF32) {
      return Multiply(first, second, out.data<float>(), out.row_stride(), a.rows, b.rows, a.cols,
                      accumulate);
    }
    return Multiply(first, second, out.data<BF16>(), out.row_stride(), a.rows, b.rows, a.cols,
                    accumulate);
  };
  runtime::CheckCuda(
      cuda_emulation::Enqueue(static_cast<cudaStream_t>(ctx.stream().handle()), work),
      "fp8_multiply", "cublasLtMatmul", ctx.device().index);
}

}  // namespace hone::kernels::cuda
