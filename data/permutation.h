// A seeded order of n things that is computed, not stored.
#pragma once

#include <cstdint>

#include "runtime/philox.h"

namespace hone::data {

// A bijection of [0, n): a Feistel network over the next even number of bits, walked until the
// value falls below n (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
class SeededPermutation {
 public:
  SeededPermutation(uint64_t n, uint64_t seed, uint64_t round);
  uint64_t operator()(uint64_t i) const;  // i < n

 private:
  uint64_t Encrypt(uint64_t value) const;

  uint64_t n_;
  uint64_t half_bits_;
  RandomStream stream_;
};

}  // namespace hone::data
