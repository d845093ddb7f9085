#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>

#include "data/packing.h"
#include "tests/data/test_sources.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::data {
namespace {

using ::testing::HasSubstr;
using Options = DataLoader::Options;

constexpr const char* kEndless = "{family: chain, text: thinking, fine: 0.5}";
constexpr const char* kFinite = "{family: chain, text: thinking, fine: 0.5, count: 100}";

DataLoader Loader(const std::string& yaml, Options options) {
  return DataLoader(Examples(yaml), MakeByteTokenizer(), options);
}
Options Small() {
  Options options;
  options.packs = 4;
  options.pack_tokens = 256;
  options.max_length = 128;
  options.seed = 5;
  return options;
}

// Sequences of a batch as token lists (inputs and the last target), with their weights.
using Sequence = std::pair<std::vector<int32_t>, std::vector<float>>;
std::vector<Sequence> SequencesOf(const TokenBatch& batch) {
  std::vector<Sequence> sequences;
  for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
    auto begin = batch.cu_seqlens[s], end = batch.cu_seqlens[s + 1];
    Sequence sequence;
    sequence.first.assign(batch.token_T.begin() + begin, batch.token_T.begin() + end);
    sequence.first.push_back(batch.target_T[static_cast<size_t>(end) - 1]);
    sequence.second.assign(batch.loss_weight_T.begin() + begin, batch.loss_weight_T.begin() + end);
    sequences.push_back(sequence);
  }
  return sequences;
}
std::multimap<std::vector<int32_t>, std::vector<float>> All(
    const std::vector<DataLoader::StepData>& ranks) {
  std::multimap<std::vector<int32_t>, std::vector<float>> all;
  for (const auto& step : ranks) {
    for (const auto& batch : step.microbatches) {
      for (auto& sequence : SequencesOf(batch)) all.insert(sequence);
    }
  }
  return all;
}
bool SameBatches(const DataLoader::StepData& a, const DataLoader::StepData& b) {
  if (a.tokens != b.tokens || a.microbatches.size() != b.microbatches.size()) return false;
  for (size_t m = 0; m < a.microbatches.size(); ++m) {
    const TokenBatch &x = a.microbatches[m], &y = b.microbatches[m];
    if (x.token_T != y.token_T || x.cu_seqlens != y.cu_seqlens || x.target_T != y.target_T ||
        x.loss_weight_T != y.loss_weight_T) {
      return false;
    }
  }
  return true;
}

TEST(DataLoader, PacksAreNearlyFullAndWeightsSumToOne) {
  DataLoader loader = Loader(kEndless, Small());
  for (int step = 0; step < 20; ++step) {
    auto data = loader.Next();
    ASSERT_EQ(data.microbatches.size(), 4u);
    int64_t tokens = 0;
    double weight = 0;
    for (const auto& batch : data.microbatches) {
      EXPECT_LE(batch.tokens(), 256);
      EXPECT_NO_THROW(batch.Validate(263, 128, "test"));
      tokens += batch.tokens();
      for (float w : batch.loss_weight_T) weight += w;
    }
    EXPECT_EQ(tokens, data.tokens);
    EXPECT_GT(tokens, 4 * 256 * 85 / 100);
    EXPECT_NEAR(weight, 1, 1e-5);
  }
}

TEST(DataLoader, TheSameGlobalBatchUnderEveryLayout) {
  for (const char* yaml : {kEndless, kFinite}) {
    DataLoader alone = Loader(yaml, Small());
    std::map<int, std::vector<DataLoader>> layouts;
    for (int dp : {2, 4}) {
      for (int rank = 0; rank < dp; ++rank) {
        Options options = Small();
        options.dp = dp;
        options.dp_rank = rank;
        layouts[dp].push_back(Loader(yaml, options));
      }
    }
    for (int step = 0; step < 12; ++step) {
      auto expected = alone.Next();
      for (auto& [dp, loaders] : layouts) {
        std::vector<DataLoader::StepData> ranks;
        for (auto& loader : loaders) ranks.push_back(loader.Next());
        for (const auto& rank : ranks) {
          EXPECT_EQ(rank.microbatches.size(), ranks[0].microbatches.size());
          EXPECT_EQ(rank.tokens, expected.tokens);
        }
        EXPECT_EQ(All(ranks), All({expected})) << "dp " << dp << " step " << step;
      }
    }
  }
}

TEST(DataLoader, ResumedIsNeverStopped) {
  for (const char* yaml : {kEndless, kFinite}) {
    DataLoader through = Loader(yaml, Small());
    LoaderState state;
    for (int step = 0; step < 15; ++step) {
      DataLoader fresh = Loader(yaml, Small());
      fresh.set_state(state);
      auto a = through.Next(), b = fresh.Next();
      ASSERT_TRUE(SameBatches(a, b)) << yaml << " step " << step;
      state = through.state();
      EXPECT_EQ(state.next_index, fresh.state().next_index);
      EXPECT_EQ(state.epoch, fresh.state().epoch);
    }
    if (yaml == kFinite) {
      EXPECT_GT(state.epoch, 1);
    }
  }
}

// Every sequence that a loader gives until it ends, in order.
std::vector<std::vector<int32_t>> Drain(DataLoader loader) {
  std::vector<std::vector<int32_t>> all;
  for (auto data = loader.Next(); !data.end; data = loader.Next()) {
    for (const auto& batch : data.microbatches) {
      for (const auto& [tokens, weight] : SequencesOf(batch)) all.push_back(tokens);
    }
  }
  EXPECT_TRUE(loader.Next().end);
  return all;
}

TEST(DataLoader, EveryEpochHasEachExampleOnceInAnotherOrder) {
  // Packs so small that a step often has to give sequences back.
  const char* yaml = "{family: chain, levels: [2, 3], text: thinking, count: 100}";
  auto tokenizer = MakeByteTokenizer();
  auto source = Examples(yaml);
  std::map<std::vector<int32_t>, int> expected;
  for (int64_t i = 0; i < source->size(); ++i) {
    ++expected[Tokenize(*tokenizer, source->At(i), 128, "").tokens];
  }
  Options options = Small();
  options.pack_tokens = 70;
  options.repeat = false;
  options.epochs = 3;
  std::map<std::vector<int32_t>, int> seen;
  for (const auto& tokens : Drain(Loader(yaml, options))) ++seen[tokens];
  EXPECT_EQ(seen.size(), expected.size());
  for (const auto& [tokens, count] : seen) EXPECT_EQ(count, 3 * expected[tokens]);

  // One sequence a step shows the order itself.
  options.packs = 1;
  options.pack_tokens = 60;
  options.epochs = 2;
  auto order = Drain(Loader(yaml, options));
  ASSERT_EQ(order.size(), 200u);
  auto middle = order.begin() + 100;
  EXPECT_FALSE(std::equal(order.begin(), middle, middle));
}

// Over all examples in two parts, as two ranks would measure them.
TEST(DataLoader, StepsAreCountedFromLengths) {
  ThreadPool pool(3);
  const runtime::TemporaryFolder folder;
  const std::string text = folder / "count_steps.jsonl";
  for (int seed = 0; seed < 20; ++seed) {
    std::ofstream file(text);
    const int examples = 1 + seed * 17;
    for (int i = 0; i < examples; ++i) {
      file << R"({"prompt": "p", "completion": ")" << std::string((i * i + seed) % 61, 'x')
           << "\"}\n";
    }
    file.close();
    Options options;
    options.packs = 6;
    options.pack_tokens = 50;
    options.max_length = 50;
    options.drop_too_long = true;
    options.seed = static_cast<uint64_t>(seed);
    options.repeat = false;
    options.epochs = 1 + seed % 3;
    for (int dp = 1; dp <= 3; ++dp) {
      options.dp = dp;
      options.dp_rank = dp - 1;
      DataLoader loader = Loader("{jsonl: " + text + "}", options);
      std::vector<int32_t> lengths = loader.Lengths(0, examples / 2, pool);
      for (int32_t n : loader.Lengths(examples / 2, examples, pool)) lengths.push_back(n);
      int64_t steps = 0;
      const int64_t counted = loader.CountSteps(lengths);
      while (!loader.Next().end) ++steps;
      EXPECT_EQ(counted, steps) << "seed " << seed << ", dp " << dp;
    }
  }
}

TEST(DataLoader, OrderIsTheSeeds) {
  Options options = Small();
  auto first = Loader(kFinite, options).Next();
  EXPECT_TRUE(SameBatches(first, Loader(kFinite, options).Next()));
  EXPECT_THAT(MessageOf<DataError>([&] {
                Loader(kFinite, options).set_state({100, 0});
              }),
              HasSubstr("100 examples"));
  EXPECT_NO_THROW(Loader(kEndless, options).set_state({100, 0}));
  options.seed = 6;
  EXPECT_FALSE(SameBatches(first, Loader(kFinite, options).Next()));
}

TEST(DataLoader, ALastStepWithFewSequencesGivesEveryRankABatch) {
  Options options = Small();
  options.repeat = false;
  options.dp = 4;
  double weight = 0;
  for (int rank = 0; rank < 4; ++rank) {
    options.dp_rank = rank;
    DataLoader loader = Loader("{family: chain, text: answer, count: 2}", options);
    auto data = loader.Next();
    ASSERT_EQ(data.microbatches.size(), 1u);
    EXPECT_NO_THROW(data.microbatches[0].Validate(263, 128, "test"));
    for (float w : data.microbatches[0].loss_weight_T) weight += w;
    EXPECT_TRUE(loader.Next().end);
  }
  EXPECT_NEAR(weight, 1, 1e-6);
}

TEST(DataLoader, TooLongIsFoundAtConstruction) {
  Options options = Small();
  options.max_length = 10;
  std::string message = MessageOf<DataError>([&] { Loader(kFinite, options); });
  EXPECT_THAT(message, HasSubstr("do not fit into 10"));
  options.max_length = 40;
  options.drop_too_long = true;
  DataLoader loader = Loader(kFinite, options);
  for (const auto& batch : loader.Next().microbatches) {
    for (const auto& [tokens, weight] : SequencesOf(batch)) EXPECT_LE(tokens.size(), 40u);
  }
}

TEST(DataLoader, TooLongInAFileIsNamedByItsLineEvenInsideAMixture) {
  const runtime::TemporaryFolder folder;
  const std::string path = folder / "too_long.jsonl";
  std::ofstream(path) << R"({"prompt": "a", "completion": "b"})"
                      << "\n"
                      << R"({"prompt": "a", "completion": ")" << std::string(200, 'x') << "\"}\n";
  std::string yaml =
      "{mixture: [{weight: 0.999, family: chain, text: answer}, {weight: 0.001, jsonl: " + path +
      "}]}";
  EXPECT_THAT(MessageOf<DataError>([&] { Loader(yaml, Small()); }),
              HasSubstr("too_long.jsonl:2: 202 tokens"));
}

TEST(DataLoader, LayoutsThatDoNotFitAreRefused) {
  Options options = Small();
  options.dp = 3;
  EXPECT_THAT(MessageOf<ConfigError>([&] { Loader(kEndless, options); }),
              HasSubstr("4 packs do not split over dp = 3"));
}

}  // namespace
}  // namespace hone::data
