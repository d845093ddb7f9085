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
#include <span>

#include "runtime/context.h"
#include "runtime/dtype.h"

namespace hone::kernels {

// A matrix X in memory: X(i, j) = data[i · stride + j], or data[j · stride + i] when transposed.
template <class T>
struct MatrixView {
  const T* data;
  int64_t stride;
  bool transposed = false;
};

// c(m, n) = (accumulate ? c(m, n) : 0) + Σ_k a(m, k) b(k, n); c(m, n) = c[m · c_stride + n].
// T is float, double or BF16. Gemm shares the work among the threads, GemmSerial uses none. Given a
// context, Numerics::kFast may take the processor's matrix unit (kernels/amx_gemm.h).
template <class T>
void Gemm(Context& ctx, int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
          Acc<T>* c_MN, int64_t c_stride, bool accumulate);
template <class T>
void Gemm(ThreadPool& pool, int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
          Acc<T>* c_MN, int64_t c_stride, bool accumulate);
template <class T>
void GemmSerial(int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
                Acc<T>* c_MN, int64_t c_stride, bool accumulate);

// Products of K that have their left operand in common (a_MK and M are the same in all), or their
// right one: each as Gemm makes it alone, but the matrix unit's packing of that operand is shared.
template <class T>
struct Product {
  int64_t M, N;
  MatrixView<T> a_MK, b_KN;
  Acc<T>* c_MN;
  int64_t c_stride;
  bool accumulate;
};
enum class Common : uint8_t { kLeft, kRight };
template <class T>
void GemmEach(Context& ctx, Common common, int64_t K, std::span<const Product<T>> products);

// For kernels that use a packed operand several times, as attention does. A left operand [M, K] is
// rows kPackedStride apart: whoever computes one with K ≤ kPackedK may write it in that form
// directly. A wider one is cut into chunks of kPackedK columns, `chunk` elements apart.
inline constexpr int64_t kPackedK = 256;
inline constexpr int64_t kPackedStride =
    kPackedK + 16;  // so that rows start in different cache sets
inline int64_t PackedLeftSize(int64_t M, int64_t K) {
  return (K + kPackedK - 1) / kPackedK * M * kPackedStride;
}
template <class T>
void PackLeft(int64_t M, int64_t K, MatrixView<T> a_MK, Acc<T>* to);
template <class A>
struct LeftOperand {
  const A* data;
  int64_t chunk;
};

// A right operand [K, N]: packed, in panels of kTileCols columns and all of K; or where it stands
// when it is not transposed, needs no widening, and meets so few rows (`M`) that packing would not
// pay.
template <class A>
struct RightOperand {
  const A* data;
  int64_t step;     // elements from k to k + 1
  int64_t panel_k;  // of a packed panel, of which a product may take the first; 0: not packed
};
template <class A>
int64_t PackedRightSize(int64_t K, int64_t N);
template <class T>
RightOperand<Acc<T>> PackRight(int64_t M, int64_t K, int64_t N, MatrixView<T> b_KN, Acc<T>* to);
template <class A>
void GemmPacked(int64_t M, int64_t N, int64_t K, LeftOperand<A> left_MK, RightOperand<A> right_KN,
                A* c_MN, int64_t c_stride, bool accumulate);

// c(m, n) = (accumulate ? c(m, n) : 0) + Σ_k a(m, k) b(k, n) with a right operand that was packed
// before, as weights are that meet many left operands. Shared among the pool's threads.
template <class T>
void GemmWithPacked(ThreadPool& pool, int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK,
                    const Acc<T>* packed_KN, Acc<T>* c_MN, int64_t c_stride, bool accumulate);

}  // namespace hone::kernels
