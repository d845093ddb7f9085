// The arithmetic of digest.h, for the CPU and for CUDA.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define HONE_DIGEST_FN __host__ __device__ constexpr
#else
#define HONE_DIGEST_FN constexpr
#endif

namespace hone::kernels {

inline constexpr uint64_t kDigestPhi = 0x9e3779b97f4a7c15;    // φ: 2^64 over the golden ratio
inline constexpr uint64_t kDigestGamma = 0xd1342543de82ef95;  // γ: another odd number

HONE_DIGEST_FN uint64_t DigestMix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

HONE_DIGEST_FN uint64_t HalvesProduct(uint64_t x) { return (x & 0xffffffff) * (x >> 32); }

// k and k' of a row.
struct DigestKey {
  uint64_t low, high;
};
HONE_DIGEST_FN DigestKey KeyOfRow(uint64_t seed, uint64_t row) {
  const uint64_t low = DigestMix(seed + row * kDigestPhi);
  return {low, DigestMix(low)};
}

}  // namespace hone::kernels

#undef HONE_DIGEST_FN
