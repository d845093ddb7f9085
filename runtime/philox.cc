#include "runtime/philox.h"

#include <cmath>
#include <numbers>

namespace hone::runtime {

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = static_cast<uint64_t>(kMultiplier0) * c[0];
    uint64_t p1 = static_cast<uint64_t>(kMultiplier1) * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
    k[0] += kWeyl0;
    k[1] += kWeyl1;
  }
  return c;
}

RandomStream::RandomStream(std::initializer_list<uint64_t> name) {
  // Absorb the tuple by running Philox as a hash: each word is a counter under the key so far.
  std::array<uint32_t, 4> state = {static_cast<uint32_t>(name.size()), 0, 0, 0};
  for (uint64_t word : name) {
    std::array<uint32_t, 4> counter = {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32),
                                       state[2], state[3]};
    state = Philox4x32(counter, {state[0], state[1]});
  }
  key_ = {state[0], state[1]};
  upper_ = {state[2], state[3]};
}

uint64_t RandomStream::Bits(uint64_t position) const {
  uint64_t block = position / 2;
  auto r = Philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), upper_[0],
                       upper_[1]},
                      key_);
  size_t half = (position % 2) * 2;
  return static_cast<uint64_t>(r[half + 1]) << 32 | r[half];
}

double RandomStream::Uniform(uint64_t position) const {
  return static_cast<double>(Bits(position) >> 11) * 0x1.0p-53;
}

double RandomStream::Normal(uint64_t position) const {
  double u = 1.0 - Uniform(2 * position), v = Uniform(2 * position + 1);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

uint64_t RandomStream::Below(uint64_t n, uint64_t position) const {
  // The high half of a 128-bit product; its bias is below n / 2^64.
  return static_cast<uint64_t>((static_cast<unsigned __int128>(Bits(position)) * n) >> 64);
}

uint64_t HashName(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char byte : text) hash = (hash ^ byte) * 0x100000001b3;
  return hash;
}

}  // namespace hone::runtime
