// Byte-pair encoding: merges the pairs of a word in the order of their ranks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace hone::data {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
template <class T>
using StringMap = std::unordered_map<std::string, T, StringHash, std::equal_to<>>;

// (left id, right id) → what they merge into. Open addressing.
class MergeTable {
 public:
  struct Merge {
    int32_t rank = -1, result = -1;  // rank −1: the pair does not merge
  };
  void Reserve(size_t merges);
  void Insert(int32_t left, int32_t right, Merge merge);  // the last of equal pairs stays
  Merge Find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  size_t Start(uint64_t key) const;
  std::vector<Slot> slots_ = std::vector<Slot>(16);
  size_t used_ = 0;
};

struct BpeModel {
  // A word begins as its bytes, or as its characters.
  bool from_bytes = true;
  bool byte_fallback = false;  // characters without a token become <0xNN> tokens
  bool ignore_merges = false;  // a word that is a token is taken whole
  bool fuse_unknown = false;   // neighbouring unknown characters become one unknown token
  int32_t unknown = -1;        // −1: unknown characters are left out
  StringMap<int32_t> id_of;    // by bytes (from_bytes) or by text
  MergeTable merges;
  std::vector<int32_t> byte_id =
      std::vector<int32_t>(256, -1);  // of a byte, or of its <0xNN> token

  // Appends the ids of `word`. Ties in rank go to the left. O(n log n).
  void Encode(std::string_view word, std::vector<int32_t>* ids) const;

 private:
  void Begin(std::string_view word, std::vector<int32_t>* symbols) const;
};

// Fills `merges` so that a pair merges into the token that is its concatenation, tokens of lower
// rank first: for vocabularies that rank tokens and list no merges. rank_of[id] < 0 leaves a token
// out.
void AddMergesFromRanks(const std::vector<std::string>& tokens, const std::vector<int32_t>& rank_of,
                        BpeModel* model);

}  // namespace hone::data
