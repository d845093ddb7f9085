// Products by cuBLASLt; the gradient of the bias by a kernel of our own.
#include <type_traits>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/element.h"
#include "kernels/linear/linear_cuda.h"

namespace hone::kernels::cuda {
namespace {

Product::Operand Plain(const Tensor& t) { return {t.raw(), t.row_stride(), false}; }
Product::Operand Transposed(const Tensor& t) { return {t.raw(), t.row_stride(), true}; }

// Every row becomes `first_row`, or zero without one.
template <class T>
__global__ void FillRowsKernel(Rows<T> c, int64_t cols, const T* first_row) {
  for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) {
    c[blockIdx.x][i] = first_row ? first_row[i] : Store<T>(0);
  }
}

// c = a · b (+ bias), or +=. A product over nothing is zero. cuBLASLt promises no epilogue for f64:
// there the product is added to rows that begin as the bias.
template <class T>
void MultiplyInto(Context& ctx, std::string_view op, const Tensor& c, Product product) {
  if (product.rows == 0 || product.cols == 0) return;
  constexpr bool kNoEpilogue = std::is_same_v<T, double>;
  if (!product.accumulate && (product.inner == 0 || (kNoEpilogue && product.bias))) {
    Launch(ctx, op, FillRowsKernel<T>, {static_cast<unsigned>(product.rows), 256}, Rows<T>(c),
           product.cols, static_cast<const T*>(product.bias));
    product.bias = nullptr;
    product.accumulate = true;
  }
  if (product.inner == 0) return;
  product.c = c.raw();
  product.c_stride = c.row_stride();
  product.output = c.dtype();
  Multiply(ctx, op, product);
}

constexpr int kLanes = 32;  // columns of a block, and rows that it adds at the same time

// dbias += Σ_t dy. Thread (c, l) of a block adds rows l, l + kLanes, … of column c in order; then
// the kLanes sums of a column are added in order.
template <class T>
__global__ void BiasGradientKernel(Rows<T> dy, int64_t rows, int64_t cols, Acc<T>* dbias) {
  __shared__ Acc<T> sums[kLanes][kLanes];
  int64_t c = int64_t{blockIdx.x} * kLanes + threadIdx.x;
  Acc<T> sum = 0;
  if (c < cols) {
    for (int64_t t = threadIdx.y; t < rows; t += kLanes) sum += Load(dy[t][c]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= cols) return;
  Acc<T> total = dbias[c];
  for (int l = 0; l < kLanes; ++l) total += sums[l][threadIdx.x];
  dbias[c] = total;
}

}  // namespace

template <class T>
void Linear(Context& ctx, const Tensor& x_TK, const Tensor& w_NK, const Tensor* bias_N,
            const Tensor& y_TN) {
  Product product = {.rows = x_TK.rows(),
                     .cols = w_NK.rows(),
                     .inner = x_TK.cols(),
                     .input = x_TK.dtype(),
                     .a = Plain(x_TK),
                     .b = Transposed(w_NK)};
  if (bias_N) product.bias = bias_N->raw();
  product.row_invariant = ctx.numerics == Numerics::kBatchInvariant;
  MultiplyInto<T>(ctx, "linear", y_TN, product);
}

template <class T>
void LinearInputGradient(Context& ctx, const Tensor& dy_TN, const Tensor& w_NK,
                         const Tensor& dx_TK) {
  Product product = {.rows = dy_TN.rows(),
                     .cols = w_NK.cols(),
                     .inner = dy_TN.cols(),
                     .input = dy_TN.dtype(),
                     .a = Plain(dy_TN),
                     .b = Plain(w_NK)};
  product.row_invariant = ctx.numerics == Numerics::kBatchInvariant;
  MultiplyInto<T>(ctx, "linear_input_gradient", dx_TK, product);
}

template <class T>
void LinearWeightGradient(Context& ctx, const Tensor& dy_TN, const Tensor& x_TK,
                          const Tensor& dw_NK, const Tensor* dbias_N) {
  constexpr std::string_view kOp = "linear_weight_gradient";
  Product product = {.rows = dy_TN.cols(),
                     .cols = x_TK.cols(),
                     .inner = dy_TN.rows(),
                     .input = dy_TN.dtype(),
                     .a = Transposed(dy_TN),
                     .b = Plain(x_TK)};
  product.accumulate = true;
  product.row_invariant = false;  // the tokens are summed over
  MultiplyInto<Acc<T>>(ctx, kOp, dw_NK, product);
  if (!dbias_N) return;
  auto blocks = static_cast<unsigned>(CeilDiv(dy_TN.cols(), kLanes));
  Launch(ctx, kOp, BiasGradientKernel<T>, {blocks, dim3(kLanes, kLanes)}, Rows<T>(dy_TN),
         dy_TN.rows(), dy_TN.cols(), dbias_N->data<Acc<T>>());
}

#define HONE_INSTANTIATE(T)                                                                      \
  template void Linear<T>(Context&, const Tensor&, const Tensor&, const Tensor*, const Tensor&); \
  template void LinearInputGradient<T>(Context&, const Tensor&, const Tensor&, const Tensor&);   \
  template void LinearWeightGradient<T>(Context&, const Tensor&, const Tensor&, const Tensor&,   \
                                        const Tensor*);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
