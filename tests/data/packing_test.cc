#include "data/packing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "runtime/philox.h"
#include "tests/data/test_sources.h"

namespace hone::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Tokenize, LossIsOnTheCompletionAndItsEnd) {
  auto tokenizer = MakeByteTokenizer();
  TokenSequence s = Tokenize(*tokenizer, {"Q:", "<answer>6</answer>"}, 100, "here");
  EXPECT_THAT(s.tokens, ElementsAre('Q', ':', 261, '6', 262, 257));
  EXPECT_THAT(s.weight, ElementsAre(0, 0, 1, 1, 1, 1));
}

TEST(Tokenize, TooLongNamesThePlaceAndTheNumbers) {
  auto tokenizer = MakeByteTokenizer();
  EXPECT_NO_THROW(Tokenize(*tokenizer, {"ab", "c"}, 4, "train.jsonl:7"));
  std::string message = MessageOf<DataError>([&] {
    Tokenize(*tokenizer, {"ab", "cd"}, 4, "train.jsonl:7");
  });
  EXPECT_THAT(message, HasSubstr("train.jsonl:7: 5 tokens"));
  EXPECT_THAT(message, HasSubstr("into 4"));
  EXPECT_THROW(Tokenize(*tokenizer, {"", ""}, 4, ""), DataError);
}

TEST(BestFitPack, FillsTheTightestGap) {
  // 7 and 6 open packs; 3 fits 7's pack exactly, 4 the other one.
  EXPECT_THAT(BestFitPack({3, 7, 4, 6}, 10), ElementsAre(ElementsAre(1, 0), ElementsAre(3, 2)));
  EXPECT_THROW(BestFitPack({11}, 10), DataError);
  EXPECT_TRUE(BestFitPack({}, 10).empty());
}

TEST(BestFitPack, LosesNothingAndNeverOverfills) {
  for (uint64_t round = 0; round < 200; ++round) {
    RandomStream stream({11, round});
    std::vector<int64_t> lengths(1 + stream.Below(300, 0));
    for (size_t i = 0; i < lengths.size(); ++i) {
      lengths[i] = 1 + static_cast<int64_t>(stream.Below(64, i + 1));
    }
    std::multiset<int64_t> seen;
    int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    auto packs = BestFitPack(lengths, 64);
    for (const auto& pack : packs) {
      int64_t tokens = 0;
      for (int64_t i : pack) tokens += lengths[static_cast<size_t>(i)];
      EXPECT_LE(tokens, 64);
      seen.insert(pack.begin(), pack.end());
    }
    std::multiset<int64_t> all;
    for (size_t i = 0; i < lengths.size(); ++i) all.insert(static_cast<int64_t>(i));
    EXPECT_EQ(seen, all);
    // Best fit decreasing needs at most 11/9 of the best possible, and one more.
    EXPECT_LE(static_cast<int64_t>(packs.size()), ((total + 63) / 64) * 11 / 9 + 4);
  }
}

TEST(MakeBatch, LaysSequencesEndToEnd) {
  TokenSequence a{{1, 2, 3}, {0, 0, 1}}, b{{4, 5}, {0, 0.5f}};
  TokenBatch batch = MakeBatch({&a, &b});
  EXPECT_THAT(batch.token_T, ElementsAre(1, 2, 4));
  EXPECT_THAT(batch.target_T, ElementsAre(2, 3, 5));
  EXPECT_THAT(batch.position_T, ElementsAre(0, 1, 0));
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0, 2, 3));
  EXPECT_THAT(batch.loss_weight_T, ElementsAre(0, 1, 0.5f));
  EXPECT_NO_THROW(batch.Validate(6, 2, "test"));
}

TEST(BalancePacks, SameNumberAndNearlyTheSameTokens) {
  EXPECT_THAT(BalancePacks({10, 9, 2, 1}, 2), ElementsAre(ElementsAre(0, 3), ElementsAre(1, 2)));
  EXPECT_THAT(BalancePacks({10, 9, 2}, 2), ElementsAre(ElementsAre(0, -1), ElementsAre(1, 2)));
  for (uint64_t round = 0; round < 50; ++round) {
    RandomStream stream({12, round});
    std::vector<int64_t> tokens(32);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = 900 + stream.Below(124, i);
    std::vector<int64_t> load;
    std::set<int64_t> seen;
    for (const auto& packs : BalancePacks(tokens, 4)) {
      EXPECT_EQ(packs.size(), 8u);
      load.push_back(0);
      for (int64_t p : packs) load.back() += tokens[static_cast<size_t>(p)];
      seen.insert(packs.begin(), packs.end());
    }
    EXPECT_EQ(seen.size(), 32u);
    auto [low, high] = std::minmax_element(load.begin(), load.end());
    EXPECT_LE(*high - *low, 124);
  }
}

TEST(NormalizeLossWeights, SumToOneOverTheStep) {
  TokenSequence a{{1, 2, 3}, {0, 1, 1}}, b{{4, 5, 6}, {0, 0, 2}};
  std::vector<TokenBatch> batches = {MakeBatch({&a}), MakeBatch({&b})};
  NormalizeLossWeights(&batches, 4);
  EXPECT_THAT(batches[0].loss_weight_T, ElementsAre(0.25f, 0.25f));
  EXPECT_THAT(batches[1].loss_weight_T, ElementsAre(0, 0.5f));
}

}  // namespace
}  // namespace hone::data
