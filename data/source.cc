#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/families/family.h"
#include "data/jsonl.h"
#include "data/permutation.h"
#include "data/task.h"
#include "runtime/error.h"

namespace hone::data {
namespace {

template <class Item>
using PartList = std::vector<std::unique_ptr<Source<Item>>>;

// A source made of others.
template <class Item>
class Compound : public Source<Item> {
 public:
  explicit Compound(PartList<Item> parts) : parts_(std::move(parts)) {}
  Item At(int64_t index) const override {
    auto [part, rank] = Find(index);
    return part->At(rank);
  }
  std::string Where(int64_t index) const override {
    auto [part, rank] = Find(index);
    return part->Where(rank);
  }
  std::vector<const Source<Item>*> Parts() const override {
    std::vector<const Source<Item>*> parts;
    for (const auto& part : parts_) parts.push_back(part.get());
    return parts;
  }

 protected:
  struct Place {
    const Source<Item>* part;
    int64_t rank;  // of the item in that part
  };
  virtual Place Find(int64_t index) const = 0;
  PartList<Item> parts_;
};

// One after the other; all finite.
template <class Item>
class Concatenation : public Compound<Item> {
 public:
  explicit Concatenation(PartList<Item> parts) : Compound<Item>(std::move(parts)) {
    for (const auto& part : this->parts_) size_ += part->size();
  }
  int64_t size() const override { return size_; }

 private:
  typename Compound<Item>::Place Find(int64_t index) const override {
    for (const auto& part : this->parts_) {
      if (index < part->size()) return {part.get(), index};
      index -= part->size();
    }
    throw Error("[concat] index past the end");
  }

  int64_t size_ = 0;
};

// A weighted choice, in rounds of kRound items: in each round every part has its exact share (to
// within one item), in an order drawn once from the seed. So a part's items are met one by one: an
// endless part in its own order, a finite one in a new seeded order each time through.
template <class Item>
class Mixture : public Compound<Item> {
 public:
  Mixture(PartList<Item> parts, const std::vector<double>& weights, uint64_t seed)
      : Compound<Item>(std::move(parts)), seed_(seed), quota_(weights.size(), 0) {
    std::vector<size_t> part_of;
    double total = std::accumulate(weights.begin(), weights.end(), 0.0), upto = 0;
    for (size_t p = 0; p < weights.size(); ++p) {
      upto += weights[p];
      size_t end = static_cast<size_t>(std::llround(upto / total * kRound));
      while (part_of.size() < end) part_of.push_back(p);
    }
    SeededPermutation order(kRound, seed, HashName("mixture"));
    for (uint64_t i = 0; i < kRound; ++i) {
      size_t part = part_of[order(i)];
      slots_.push_back({part, quota_[part]++});
    }
  }
  int64_t size() const override { return -1; }
  int64_t quota(size_t part) const { return quota_[part]; }  // of a round

  static constexpr int64_t kRound = 1000;

 private:
  typename Compound<Item>::Place Find(int64_t index) const override {
    const Slot& slot = slots_[static_cast<size_t>(index % kRound)];
    const Source<Item>& part = *this->parts_[slot.part];
    int64_t rank = index / kRound * quota_[slot.part] + slot.rank;
    if (part.size() < 0) return {&part, rank};
    SeededPermutation order(static_cast<uint64_t>(part.size()), seed_ + slot.part,
                            static_cast<uint64_t>(rank / part.size()));
    return {&part, static_cast<int64_t>(order(static_cast<uint64_t>(rank % part.size())))};
  }

  struct Slot {
    size_t part;
    int64_t rank;  // among the part's items of a round
  };
  uint64_t seed_;
  std::vector<int64_t> quota_;
  std::vector<Slot> slots_;
};

template <class Item>
std::unique_ptr<Source<Item>> Make(ConfigReader& config, uint64_t seed);

template <>
std::unique_ptr<ProblemSource> Make<Problem>(ConfigReader& config, uint64_t seed) {
  return MakeProblemSource(config, seed);
}
template <>
std::unique_ptr<ExampleSource> Make<Example>(ConfigReader& config, uint64_t seed) {
  return MakeExampleSource(config, seed);
}

template <>
std::unique_ptr<PreferenceSource> Make<Preference>(ConfigReader& config, uint64_t seed) {
  return MakePreferenceSource(config, seed);
}

template <class Item>
std::unique_ptr<Source<Item>> MakeMixture(ConfigReader& config, uint64_t seed) {
  PartList<Item> parts;
  std::vector<double> weights;
  for (ConfigReader* part : config.List("mixture")) {
    double weight = 0;
    part->Required("weight", &weight);
    if (!(weight > 0) || !std::isfinite(weight)) part->Fail("weight", "must be positive");
    weights.push_back(weight);
    // Parts of the same kind must not repeat each other's items.
    parts.push_back(Make<Item>(*part, seed + 0x9E3779B97F4A7C15 * parts.size()));
  }
  if (parts.empty()) config.Fail("mixture", "is empty");
  auto mixture = std::make_unique<Mixture<Item>>(std::move(parts), weights, seed);
  const std::vector<ConfigReader*> maps = config.List("mixture");
  for (size_t p = 0; p < maps.size(); ++p) {
    if (mixture->quota(p) > 0) continue;
    maps[p]->Fail("weight", fmt::format("is too small beside the others: a part is at least one of "
                                        "{} items",
                                        Mixture<Item>::kRound));
  }
  return mixture;
}

template <class Item>
std::unique_ptr<Source<Item>> MakeConcatenation(ConfigReader& config, uint64_t seed) {
  PartList<Item> parts;
  for (ConfigReader* part : config.List("concat")) {
    parts.push_back(Make<Item>(*part, seed + 0x9E3779B97F4A7C15 * parts.size()));
    if (parts.back()->size() < 0) part->Fail("count", "is needed: only finite parts can be joined");
  }
  if (parts.empty()) config.Fail("concat", "is empty");
  return std::make_unique<Concatenation<Item>>(std::move(parts));
}

// Which of the four kinds of source a map describes.
std::string KindOf(ConfigReader& config) {
  std::string kind;
  for (const char* key : {"family", "jsonl", "mixture", "concat"}) {
    if (!config.Has(key)) continue;
    if (!kind.empty()) config.Fail(key, "stands beside '" + kind + "': a source has one of them");
    kind = key;
  }
  if (kind.empty()) config.Fail("", "a source needs one of: family, jsonl, mixture, concat");
  return kind;
}

}  // namespace

std::unique_ptr<ProblemSource> MakeProblemSource(ConfigReader& config, uint64_t seed) {
  std::string kind = KindOf(config);
  if (kind == "mixture") return MakeMixture<Problem>(config, seed);
  if (kind == "concat") return MakeConcatenation<Problem>(config, seed);
  return kind == "jsonl" ? MakeJsonlProblems(config) : MakeGeneratedProblems(config, seed);
}

std::unique_ptr<ExampleSource> MakeExampleSource(ConfigReader& config, uint64_t seed) {
  std::string kind = KindOf(config);
  if (kind == "mixture") return MakeMixture<Example>(config, seed);
  if (kind == "concat") return MakeConcatenation<Example>(config, seed);
  return kind == "jsonl" ? MakeJsonlExamples(config) : MakeGeneratedExamples(config, seed);
}

std::unique_ptr<PreferenceSource> MakePreferenceSource(ConfigReader& config, uint64_t seed) {
  std::string kind = KindOf(config);
  if (kind == "mixture") return MakeMixture<Preference>(config, seed);
  if (kind == "concat") return MakeConcatenation<Preference>(config, seed);
  return kind == "jsonl" ? MakeJsonlPreferences(config) : MakeGeneratedPreferences(config, seed);
}

}  // namespace hone::data
