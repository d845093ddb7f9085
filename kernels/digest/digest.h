// A digest of tensors that depends neither on how their rows are spread over ranks, nor on order,
// nor on device: two sums modulo 2^64 over the 8-byte words of every row (little endian, a row's
// last word filled up with zeros). It is made of integer products alone, so any thread may add its
// part at any time. Word w_j of row r, with Mix the finaliser of SplitMix64 (Steele, Lea & Flood,
// OOPSLA 2014) and ⊙ the 64-bit product of a word's two 32-bit halves, as in UMAC's NH (Black et
// al., CRYPTO '99):
//   k = Mix(seed + r · φ)       low  += ⊙(w_j ^ (k + j · φ))
//   k' = Mix(k)                 high += ⊙(w_j ^ (k' + j · γ))
// A changed bit is missed by a sum if the other half is 0, once in 2^32. It finds changes that
// happen, not those that somebody makes to deceive.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/context.h"

namespace hone::kernels {

struct RowDigest {
  uint64_t low = 0, high = 0;
  RowDigest& operator+=(const RowDigest& other);
  bool operator==(const RowDigest&) const = default;
};

// Contiguous, of any dtype and shape: `rows` rows of equal length, the first of which is row
// `first_row` of its global tensor.
struct DigestInput {
  Tensor tensor;
  int64_t rows = 1;
  uint64_t seed = 0, first_row = 0;
};

// Summed over all inputs, which are on ctx's device. Behind all work of the device, and waits for
// it: 16 bytes come to the host.
RowDigest DigestRows(Context& ctx, const std::vector<DigestInput>& inputs);

}  // namespace hone::kernels
