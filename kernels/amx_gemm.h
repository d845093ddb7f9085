// Matrix multiplication by the matrix unit of x86 processors (AMX), for Numerics::kFast and
// kFixedPoint. An element's bits depend on nothing but the two vectors multiplied, as with
// kernels/gemm.h, but they are not that kernel's.
//
// kFast: the unit multiplies bf16 and adds in f32. An f32 number is the sum of three bf16 numbers,
// x = x0
// + x1 + x2 (8 of its 24 bits each), so a product of two is Σ x_i y_j; those of i + j > 2 are left
// out, together at most about 2^-23 |x y| (Henry, Tang and Heinecke, "Leveraging the bfloat16
// Artificial Intelligence Datatype For Higher-Precision Computations", 2019). What remains are six
// exact products, added to 32 k at a time; the sums of 16 pairs come first, so the result is nearer
// to the exact one than that of a chain over k. Splitting k over several calls keeps the bits at
// multiples of 32. Parts below 2^-126 count as 0; infinite operands, or f32 above 3.39e38, give
// NaN.
//
// kFixedPoint, of f32: the unit multiplies integers of 8 bits, twice as many k in an instruction,
// and adds them exactly. 512 k of a row of A, or of a column of B, share a unit of about 2^-23 of
// their greatest number, in which each is an integer of 24 bits: three digits. Of two numbers'
// products of digits d_i e_j, from the highest on, those of i + j > 2 are left out (after Ootomo,
// Ozaki and Yokota, "DGEMM on Integer Matrix Multiplication Unit", 2024). So errors are relative to
// the greatest numbers of row and column, of whose product each k adds at most 2^-21 and, of either
// sign, about 2^-25: for numbers of one size that is f32's own precision (of normal ones a result
// errs by 3e-7 of its standard deviation; a chain by 2e-7 with 128 k, by 1e-6 with 4,096), but a
// number far below the greatest of its line keeps only what it has above the unit. Splitting k
// keeps the bits at multiples of 512. What is below 2^-127 is lost; a line with NaN or infinity
// gives NaN.
#pragma once

#include <cstdint>

#include "kernels/gemm.h"

namespace hone::kernels {

// Whether this build, this processor and its system have the unit. A build for an instruction set
// without it (HONE_CPU_ARCH) has not.
bool HasAmx();

// T is float or BF16. Whether products are large enough to be faster there than in the vector unit.
template <class T>
bool AmxPays(Common common, int64_t K, std::span<const Product<T>> products);
// As GemmEach (kernels/gemm.h), for K ≥ 1 and numerics other than kBatchInvariant. bf16 numbers are
// one part in both. Needs HasAmx().
template <class T>
void AmxGemmEach(ThreadPool& pool, Numerics numerics, Common common, int64_t K,
                 std::span<const Product<T>> products);

}  // namespace hone::kernels
