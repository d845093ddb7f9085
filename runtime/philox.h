// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011). A draw is a pure function of (key, counter): never of which process drew it.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace hone::runtime {

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A stream named by a tuple of integers, e.g. (run seed, stage, rollout, prompt, sample); position is
// the counter. Two different tuples give independent streams (the tuple is hashed into the key and the
// upper counter words).
class RandomStream {
 public:
  explicit RandomStream(std::initializer_list<uint64_t> name);

  uint64_t Bits(uint64_t position) const;
  double Uniform(uint64_t position) const;                    // [0, 1), 53 bits
  double Normal(uint64_t position) const;                     // Box–Muller
  uint64_t Below(uint64_t n, uint64_t position) const;        // [0, n); bias below n / 2^64

 private:
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 2> upper_;
};

// For naming streams by text (a stage or tensor name): FNV-1a, 64 bits.
uint64_t HashName(std::string_view text);

}  // namespace hone::runtime

namespace hone {
using runtime::HashName;
using runtime::RandomStream;
}  // namespace hone
