#include <algorithm>
#include <numeric>

#include "data/packing.h"
#include "data/permutation.h"
#include "runtime/error.h"

namespace hone::data {
namespace {

constexpr int64_t kCheckedWhole = 50'000, kCheckedOfEndless = 1000;
constexpr int64_t kDroppedInARow = 100'000;

// 0 of one that was dropped.
int64_t Inputs(const TokenSequence& sequence) {
  return std::max<int64_t>(static_cast<int64_t>(sequence.tokens.size()) - 1, 0);
}

// Halves the packs with most sequences until there are `count`, or every pack holds one.
void SplitUpTo(size_t count, std::vector<std::vector<int64_t>>* packs) {
  while (packs->size() < count) {
    auto largest = std::max_element(packs->begin(), packs->end(), [](const auto& a, const auto& b) {
      return a.size() < b.size();
    });
    if (largest == packs->end() || largest->size() < 2) return;
    auto middle = largest->begin() + static_cast<std::ptrdiff_t>(largest->size() / 2);
    std::vector<int64_t> second(middle, largest->end());
    largest->erase(middle, largest->end());
    packs->push_back(std::move(second));
  }
}

}  // namespace

struct DataLoader::Impl {
  std::shared_ptr<ExampleSource> source;
  std::shared_ptr<const Tokenizer> tokenizer;
  Options options;
  LoaderState state;

  int64_t limit() const { return std::min(options.max_length, options.pack_tokens + 1); }
  bool finite() const { return source->size() >= 0; }

  bool AtEnd(const LoaderState& at) const {
    return finite() && (source->size() == 0 || (!options.repeat && at.epoch >= options.epochs));
  }
  LoaderState After(LoaderState at) const {
    if (++at.next_index == source->size()) return {0, at.epoch + 1};
    return at;
  }
  int64_t IndexOf(const LoaderState& at) const {
    if (!finite()) return at.next_index;
    SeededPermutation order(static_cast<uint64_t>(source->size()), options.seed,
                            static_cast<uint64_t>(at.epoch));
    return static_cast<int64_t>(order(static_cast<uint64_t>(at.next_index)));
  }

  // An empty sequence stands for one that was dropped.
  TokenSequence Load(int64_t index) const { return Load(*source, index); }
  TokenSequence Load(const ExampleSource& from, int64_t index) const {
    std::string where = from.Where(index);
    if (!options.drop_too_long)
      return Tokenize(*tokenizer, from.At(index), limit(), where, options.with_end);
    TokenSequence sequence =
        Tokenize(*tokenizer, from.At(index), INT64_MAX, where, options.with_end);
    return static_cast<int64_t>(sequence.tokens.size()) <= limit() ? sequence : TokenSequence{};
  }

  void CheckSource(const ExampleSource& from) const {
    auto parts = from.Parts();
    for (const ExampleSource* part : parts) CheckSource(*part);
    if (!parts.empty()) return;
    Check<DataError>(from.size() != 0, "[data_loader] a source has no examples");
    if (from.size() > kCheckedWhole) return;
    int64_t count = from.size() < 0 ? kCheckedOfEndless : from.size(), kept = 0;
    for (int64_t i = 0; i < count; ++i) kept += Load(from, i).tokens.empty() ? 0 : 1;
    Check<DataError>(kept > 0, "[data_loader] none of {} examples ({} …) fits into {} tokens",
                     count, from.Where(0), limit());
  }

  // What is in a step: as many sequences as fit into `packs` packs when packed best-fit.
  struct Draw {
    std::vector<int64_t> lengths;    // inputs of each sequence
    std::vector<LoaderState> after;  // where the order stands behind each sequence
    std::vector<std::vector<int64_t>> packs;
  };
  // `inputs_of` gives an example's inputs, 0 where it is dropped: it is asked once for each that is
  // taken, in order, and perhaps for one more.
  template <class InputsOf>
  Draw DrawStep(LoaderState at, InputsOf&& inputs_of) const {
    Draw draw;
    int64_t room = options.packs * options.pack_tokens, dropped = 0;
    for (; !AtEnd(at); at = After(at)) {
      const int64_t inputs = inputs_of(IndexOf(at));
      if (inputs == 0) {
        Check<DataError>(++dropped < kDroppedInARow,
                         "[data_loader] {} examples in a row exceed {} tokens", dropped, limit());
        continue;
      }
      dropped = 0;
      room -= inputs;
      if (room < 0) break;
      draw.lengths.push_back(inputs);
      draw.after.push_back(After(at));
    }
    while (true) {
      draw.packs = BestFitPack(draw.lengths, options.pack_tokens);
      if (static_cast<int64_t>(draw.packs.size()) <= options.packs) break;
      GiveBack(&draw);
    }
    SplitUpTo(static_cast<size_t>(options.packs), &draw.packs);
    return draw;
  }
  // Leaves the last sequences for the next step: as many tokens as the surplus packs hold.
  void GiveBack(Draw* draw) const {
    int64_t surplus = 0;
    for (size_t p = static_cast<size_t>(options.packs); p < draw->packs.size(); ++p) {
      for (int64_t i : draw->packs[p]) surplus += draw->lengths[static_cast<size_t>(i)];
    }
    while (!draw->lengths.empty() && surplus > 0) {
      surplus -= draw->lengths.back();
      draw->lengths.pop_back();
      draw->after.pop_back();
    }
  }

  TokenBatch Batch(const Draw& draw, const std::vector<TokenSequence>& sequences,
                   int64_t pack) const {
    if (pack < 0) return WeightlessBatch(*tokenizer);
    std::vector<const TokenSequence*> members;
    for (int64_t i : draw.packs[static_cast<size_t>(pack)]) {
      members.push_back(&sequences[static_cast<size_t>(i)]);
    }
    return MakeBatch(members);
  }
};

DataLoader::DataLoader(std::shared_ptr<ExampleSource> source,
                       std::shared_ptr<const Tokenizer> tokenizer, Options options)
    : impl_(std::make_unique<Impl>(Impl{std::move(source), std::move(tokenizer), options, {}})) {
  Check<ConfigError>(options.packs >= 1 && options.pack_tokens >= 1 && options.max_length >= 2,
                     "[data_loader] packs {}, pack_tokens {} and max_length {} must be positive",
                     options.packs, options.pack_tokens, options.max_length);
  Check<ConfigError>(options.dp >= 1 && options.packs % options.dp == 0,
                     "[data_loader] {} packs do not split over dp = {}; choose a multiple of it",
                     options.packs, options.dp);
  Check<ConfigError>(options.dp_rank >= 0 && options.dp_rank < options.dp,
                     "[data_loader] dp_rank {} is not below dp = {}", options.dp_rank, options.dp);
  impl_->CheckSource(*impl_->source);
}

DataLoader::~DataLoader() = default;
DataLoader::DataLoader(DataLoader&&) noexcept = default;
DataLoader& DataLoader::operator=(DataLoader&&) noexcept = default;

DataLoader::StepData DataLoader::Next() {
  StepData step;
  std::vector<TokenSequence> sequences;
  const Impl::Draw draw = impl_->DrawStep(impl_->state, [&](int64_t index) {
    TokenSequence sequence = impl_->Load(index);
    const int64_t inputs = Inputs(sequence);
    if (inputs > 0) sequences.push_back(std::move(sequence));
    return inputs;
  });
  if (draw.lengths.empty()) {
    step.end = true;
    return step;
  }
  sequences.resize(draw.lengths.size());
  impl_->state = draw.after.back();
  double weight = 0;
  for (const TokenSequence& sequence : sequences) {
    step.tokens += Inputs(sequence);
    for (size_t i = 1; i < sequence.weight.size(); ++i) weight += sequence.weight[i];
  }
  std::vector<int64_t> pack_tokens;
  for (const auto& pack : draw.packs) {
    int64_t tokens = 0;
    for (int64_t i : pack) tokens += draw.lengths[static_cast<size_t>(i)];
    pack_tokens.push_back(tokens);
  }
  auto assigned = BalancePacks(pack_tokens, impl_->options.dp);
  for (int64_t pack : assigned[static_cast<size_t>(impl_->options.dp_rank)]) {
    step.microbatches.push_back(impl_->Batch(draw, sequences, pack));
  }
  NormalizeLossWeights(&step.microbatches, weight);
  return step;
}

std::vector<int32_t> DataLoader::Lengths(int64_t begin, int64_t end, ThreadPool& pool) const {
  std::vector<int32_t> lengths(static_cast<size_t>(end - begin));
  pool.ParallelFor(end - begin, 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      lengths[static_cast<size_t>(i)] = static_cast<int32_t>(Inputs(impl_->Load(begin + i)));
    }
  });
  return lengths;
}

int64_t DataLoader::CountSteps(const std::vector<int32_t>& lengths) const {
  Check<Error>(static_cast<int64_t>(lengths.size()) == impl_->source->size(),
               "[data_loader] {} lengths of {} examples", lengths.size(), impl_->source->size());
  int64_t steps = 0;
  for (LoaderState at; !impl_->AtEnd(at); ++steps) {
    const Impl::Draw draw = impl_->DrawStep(
        at, [&](int64_t index) -> int64_t { return lengths[static_cast<size_t>(index)]; });
    if (draw.after.empty()) break;
    at = draw.after.back();
  }
  return steps;
}

LoaderState DataLoader::state() const { return impl_->state; }
void DataLoader::set_state(const LoaderState& state) {
  Check<DataError>(state.next_index >= 0 && state.epoch >= 0 &&
                       (!impl_->finite() || state.next_index < impl_->source->size()),
                   "[data_loader] the data have {} examples; a saved position is example {} of "
                   "epoch {}: they are not what they were",
                   impl_->source->size(), state.next_index, state.epoch);
  impl_->state = state;
}

}  // namespace hone::data
