// emulated: all
// The digest of rows: what it depends on, and what not; on both devices the same number.
#include "kernels/digest/digest.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/error.h"
#include "tests/device.h"

namespace hone::kernels {
namespace {

// digest.h's definition, byte by byte.
RowDigest Defined(const std::vector<unsigned char>& bytes, int64_t rows, uint64_t seed,
                  uint64_t first_row) {
  constexpr uint64_t kPhi = 0x9e3779b97f4a7c15, kGamma = 0xd1342543de82ef95;
  auto mix = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  };
  auto halves = [](uint64_t x) { return (x % (uint64_t{1} << 32)) * (x / (uint64_t{1} << 32)); };
  RowDigest digest;
  const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    const uint64_t k = mix(seed + (first_row + r) * kPhi);
    for (size_t j = 0; j * 8 < row_bytes; ++j) {
      uint64_t word = 0;
      for (size_t i = 8 * j; i < std::min(row_bytes, 8 * j + 8); ++i) {
        word += static_cast<uint64_t>(bytes[r * row_bytes + i]) << (8 * (i - 8 * j));
      }
      digest.low += halves(word ^ (k + j * kPhi));
      digest.high += halves(word ^ (mix(k) + j * kGamma));
    }
  }
  return digest;
}

std::vector<unsigned char> Bytes(size_t count) {
  std::vector<unsigned char> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<unsigned char>(i * 37 + i / 251);
  return bytes;
}

Tensor OnDevice(Context& ctx, const std::vector<unsigned char>& bytes) {
  Tensor t = ctx.Empty({static_cast<int64_t>(bytes.size())}, DType::kU8);
  runtime::CopyBytes(t.raw(), ctx.device(), bytes.data(), Device::Cpu(), t.bytes(), &ctx.stream());
  return t;
}

TEST(Digest, IsAsDefinedForRowsOfAnyLength) {
  Context ctx(TestDevice());
  for (auto [rows, row_bytes] : {std::pair<int64_t, size_t>{1, 1},
                                 {5, 2},
                                 {3, 8},
                                 {7, 13},
                                 {40, 64},
                                 {2, 4099},
                                 {2, 16'384},
                                 {1, 70'000}}) {
    const auto bytes = Bytes(static_cast<size_t>(rows) * row_bytes);
    EXPECT_EQ(DigestRows(ctx, {{OnDevice(ctx, bytes), rows, 11, 3}}), Defined(bytes, rows, 11, 3))
        << rows << " rows of " << row_bytes;
  }
  // By a program of a few lines in another language.
  const RowDigest elsewhere = {0x69b227401158a6fa, 0xdd9c6ae485c73e14};
  EXPECT_EQ(DigestRows(ctx, {{OnDevice(ctx, Bytes(3 * 4099)), 3, 11, 5}}), elsewhere);
}

TEST(Digest, CutsDoNotMatterPlacesAndSeedsDo) {
  Context ctx(TestDevice());
  auto bytes = Bytes(6 * 24);
  const Tensor t = OnDevice(ctx, bytes);
  const RowDigest whole = DigestRows(ctx, {{t, 6, 5, 0}});
  EXPECT_EQ(DigestRows(ctx, {{t.Slice(48, 144), 4, 5, 2}, {t.Slice(0, 48), 2, 5, 0}}), whole);
  EXPECT_NE(DigestRows(ctx, {{t, 6, 6, 0}}), whole);
  EXPECT_NE(DigestRows(ctx, {{t, 6, 5, 1}}), whole);
  EXPECT_NE(DigestRows(ctx, {{t.Slice(0, 120), 5, 5, 0}}), whole);
  EXPECT_EQ(DigestRows(ctx, {{t.Slice(0, 0), 0, 5, 0}}), RowDigest());
  EXPECT_THROW(DigestRows(ctx, {{t, 5, 5, 0}}), ShapeError);
  std::swap_ranges(bytes.begin(), bytes.begin() + 8, bytes.begin() + 8);  // two words of a row
  const RowDigest swapped = DigestRows(ctx, {{OnDevice(ctx, bytes), 6, 5, 0}});
  EXPECT_NE(swapped.low, whole.low);
  EXPECT_NE(swapped.high, whole.high);
}

TEST(Digest, EveryBitCounts) {
  Context ctx(TestDevice());
  const auto bytes = Bytes(2 * 11);
  const RowDigest before = DigestRows(ctx, {{OnDevice(ctx, bytes), 2, 1, 0}});
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    auto changed = bytes;
    changed[bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
    const RowDigest after = DigestRows(ctx, {{OnDevice(ctx, changed), 2, 1, 0}});
    EXPECT_NE(after.low, before.low) << "bit " << bit;
    EXPECT_NE(after.high, before.high) << "bit " << bit;
  }
}

// Where nothing stands but zeros, a change is seen as well as anywhere.
TEST(Digest, ZerosAreNoBlindSpot) {
  Context ctx(TestDevice());
  std::vector<unsigned char> zeros(4 * 64);
  const RowDigest before = DigestRows(ctx, {{OnDevice(ctx, zeros), 4, 9, 0}});
  for (size_t at = 0; at < zeros.size(); at += 5) {
    zeros[at] = 1;
    const RowDigest after = DigestRows(ctx, {{OnDevice(ctx, zeros), 4, 9, 0}});
    EXPECT_NE(after.low, before.low) << at;
    EXPECT_NE(after.high, before.high) << at;
    zeros[at] = 0;
  }
}

}  // namespace
}  // namespace hone::kernels
