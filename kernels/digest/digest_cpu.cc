#include "kernels/digest/digest_cpu.h"

#include <cstring>

#include "kernels/digest/digest_mix.h"

namespace hone::kernels::cpu {
namespace {

constexpr int64_t kWord = 8;  // bytes

uint64_t LoadWord(const char* at, int64_t bytes) {
  uint64_t word = 0;
  std::memcpy(&word, at, static_cast<size_t>(bytes));
  return word;
}

RowDigest DigestRow(const char* row, int64_t bytes, DigestKey key) {
  RowDigest sum;
  auto add = [&](uint64_t word) {
    sum.low += HalvesProduct(word ^ key.low);
    sum.high += HalvesProduct(word ^ key.high);
    key.low += kDigestPhi;
    key.high += kDigestGamma;
  };
  const int64_t rest = bytes % kWord;
  for (int64_t at = 0; at < bytes - rest; at += kWord) add(LoadWord(row + at, kWord));
  if (rest > 0) add(LoadWord(row + bytes - rest, rest));
  return sum;
}

}  // namespace

RowDigest DigestRows(const std::vector<DigestInput>& inputs) {
  RowDigest sum;
  for (const DigestInput& input : inputs) {
    const auto* bytes = static_cast<const char*>(input.tensor.raw());
    const int64_t row_bytes = input.tensor.bytes() / input.rows;
    for (int64_t r = 0; r < input.rows; ++r) {
      const uint64_t row = input.first_row + static_cast<uint64_t>(r);
      sum += DigestRow(bytes + r * row_bytes, row_bytes, KeyOfRow(input.seed, row));
    }
  }
  return sum;
}

}  // namespace hone::kernels::cpu
