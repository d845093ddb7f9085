// Reward models: the losses against formula and finite differences, what a step trains on, a stage
// that learns a preference in any layout, and its use as a frozen scorer.
#include "rl/stages/reward_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Three sequences' worth of tokens each; weights as MakePreferenceBatches lays them.
TokenBatch FourSequences(bool pairwise) {
  TokenBatch batch;
  batch.cu_seqlens = {0, 2, 5, 6, 9};
  batch.token_T.assign(9, 0);
  batch.target_T.assign(9, 0);
  batch.loss_weight_T.assign(9, 0.0f);
  batch.sample_S = pairwise ? std::vector<int32_t>{4, 5, 6, 7} : std::vector<int32_t>{0, 3, 4, 7};
  if (pairwise) {
    batch.loss_weight_T[1] = 0.25f;
    batch.loss_weight_T[5] = 0.5f;
  } else {
    for (int last : {1, 4, 5, 8}) batch.loss_weight_T[last] = 0.125f * static_cast<float>(last);
  }
  return batch;
}

parallel::LossFunction::Result Evaluate(PreferenceMode mode, const TokenBatch& batch,
                                        std::vector<double> values) {
  Context ctx;
  parallel::HeadOutput out;
  out.value_T = ctx.Clone(
      Tensor(values.data(), {static_cast<int64_t>(values.size())}, DType::kF64, Device::Cpu()));
  return RewardModelLoss(mode).Evaluate(ctx, batch, out);
}

double LogSigmoid(double x) { return -std::log(1 + std::exp(-x)); }

const std::vector<double> kValues = {0.3, 0.7, -1, 2, 1.5, -0.4, 0.2, 0.1, -0.9};

TEST(RewardModelLoss, IsTheFormulaAtLastTokens) {
  auto pairwise = Evaluate(PreferenceMode::kPairwise, FourSequences(true), kValues);
  EXPECT_NEAR(pairwise.loss, -0.25 * LogSigmoid(0.7 - 1.5) - 0.5 * LogSigmoid(-0.4 + 0.9), 1e-12);
  EXPECT_DOUBLE_EQ(pairwise.metrics.at("accuracy"), 0.5);
  EXPECT_NEAR(pairwise.metrics.at("margin"), 0.25 * -0.8 + 0.5 * 0.5, 1e-12);
  auto pointwise = Evaluate(PreferenceMode::kPointwise, FourSequences(false), kValues);
  EXPECT_NEAR(pointwise.loss,
              -0.125 * LogSigmoid(0.7) - 0.5 * LogSigmoid(-1.5) - 0.625 * LogSigmoid(-0.4) -
                  1.0 * LogSigmoid(0.9),
              1e-12);
  EXPECT_DOUBLE_EQ(pointwise.metrics.at("accuracy"), 0.125 + 1.0);
}

TEST(RewardModelLoss, GradientIsTheDifferenceQuotient) {
  for (auto mode : {PreferenceMode::kPairwise, PreferenceMode::kPointwise}) {
    TokenBatch batch = FourSequences(mode == PreferenceMode::kPairwise);
    auto gradient = runtime::ToDoubles(Evaluate(mode, batch, kValues).gradient.dvalue_T);
    for (size_t t = 0; t < kValues.size(); ++t) {
      std::vector<double> up = kValues, down = kValues;
      up[t] += 1e-5;
      down[t] -= 1e-5;
      double slope = (Evaluate(mode, batch, up).loss - Evaluate(mode, batch, down).loss) / 2e-5;
      EXPECT_NEAR(gradient[t], slope, 1e-9) << "token " << t;
    }
  }
}

TEST(RewardModelLoss, StaysFiniteFarOut) {
  std::vector<double> far(9, 0.0);
  far[1] = -2000;
  far[8] = 3000;
  auto result = Evaluate(PreferenceMode::kPairwise, FourSequences(true), far);
  EXPECT_NEAR(result.loss, 0.25 * 2000 + 0.5 * 3000, 1e-9);
  for (double g : runtime::ToDoubles(result.gradient.dvalue_T)) EXPECT_TRUE(std::isfinite(g));
}

TEST(RewardModelLoss, RefusesAPairTornApart) {
  TokenBatch batch = FourSequences(true);
  batch.sample_S = {4, 7, 6, 5};
  EXPECT_THROW(Evaluate(PreferenceMode::kPairwise, batch, kValues), ShapeError);
}

TEST(ScoredPart, IsTheAnswerOrAll) {
  using Scores = RewardModelConfig::Scores;
  const std::string text = "<think>because</think><answer>hi</answer>";
  EXPECT_EQ(ScoredPart(text, Scores::kAnswer), "hi");
  EXPECT_EQ(ScoredPart("no tags", Scores::kAnswer), "no tags");
  EXPECT_EQ(ScoredPart(text, Scores::kResponse), text);
}

// What the value is read at, and what it is held to: by hand, for two items a mode.
TEST(PreferenceBatches, LayItemsOutWithLabelsAndWeights) {
  const auto tokenizer = data::LoadTokenizer("byte", {});
  const int32_t eos = tokenizer->eos_id();
  BatchConfig batch;
  batch.max_length = 16;
  batch.pack_tokens = 32;
  auto lay = [&](PreferenceMode mode, const std::vector<data::Preference>& preferences) {
    RewardModelConfig config;
    config.mode = mode;
    std::vector<PreferenceItem> items;
    for (const auto& p : preferences) {
      items.push_back(MakePreferenceItem(*tokenizer, p, config, batch, "here"));
    }
    auto laid = MakePreferenceBatches(items, 32, 1, 0);
    EXPECT_EQ(laid.microbatches.size(), 1u);
    return laid.microbatches.at(0);
  };
  TokenBatch pairs = lay(PreferenceMode::kPairwise, {{"p", "ab", "c"}, {"q", "d", "ef"}});
  EXPECT_THAT(pairs.token_T,
              ElementsAre('p', 'a', 'b', eos, 'p', 'c', eos, 'q', 'd', eos, 'q', 'e', 'f', eos));
  EXPECT_THAT(pairs.sample_S, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(pairs.cu_seqlens, ElementsAre(0, 4, 7, 10, 14));
  for (size_t t = 0; t < 14; ++t) {
    EXPECT_EQ(pairs.loss_weight_T[t], t == 3 || t == 9 ? 0.5f : 0.0f) << t;
  }
  TokenBatch labelled = lay(PreferenceMode::kPointwise, {{"p", "", "ab"}, {"q", "d", ""}});
  EXPECT_THAT(labelled.sample_S, ElementsAre(1, 2)) << "a bad one, a good one";
  for (size_t t = 0; t < 7; ++t) {
    EXPECT_EQ(labelled.loss_weight_T[t], t == 3 || t == 6 ? 0.5f : 0.0f) << t;
  }
  EXPECT_THROW(lay(PreferenceMode::kPointwise, {{"p", "a", "b"}}), DataError);
  EXPECT_THROW(lay(PreferenceMode::kPairwise, {{"p", "", "b"}}), DataError);
}

std::string Model(const std::string& stages) {
  return R"(run: {name: rm, seed: 5}
tokenizer: byte
model: {family: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
  num_attention_heads: 2, num_key_value_heads: 1, vocab_size: 263, max_position_embeddings: 64,
  tie_word_embeddings: true, initializer_range: 0.1}
optimizer: {weight_decay: 0.0}
stages:
  - {name: base, kind: pretrain, steps: 2, lr: {peak: 0.001}, batch: {packs: 4, pack_tokens: 64},
     data: {family: general, text: answer}}
)" + stages;
}

// The chosen ends with `!`, or is free of `#`.
std::string WritePreferences(const std::string& path, bool pairwise) {
  std::ofstream out(path);
  for (int i = 0; i < 96; ++i) {
    std::string name(1 + i % 7, static_cast<char>('a' + i % 26));
    nlohmann::json line = {{"prompt", "greet " + name}};
    if (pairwise) {
      line["chosen"] = "hello " + name + "!";
      line["rejected"] = "hello " + name + "?";
    } else {
      bool good = i * 7 % 3 != 0;
      line["completion"] = (good ? "hello " : "hell# ") + name;
      line["label"] = good ? "safe" : "unsafe";
    }
    out << line.dump() << "\n";
  }
  return path;
}

class RewardModelTest : public testing::Test {
 protected:
  std::string Stage(bool pairwise) {
    std::string path = WritePreferences(folder_ / "preferences.jsonl", pairwise);
    std::string source = fmt::format("{{jsonl: {}{}", path, pairwise ? "" : ", label: label");
    return Model(fmt::format(
        "  - {{name: score, kind: reward_model, from: base, mode: {}, epochs: 4, pairs_per_step: "
        "20,"
        " lr: {{peak: 0.02, schedule: constant}}, batch: {{pack_tokens: 96}}, save_every: 5,\n"
        "     pairs: {}, limit: 64}}, heldout_pairs: {}}}, heldout_every: 4}}\n",
        pairwise ? "pairwise" : "pointwise", source, source));
  }
  std::string NewDir() { return folder_ / fmt::format("run-{}", runs_++); }

  runtime::TemporaryFolder folder_;
  int runs_ = 0;
};

std::vector<nlohmann::json> LinesOf(const RunTrace& trace, const std::string& stage) {
  std::vector<nlohmann::json> lines;
  for (const auto& line : trace.metrics) {
    if (line.at("stage") == stage) lines.push_back(line);
  }
  return lines;
}

TEST_F(RewardModelTest, LearnsAPreference) {
  for (bool pairwise : {true, false}) {
    std::string dir = NewDir();
    ASSERT_TRUE(Train(Stage(pairwise), {"stages.score.epochs=8"}, dir));
    auto lines = LinesOf(ReadTrace(dir, {"score"}), "score");
    ASSERT_EQ(lines.size(), 26u) << "8 epochs of 64, 20 a step, the last one short";
    EXPECT_EQ(lines.back().at("pairs"), 12);
    EXPECT_GT(lines[0].at("loss").get<double>(), 0.5);
    EXPECT_LT(lines.back().at("heldout_loss").get<double>(), 0.2);
    EXPECT_GT(lines.back().at("heldout_accuracy").get<double>(), 0.95);
  }
}

TEST_F(RewardModelTest, StartsFromThePolicyWithAFreshHead) {
  std::string dir = NewDir();
  ASSERT_TRUE(Train(Stage(true), {"stages.score.steps=1", "stages.score.lr.peak=1e-30"}, dir));
  RunTrace trace = ReadTrace(dir, {"base", "score"});
  int64_t shared = 0;
  for (const auto& [name, values] : trace.tensors) {
    if (!name.starts_with("base/model/")) continue;
    EXPECT_EQ(trace.tensors.at("score" + name.substr(4)), values) << name;
    ++shared;
  }
  EXPECT_GT(shared, 10);
  EXPECT_EQ(trace.tensors.count("base/model/value_head.weight"), 0u);
  double sum = 0;
  for (double w : trace.tensors.at("score/model/value_head.weight")) sum += std::abs(w);
  EXPECT_GT(sum, 1e-3);  // its random start, which the step hardly moves
}

TEST_F(RewardModelTest, LayoutsAgreeAndAStoppedRunGoesOnToTheBit) {
  std::vector<std::string> f64 = {"train.dtype=f64"};
  std::string dir = NewDir();
  ASSERT_TRUE(Train(Stage(true), f64, dir));
  RunTrace want = ReadTrace(dir, {"score"});
  dir = NewDir();
  ASSERT_TRUE(Train(Stage(true), {"train.dtype=f64", "mesh.pp=2", "mesh.dp=2"}, dir));
  RunTrace other = ReadTrace(dir, {"score"});
  ASSERT_EQ(other.metrics.size(), want.metrics.size());
  for (size_t i = 0; i < want.metrics.size(); ++i) {
    EXPECT_NEAR(other.metrics[i].at("loss"), want.metrics[i].at("loss"), 1e-9) << i;
  }
  dir = NewDir();
  int starts = 1;
  while (!Train(Stage(true), f64, dir, /*stop=*/true)) ASSERT_LT(++starts, 30);
  EXPECT_GT(starts, 10);
  EXPECT_EQ(ReadTrace(dir, {"score"}), want);
}

TEST_F(RewardModelTest, FrozenModelScoresAsItWasTrained) {
  std::string yaml = Stage(true), dir = NewDir();
  ASSERT_TRUE(Train(yaml, {}, dir));
  auto score = [&](const std::vector<std::string>& overrides) {
    Config file = Config::FromString(yaml, "test.yaml");
    for (const std::string& assignment : overrides) file.Override(assignment);
    const RunConfig config = ReadRunConfig(file);
    std::vector<double> scores;
    parallel::RunThreadRanks(config.mesh.ranks(), [&](const parallel::GroupPtr& world) {
      const std::atomic<bool> stop{false};
      RunDirectory directory(runtime::LocalFileSystem(), dir);
      Context ctx(Device::Cpu(), 1);
      parallel::Mesh mesh(config.mesh, world);
      Learner learner(ctx, mesh, config, directory.fs());
      std::unique_ptr<runtime::MetricsWriter> metrics;
      RunState state;
      Environment env{config, directory, learner, data::LoadTokenizer("byte", {}),
                      state,  metrics,   nullptr, stop};
      GrpoConfig grpo;
      grpo.reward_models = {{"helpful", "score"}};
      std::vector<data::Problem> problems(5);
      std::vector<Sample> samples(5);
      for (size_t i = 0; i < 5; ++i) {
        problems[i].prompt = "greet zoe";
        problems[i].kind = i == 2 ? "reasoning" : "general";
        samples[i].text = i % 2 == 0 ? "hello zoe!" : "hello zoe?";
      }
      RewardModels(env, grpo).AddRewards(problems, &samples);
      if (world->rank() != world->size() - 1) return;
      EXPECT_EQ(samples[2].rewards.count("helpful"), 0u) << "of a reasoning prompt";
      for (size_t i : {0, 1, 3, 4}) scores.push_back(samples[i].rewards.at("helpful"));
    });
    return scores;
  };
  std::vector<double> one = score({});
  EXPECT_GT(one[0], one[1] + 1);
  EXPECT_EQ(one[0], one[3]);
  EXPECT_EQ(one[1], one[2]);
  std::vector<double> four = score({"mesh.pp=2", "mesh.dp=2"});
  for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(four[i], one[i], 1e-4);
}

std::string ReadError(const std::string& stages) {
  try {
    CheckRun(ReadRunConfig(Config::FromString(Model(stages), "test.yaml")));
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST_F(RewardModelTest, BadConfigsAreNamed) {
  const std::string model =
      "  - {name: score, kind: reward_model, from: base, steps: 2, lr: {peak: 0.01},"
      " pairs: {family: general";
  EXPECT_EQ(ReadError(model + "}}\n"), "");
  EXPECT_THAT(ReadError(model + "}, mode: pointwise}\n"), HasSubstr("mode: pointwise"));
  EXPECT_THAT(ReadError(model + "}, batch: {pack_tokens: 40}}\n"), HasSubstr("a pair of"));
  EXPECT_THAT(ReadError(model + "}}\n  - {name: sft, kind: sft, from: score, steps: 1, "
                                "lr: {peak: 0.1}, data: {family: chain}}\n"),
              HasSubstr("'score' is a reward model"));
}

}  // namespace
}  // namespace hone::rl
