// Distillation: SFT on a file of another model's samples, named by path.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

std::string Student(const std::string& samples) {
  return R"(run: {name: student, seed: 2}
tokenizer: byte
model: {family: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
  num_attention_heads: 2, vocab_size: 263, max_position_embeddings: 128, tie_word_embeddings: true,
  initializer_range: 0.1}
optimizer: {weight_decay: 0.0}
stages:
  - {name: base, kind: pretrain, steps: 2, lr: {peak: 0.001}, batch: {packs: 2, pack_tokens: 128},
     data: {family: chain, text: answer}}
  - {name: distilled, kind: distill, from: base, epochs: 12, lr: {peak: 0.01},
     batch: {packs: 2, pack_tokens: 128}, samples: [)" +
         samples + "]";
}
std::string Heldout(const std::string& samples) {
  return ", heldout: {jsonl: " + samples + ", limit: 8}, heldout_every: 5";
}

TEST(Distill, LearnsWhatTheFileSays) {
  runtime::TemporaryFolder folder;
  const std::string samples = folder / "samples.jsonl";
  WriteQuestions(samples);
  ASSERT_TRUE(Train(Student(samples) + Heldout(samples) + "}\n", {}, folder / "run"));
  std::vector<double> heldout;
  int64_t tokens = 0, steps = 0;
  for (const auto& line : ReadTrace(folder / "run", {"distilled"}).metrics) {
    if (line.at("stage") != "distilled") continue;
    ++steps;
    tokens += line.at("tokens").get<int64_t>();
    if (line.contains("heldout_loss")) heldout.push_back(line.at("heldout_loss"));
  }
  // 40 samples of prompt n7i=, completion of 1 + i % 9 letters, and the end token, of which all but
  // the last token are inputs: every one of them once an epoch.
  int64_t epoch = 0;
  for (int i = 0; i < 40; ++i) {
    epoch += static_cast<int64_t>(fmt::format("n{}=", i * 7).size()) + 1 + i % 9;
  }
  EXPECT_EQ(tokens, 12 * epoch);
  EXPECT_GT(steps, 12);
  EXPECT_GT(heldout.front(), 3.0);
  EXPECT_LT(heldout.back(), 1.0);
}

TEST(Distill, AnExampleTooLongIsNamedByFileAndLine) {
  runtime::TemporaryFolder folder;
  const std::string samples = folder / "samples.jsonl";
  WriteQuestions(samples);
  std::string text = runtime::LocalFileSystem().ReadAll(samples);
  text += R"({"prompt": "p", "completion": ")" + std::string(200, 'x') + "\"}\n";
  runtime::LocalFileSystem().WriteAtomically(samples, text);
  const std::string yaml = Student(samples) + ", data: {family: chain, text: answer, count: 3}}\n";
  try {
    Train(yaml, {}, folder / "run");
    ADD_FAILURE() << "it was trained on";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("samples.jsonl:41"));
  }
}

TEST(Distill, AMissingFileIsFoundBeforeTraining) {
  try {
    const std::string yaml = Student("/nowhere/samples.jsonl") + "}\n";
    CheckRun(ReadRunConfig(Config::FromString(yaml, "student.yaml")));
    ADD_FAILURE() << "a missing file passed";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("/nowhere/samples.jsonl"));
  }
}

}  // namespace
}  // namespace hone::rl
