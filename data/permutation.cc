#include "data/permutation.h"

#include <algorithm>
#include <bit>

#include "runtime/error.h"

namespace hone::data {

SeededPermutation::SeededPermutation(uint64_t n, uint64_t seed, uint64_t round)
    : n_(n),
      half_bits_(std::max<uint64_t>(1, (static_cast<uint64_t>(std::bit_width(n)) + 1) / 2)),
      stream_({HashName("permutation"), seed, round}) {
  Check(n > 0, "[permutation] an order of nothing was asked for");
}

uint64_t SeededPermutation::Encrypt(uint64_t value) const {
  uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_, right = value & mask;
  for (uint64_t round = 0; round < 4; ++round) {
    uint64_t mixed = left ^ (stream_.Bits(right * 4 + round) & mask);
    left = right;
    right = mixed;
  }
  return left << half_bits_ | right;
}

uint64_t SeededPermutation::operator()(uint64_t i) const {
  uint64_t value = Encrypt(i);
  while (value >= n_) value = Encrypt(value);
  return value;
}

}  // namespace hone::data
