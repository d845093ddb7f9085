// E4M3 as DeepSeek-V3 and the GPU use it ("fn"): one sign bit, four of exponent (bias 7), three of
// mantissa; no infinities, 0x7f and 0xff are NaN, the largest number is 448.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace hone::kernels {

inline constexpr float kMaxE4M3 = 448.f;
// The least amax that scales are made for: below it they would not be normal numbers, nor their
// inverses finite.
inline constexpr float kLeastAmax = kMaxE4M3 * 0x1p-126f;

// Rounds to nearest even; beyond ±448 saturates; NaN gives 0x7f.
inline uint8_t ToE4M3(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= 0x43e80000u) return sign | 0x7eu;  // 464 and more round beyond 448
  if (magnitude < 0x3c800000u) {                      // below 2⁻⁶: multiples of 2⁻⁹
    float absolute;
    std::memcpy(&absolute, &magnitude, sizeof absolute);
    return sign | static_cast<uint8_t>(std::nearbyint(absolute * 512.f));
  }
  // Drops 20 bits of the mantissa, rounding; a carry moves on into the exponent, as it should.
  uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
  return sign | static_cast<uint8_t>((rounded >> 20) - ((127u - 7u) << 3));
}

inline float FromE4M3(uint8_t bits) {
  int exponent = bits >> 3 & 0xf, mantissa = bits & 7;
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                  : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if ((bits & 0x7f) == 0x7f) magnitude = NAN;
  return bits & 0x80 ? -magnitude : magnitude;
}

}  // namespace hone::kernels
