// Matrix multiplication by the matrix unit of x86 processors (AMX), for Numerics::kFast.
//
// The unit multiplies bf16 and adds in f32. An f32 number is the sum of three bf16 numbers, x = x0
// + x1 + x2 (8 of its 24 bits each), so a product of two is Σ x_i y_j; those of i + j > 2 are left
// out, together at most about 2^-23 |x y| (Henry, Tang and Heinecke, "Leveraging the bfloat16
// Artificial Intelligence Datatype For Higher-Precision Computations", 2019). What remains are six
// exact products, added to 32 k at a time; the sums of 16 pairs come first, so the result is nearer
// to the exact one than that of a chain over k.
//
// An element's bits depend on nothing but the two vectors multiplied, as with kernels/gemm.h, but
// they are not that kernel's, and splitting k over several calls keeps them at multiples of 32
// only. Parts below 2^-126 count as 0; infinite operands, or f32 above 3.39e38, give NaN.
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
// As GemmEach (kernels/gemm.h), for K ≥ 1. Needs HasAmx().
template <class T>
void AmxGemmEach(ThreadPool& pool, Common common, int64_t K, std::span<const Product<T>> products);

}  // namespace hone::kernels
