// Stands in for kernels/cuda/cublaslt_cuda.cc: loops, one sum after the other.
#include "kernels/cuda/cublaslt.h"

#include <cuda_runtime.h>

#include "runtime/cuda_check.h"
#include "runtime/step_recorder.h"

namespace hone::kernels::cuda {
namespace {

template <class T>
Acc<T> At(const Product::Operand& m, int64_t r, int64_t c) {
  auto* data = static_cast<const T*>(m.data);
  return static_cast<Acc<T>>(m.transposed ? data[c * m.stride + r] : data[r * m.stride + c]);
}

template <class T, class Out>
bool Multiply(const Product& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    Out* row = static_cast<Out*>(p.c) + r * p.c_stride;
    for (int64_t c = 0; c < p.cols; ++c) {
      Acc<T> sum = 0;
      for (int64_t i = 0; i < p.inner; ++i) sum += At<T>(p.a, r, i) * At<T>(p.b, i, c);
      if (p.bias) sum += static_cast<Acc<T>>(static_cast<const Out*>(p.bias)[c]);
      if (p.accumulate) sum += static_cast<Acc<T>>(row[c]);
      row[c] = static_cast<Out>(sum);
    }
  }
  return true;
}

}  // namespace

void Multiply(Context& ctx, std::string_view op, const Product& p) {
  if (auto* recorder = runtime::StepRecorder::Of(ctx.stream());
      recorder && !recorder->Issue(runtime::Piece::kProduct, p)) {
    return;
  }
  auto work = [p] {
    if (p.input == DType::kF64) return Multiply<double, double>(p);
    if (p.input == DType::kF32) return Multiply<float, float>(p);
    if (p.output == DType::kF32) return Multiply<BF16, float>(p);
    return Multiply<BF16, BF16>(p);
  };
  runtime::CheckCuda(
      cuda_emulation::Enqueue(static_cast<cudaStream_t>(ctx.stream().handle()), work), op,
      "cublasLtMatmul", ctx.device().index);
}

}  // namespace hone::kernels::cuda
