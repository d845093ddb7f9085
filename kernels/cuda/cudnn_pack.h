// The sizes that plans of cuDNN's attention are made for, and how a pack is cut for its backward.
// Plain C++, included by cudnn_attention_cuda.cc and tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace hone::kernels::cudnn {

// 1, 2, 3, 4, 6, 8, 12, 16, … times `least`: at most half more than needed.
inline int64_t RoundUp(int64_t n, int64_t least) {
  int64_t size = least;
  while (size < n) size = size * 3 / 2 >= n && size > 1 ? size * 3 / 2 : size * 2;
  return size;
}

// A multiple of 128: with half a tile of 128 keys too many, Hopper's backward makes NaN of rows
// whose log-sum-exp is below −88 (pytorch/pytorch#196678).
inline int64_t PaddedLength(int64_t longest) { return (RoundUp(longest, 128) + 127) / 128 * 128; }

// The sequences of a pack as a plan takes them: B lengths, and B + 1 tokens where they begin.
struct PackedSequences {
  std::vector<int32_t> lengths;
  std::vector<int64_t> begin;

  int64_t size() const { return static_cast<int64_t>(lengths.size()); }
  int64_t longest() const {
    return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  }
};

// cuDNN before 9.25 fails, or gives NaN, where a sequence has no tokens.
inline constexpr int64_t kTakesEmptySequences = 92500;

// Those of the pack that have tokens; empty ones fill up to a size of RoundUp where they may.
inline PackedSequences SequencesOf(std::span<const int32_t> cu_seqlens, bool may_be_empty) {
  PackedSequences of;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    if (cu_seqlens[s + 1] == cu_seqlens[s]) continue;
    of.lengths.push_back(cu_seqlens[s + 1] - cu_seqlens[s]);
    of.begin.push_back(cu_seqlens[s]);
  }
  if (may_be_empty) of.lengths.resize(static_cast<size_t>(RoundUp(of.size(), 1)), 0);
  of.begin.resize(of.lengths.size() + 1, cu_seqlens.back());
  return of;
}

// The most that the deterministic backward on Hopper keeps of `sequences` sequences, before cuDNN
// 9.25: a bf16 number for each head, query and key, each sequence as long as the longest
// (NVIDIA/cudnn-frontend#398).
inline int64_t ScoreBytes(int64_t sequences, int64_t longest, int64_t heads) {
  const int64_t length = PaddedLength(longest);
  return RoundUp(sequences, 1) * heads * length * length * 2;
}

// Consecutive sequences [cuts[i], cuts[i + 1]), as many as keep at most `most_bytes`, but one at
// least.
inline std::vector<size_t> CutPack(std::span<const int32_t> cu_seqlens, int64_t heads,
                                   int64_t most_bytes) {
  std::vector<size_t> cuts = {0};
  int64_t longest = 0;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    const int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    longest = std::max(longest, length);
    const auto sequences = static_cast<int64_t>(s + 1 - cuts.back());
    if (sequences > 1 && ScoreBytes(sequences, longest, heads) > most_bytes) {
      cuts.push_back(s);
      longest = length;
    }
  }
  cuts.push_back(cu_seqlens.size() - 1);
  return cuts;
}

}  // namespace hone::kernels::cudnn
