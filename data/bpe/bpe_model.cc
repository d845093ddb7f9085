#include "data/bpe/bpe_model.h"

#include <algorithm>
#include <cstdint>
#include <functional>

#include "data/utf8.h"

namespace hone::data {
namespace {

uint64_t Key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// A word's symbols as a linked list; a symbol merged into its left neighbour has id −1.
struct Symbol {
  int32_t id, previous, next;
};
struct Candidate {
  int32_t rank, position, result;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

// Takes the candidate of lowest rank, merges, and looks at the two new neighbours, until none is
// left. A candidate whose symbols have changed since it was found is dropped. Short words have no
// heap: their candidates lie in a row that is searched.
class Merger {
 public:
  void Run(const MergeTable& merges, const std::vector<int32_t>& word, std::vector<int32_t>* ids) {
    merges_ = &merges;
    if (word.size() <= kShort) return RunShort(word, ids);
    Begin(word);
    while (!heap_.empty()) {
      Candidate top = Pop();
      Symbol& left = At(top.position);
      if (left.id < 0 || left.next < 0) continue;
      Symbol& right = At(left.next);
      MergeTable::Merge merge = merges.Find(left.id, right.id);
      if (merge.rank != top.rank || merge.result != top.result) continue;
      left.id = merge.result;
      right.id = -1;
      left.next = right.next;
      if (left.next >= 0) At(left.next).previous = top.position;
      if (left.previous >= 0) Look(left.previous);
      Look(top.position);
    }
    for (const Symbol& symbol : symbols_) {
      if (symbol.id >= 0) ids->push_back(symbol.id);
    }
  }

 private:
  static constexpr size_t kShort = 48;

  // merge[i] is that of symbols i and i + 1; without one its rank is the largest.
  void RunShort(const std::vector<int32_t>& word, std::vector<int32_t>* ids) {
    int32_t id[kShort + 1];
    uint32_t rank[kShort + 1];
    int32_t result[kShort + 1];
    size_t n = word.size();
    auto look = [&](size_t i) {
      const MergeTable::Merge merge =
          i + 1 < n ? merges_->Find(id[i], id[i + 1]) : MergeTable::Merge{};
      rank[i] = static_cast<uint32_t>(merge.rank);  // −1 becomes the largest
      result[i] = merge.result;
    };
    std::copy(word.begin(), word.end(), id);
    for (size_t i = 0; i < n; ++i) look(i);
    while (n > 1) {
      size_t best = 0;
      for (size_t i = 1; i + 1 < n; ++i) best = rank[i] < rank[best] ? i : best;
      if (rank[best] == UINT32_MAX) break;
      id[best] = result[best];
      for (size_t i = best + 1; i + 1 < n; ++i) {
        id[i] = id[i + 1];
        rank[i] = rank[i + 1];
        result[i] = result[i + 1];
      }
      --n;
      look(best);
      if (best > 0) look(best - 1);
    }
    ids->insert(ids->end(), id, id + n);
  }
  void Begin(const std::vector<int32_t>& word) {
    int32_t n = static_cast<int32_t>(word.size());
    symbols_.clear();
    heap_.clear();
    for (int32_t i = 0; i < n; ++i) {
      symbols_.push_back({word[static_cast<size_t>(i)], i - 1, i + 1 < n ? i + 1 : -1});
    }
    for (int32_t i = 0; i + 1 < n; ++i) Look(i);
  }
  Symbol& At(int32_t i) { return symbols_[static_cast<size_t>(i)]; }
  void Look(int32_t position) {
    const Symbol& left = At(position);
    if (left.next < 0) return;
    MergeTable::Merge merge = merges_->Find(left.id, At(left.next).id);
    if (merge.rank < 0) return;
    heap_.push_back({merge.rank, position, merge.result});
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  }
  Candidate Pop() {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    Candidate top = heap_.back();
    heap_.pop_back();
    return top;
  }

  const MergeTable* merges_ = nullptr;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace

size_t MergeTable::Start(uint64_t key) const {
  uint64_t mixed = key * 0x9E3779B97F4A7C15;
  return static_cast<size_t>((mixed ^ mixed >> 32) & (slots_.size() - 1));
}

void MergeTable::Reserve(size_t merges) {
  size_t wanted = slots_.size();
  while (wanted < merges * 2) wanted *= 2;
  if (wanted == slots_.size()) return;
  std::vector<Slot> old(wanted);
  old.swap(slots_);
  used_ = 0;
  for (const Slot& slot : old) {
    if (slot.key == kEmpty) continue;
    Insert(static_cast<int32_t>(slot.key >> 32), static_cast<int32_t>(slot.key & 0xFFFFFFFF),
           slot.merge);
  }
}

void MergeTable::Insert(int32_t left, int32_t right, Merge merge) {
  if ((used_ + 1) * 2 > slots_.size()) Reserve(used_ * 2 + 2);
  uint64_t key = Key(left, right);
  for (size_t at = Start(key);; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].key != kEmpty && slots_[at].key != key) continue;
    if (slots_[at].key == kEmpty) ++used_;
    slots_[at] = {key, merge};
    return;
  }
}

MergeTable::Merge MergeTable::Find(int32_t left, int32_t right) const {
  uint64_t key = Key(left, right);
  for (size_t at = Start(key);; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].key == key) return slots_[at].merge;
    if (slots_[at].key == kEmpty) return {};
  }
}

void BpeModel::Begin(std::string_view word, std::vector<int32_t>* symbols) const {
  bool after_unknown = false;
  auto add_unknown = [&] {
    if (unknown >= 0 && !(fuse_unknown && after_unknown)) symbols->push_back(unknown);
    after_unknown = true;
  };
  while (!word.empty()) {
    Utf8Step step = from_bytes ? Utf8Step{Utf8Step::Kind::kInvalid, 1, 0} : NextUtf8(word);
    std::string_view head = word.substr(0, step.length);
    word.remove_prefix(step.length);
    auto token = from_bytes ? id_of.end() : id_of.find(head);
    if (token != id_of.end()) {
      symbols->push_back(token->second);
      after_unknown = false;
      continue;
    }
    bool bytes = from_bytes || byte_fallback;
    for (char byte : head) bytes = bytes && byte_id[static_cast<uint8_t>(byte)] >= 0;
    if (!bytes) {
      add_unknown();
      continue;
    }
    for (char byte : head) symbols->push_back(byte_id[static_cast<uint8_t>(byte)]);
    after_unknown = false;
  }
}

void BpeModel::Encode(std::string_view word, std::vector<int32_t>* ids) const {
  if (ignore_merges) {
    auto whole = id_of.find(word);
    if (whole != id_of.end()) {
      ids->push_back(whole->second);
      return;
    }
  }
  thread_local std::vector<int32_t> symbols;
  thread_local Merger merger;
  symbols.clear();
  Begin(word, &symbols);
  merger.Run(merges, symbols, ids);
}

void AddMergesFromRanks(const std::vector<std::string>& tokens, const std::vector<int32_t>& rank_of,
                        BpeModel* model) {
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (rank_of[id] < 0) continue;
    std::string_view token = tokens[id];
    for (size_t cut = 1; cut < token.size(); ++cut) {
      auto left = model->id_of.find(token.substr(0, cut));
      auto right = model->id_of.find(token.substr(cut));
      if (left == model->id_of.end() || right == model->id_of.end()) continue;
      model->merges.Insert(left->second, right->second, {rank_of[id], static_cast<int32_t>(id)});
    }
  }
}

}  // namespace hone::data
