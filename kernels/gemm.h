// Matrix multiplication on the CPU, with bits that depend on nothing but the two vectors
// multiplied.
//
// Every element of the product is one chain of fused multiply-adds over k in ascending order, in
// f32 (f64 when the operands are), starting from 0 or, with `accumulate`, from the element itself.
// So its bits are the same for every M and N, position, thread count, operand layout, split of k
// over several accumulating calls, and instruction set. bf16 operands are widened while they are
// packed.
#pragma once

#include <cstdint>

#include "runtime/dtype.h"
#include "runtime/thread_pool.h"

namespace hone::kernels {

// A matrix X in memory: X(i, j) = data[i · stride + j], or data[j · stride + i] when transposed.
template <class T>
struct MatrixView {
  const T* data;
  int64_t stride;
  bool transposed = false;
};

// c(m, n) = (accumulate ? c(m, n) : 0) + Σ_k a(m, k) b(k, n); c(m, n) = c[m · c_stride + n].
// T is float, double or BF16. Gemm shares the work among the pool's threads, GemmSerial uses none.
template <class T>
void Gemm(ThreadPool& pool, int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
          Acc<T>* c_MN, int64_t c_stride, bool accumulate);
template <class T>
void GemmSerial(int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
                Acc<T>* c_MN, int64_t c_stride, bool accumulate);

}  // namespace hone::kernels
