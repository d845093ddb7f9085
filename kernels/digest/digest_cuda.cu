// A block sums a piece of one row. Its warps sum by shuffles and add what comes out by atomics of
// integers, which are exact in any order.
#include "kernels/cuda/launch.h"
#include "kernels/digest/digest_cuda.h"
#include "kernels/digest/digest_mix.h"

namespace hone::kernels::cuda {
namespace {

using Sum = unsigned long long;  // what atomicAdd takes

constexpr int64_t kWord = 8;      // bytes
constexpr int64_t kPiece = 2048;  // words of a block

struct Rows {
  const unsigned char* bytes;
  int64_t row_bytes, row_words, row_pieces;
  uint64_t seed, first_row;
  bool aligned;  // every row begins at a multiple of a word
};

__device__ uint64_t LoadWord(const Rows& t, int64_t row, int64_t j) {
  const unsigned char* at = t.bytes + row * t.row_bytes + j * kWord;
  const int64_t left = t.row_bytes - j * kWord;
  if (t.aligned && left >= kWord) return *reinterpret_cast<const uint64_t*>(at);
  uint64_t word = 0;
  for (int64_t i = 0; i < (left < kWord ? left : kWord); ++i) {
    word |= static_cast<uint64_t>(at[i]) << (8 * i);
  }
  return word;
}

__global__ void DigestKernel(Rows t, Sum* sums) {
  const int64_t row = blockIdx.x / t.row_pieces, piece = blockIdx.x % t.row_pieces;
  const DigestKey key = KeyOfRow(t.seed, t.first_row + static_cast<uint64_t>(row));
  const int64_t limit = (piece + 1) * kPiece;
  const int64_t end = limit < t.row_words ? limit : t.row_words;
  Sum low = 0, high = 0;
  for (int64_t j = piece * kPiece + threadIdx.x; j < end; j += blockDim.x) {
    const uint64_t word = LoadWord(t, row, j), at = static_cast<uint64_t>(j);
    low += HalvesProduct(word ^ (key.low + at * kDigestPhi));
    high += HalvesProduct(word ^ (key.high + at * kDigestGamma));
  }
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    low += __shfl_xor_sync(0xffffffffu, low, lanes);
    high += __shfl_xor_sync(0xffffffffu, high, lanes);
  }
  if (threadIdx.x % kWarpSize == 0) {
    atomicAdd(&sums[0], low);
    atomicAdd(&sums[1], high);
  }
}

}  // namespace

RowDigest DigestRows(Context& ctx, const std::vector<DigestInput>& inputs) {
  Tensor sums = ctx.Empty({2}, DType::kI64);
  // Without a stream: behind what other streams do with the tensors.
  runtime::FillZero(sums.raw(), ctx.device(), sums.bytes(), nullptr);
  for (const DigestInput& input : inputs) {
    const Tensor& t = input.tensor;
    const int64_t row_bytes = t.bytes() / input.rows, row_words = CeilDiv(row_bytes, kWord);
    const bool aligned =
        reinterpret_cast<uintptr_t>(t.raw()) % kWord == 0 && row_bytes % kWord == 0;
    const Rows rows = {static_cast<const unsigned char*>(t.raw()),
                       row_bytes,
                       row_words,
                       CeilDiv(row_words, kPiece),
                       input.seed,
                       input.first_row,
                       aligned};
    const auto blocks = static_cast<unsigned>(input.rows * rows.row_pieces);
    const auto threads = static_cast<unsigned>(ThreadsFor(row_words));
    Launch(ctx, "digest", DigestKernel, {blocks, threads}, rows, static_cast<Sum*>(sums.raw()));
  }
  uint64_t found[2];
  runtime::CopyBytes(found, Device::Cpu(), sums.raw(), ctx.device(), sizeof found, &ctx.stream());
  return {found[0], found[1]};
}

}  // namespace hone::kernels::cuda
