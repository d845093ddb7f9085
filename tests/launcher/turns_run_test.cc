// timeout: 300
// A whole run in which a model learns to ask a calculator: `hone run` with workers, a policy that
// mostly guesses and sometimes calls, GRPO. And a second run that begins with what the first one's
// policy, no example, wrote: its cold start.
#include <gmock/gmock.h>

#include "data/tokenizer.h"
#include "rl/rollout/journal.h"
#include "runtime/philox.h"
#include "tests/launcher/program.h"
#include "tests/read_json.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

constexpr char kModel[] = R"(tokenizer: byte
special_tokens: [<tool>, </tool>, <result>, </result>]
model: {family: llama, hidden_size: 64, intermediate_size: 160, num_hidden_layers: 2,
  num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 267, max_position_embeddings: 64,
  rope_theta: 100, initializer_range: 0.1, tie_word_embeddings: true}
optimizer: {weight_decay: 0.0}
rollout: {workers: 1, max_batch: 128, prompts_per_lease: 8, prefill_chunk: 512}
)";

// Five of six guess a digit at once, one asks and repeats what it is told.
void WriteTexts(const std::string& path) {
  std::string lines;
  for (uint64_t i = 0; i < 600; ++i) {
    const RandomStream random{HashName("texts"), i};
    const auto a = static_cast<int>(random.Below(10, 0)), b = static_cast<int>(random.Below(10, 1));
    const bool add = random.Below(2, 2) == 0;
    const int left = add ? a : std::max(a, b), right = add ? b : std::min(a, b);
    const std::string sum = fmt::format("{}{}{}", left, add ? '+' : '-', right);
    const int value = add ? left + right : left - right;
    const std::string thinking =
        i % 6 == 0 ? fmt::format("<tool>{}</tool><result>{}</result>", sum, value) : "";
    const auto answer = i % 6 == 0 ? value : static_cast<int>(random.Below(10, 3));
    lines += nlohmann::json{{"prompt", "Q:" + sum + "="},
                            {"completion",
                             fmt::format("<think>{}</think><answer>{}</answer>", thinking, answer)}}
                 .dump() +
             "\n";
  }
  runtime::LocalFileSystem().WriteAtomically(path, lines);
}

const std::string kSampling =
    "sampling: {max_new_tokens: 24, environment: {name: calculator, max_calls: 2}}";
const std::string kProblems = "{family: arithmetic, levels: [1, 1], languages: [en], split: all}";

std::string ZeroRun(const std::string& texts) {
  return std::string("run: {name: zero, seed: 1}\n") + kModel +
         "stages:\n"
         "  - {name: base, kind: pretrain, steps: 250, lr: {peak: 0.004, warmup: 10},\n"
         "     batch: {packs: 2, pack_tokens: 512}, data: {mixture: [{weight: 1, jsonl: " +
         texts +
         ", completion: completion}]}}\n"
         "  - {name: rl, kind: grpo, from: base, steps: 24, save_every: 6, reference_every: 3,\n"
         "     lr: {peak: 0.002, schedule: constant}, batch: {pack_tokens: 1024},\n"
         "     prompts: " +
         kProblems +
         ", prompts_per_rollout: 16, group_size: 8,\n"
         "     reward: {accuracy: 1, format: 0.2}, average: token, reference: pool,\n     " +
         kSampling +
         "}\n"
         "evaluate:\n  suites:\n"
         "    - {name: sums, problems: " +
         kProblems + ", count: 100, sampled: false, " + kSampling + "}\n";
}

// The cold start that R1 has from R1-Zero: samples of its policy, right and readable, for an SFT of
// the base.
std::string SecondRun(const std::string& zero) {
  return std::string("run: {name: second, seed: 2}\n") + kModel +
         "stages:\n"
         "  - {name: zero_samples, kind: rejection_sampling, from: " +
         zero + "/checkpoints/rl,\n     prompts: " + kProblems +
         ", problems: 120, samples_per_problem: 2,\n     " + kSampling +
         "}\n"
         "  - {name: cold_start, kind: sft, from: " +
         zero +
         "/checkpoints/base, epochs: 4, lr: {peak: 0.002},\n"
         "     batch: {packs: 1, pack_tokens: 512}, samples: [zero_samples]}\n"
         "evaluate:\n  suites:\n"
         "    - {name: sums, problems: " +
         kProblems + ", count: 100, sampled: false, " + kSampling + "}\n";
}

class TurnsRunTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new runtime::TemporaryFolder;
    WriteTexts(*folder_ / "texts.jsonl");
    Write("zero.yaml", ZeroRun(*folder_ / "texts.jsonl"));
    Run("zero");
  }
  static void TearDownTestSuite() { delete folder_; }
  static std::string Path(const std::string& name) { return *folder_ / name; }
  static void Write(const std::string& name, const std::string& text) {
    runtime::LocalFileSystem().WriteAtomically(Path(name), text);
  }
  static void Run(const std::string& name) {
    Program program(HoneCommand(0, {"run", Path(name + ".yaml"), "--run-dir", Path(name)}),
                    Path("output"));
    ASSERT_EQ(program.Wait(std::chrono::seconds(200)), 0) << program.output();
  }
  static double Accuracy(const std::string& run, const std::string& stage) {
    const auto summary = ParseJson(ReadFile(Path(run + "/summary.json")));
    for (const auto& s : summary.at("stages")) {
      if (s.at("name") == stage) return s.at("eval").at("sums").at("accuracy");
    }
    ADD_FAILURE() << run << " has no stage " << stage << ": " << summary;
    return 0;
  }
  static std::vector<nlohmann::json> RlSteps() {
    std::vector<nlohmann::json> steps;
    for (const auto& line : rl::ReadTrace(Path("zero"), {"rl"}).metrics) {
      if (line.at("stage") == "rl") steps.push_back(line);
    }
    return steps;
  }
  static double Mean(const std::vector<nlohmann::json>& steps, size_t begin, size_t end,
                     const std::string& key) {
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += steps[i].at(key).get<double>();
    return sum / static_cast<double>(end - begin);
  }

  inline static runtime::TemporaryFolder* folder_ = nullptr;
};

TEST_F(TurnsRunTest, LearnsToAsk) {
  const auto steps = RlSteps();
  ASSERT_EQ(steps.size(), 24u);
  const double before = steps[0].at("reward"), after = Mean(steps, 19, 24, "reward");
  EXPECT_LT(before, 0.7);
  EXPECT_GT(after, before + 0.3);
  EXPECT_LT(steps[0].at("tool_calls").get<double>(), 0.5);
  EXPECT_GT(Mean(steps, 19, 24, "tool_calls"), 0.8);
  EXPECT_GT(Accuracy("zero", "rl"), 0.8);
  for (const auto& line : steps) {
    // Turns, and the environment's tokens between them, leave learner and worker in agreement.
    EXPECT_EQ(line.at("logprob_gap"), 0.0) << line.dump();
  }
}

TEST_F(TurnsRunTest, WhatTheEnvironmentSaidIsRecordedAsItsOwn) {
  const auto tokenizer =
      data::LoadTokenizer("byte", {"<tool>", "</tool>", "<result>", "</result>"});
  int64_t answers = 0;
  for (const rl::Sample& s :
       rl::ReadJournal(runtime::LocalFileSystem(), Path("zero/journal/rl/rollout-000020.bin"))) {
    std::vector<int32_t> said;
    for (const rl::SampleToken& t : s.tokens) {
      if (t.source == rl::TokenSource::kEnvironment) said.push_back(t.id);
    }
    if (said.empty()) continue;
    const std::string text = tokenizer->Decode(said);
    EXPECT_TRUE(text.starts_with("<result>") && text.ends_with("</result>")) << text;
    EXPECT_THAT(s.text, testing::HasSubstr("</tool>" + text.substr(0, text.find("</result>"))));
    ++answers;
  }
  EXPECT_GT(answers, 64);
}

// A refresh every third step, a checkpoint every sixth, two of them kept.
TEST_F(TurnsRunTest, ReferencesThatNoCheckpointNeedsAreGone) {
  auto& fs = runtime::LocalFileSystem();
  const auto steps = runtime::ListCheckpointSteps(fs, Path("zero/checkpoints/rl"));
  const auto references = runtime::ListCheckpointSteps(fs, Path("zero/checkpoints/rl-reference"));
  EXPECT_EQ(steps, (std::vector<int64_t>{18, 24}));
  EXPECT_EQ(references, steps) << "each is that of its own step";
}

TEST_F(TurnsRunTest, ARunBeginsWithWhatAnothersPolicyWrote) {
  Write("second.yaml", SecondRun(Path("zero")));
  ASSERT_NO_FATAL_FAILURE(Run("second"));
  const std::string kept = ReadFile(Path("second/datasets/zero_samples.jsonl"));
  std::istringstream lines(kept);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto sample = ParseJson(line);
    EXPECT_THAT(sample["completion"].get<std::string>(), testing::EndsWith("</answer>"));
    EXPECT_EQ(sample["from"], Path("zero/checkpoints/rl"));
  }
  EXPECT_GT(count, 40);
  EXPECT_GT(Accuracy("second", "cold_start"), Accuracy("zero", "base") + 0.2);
}

}  // namespace
}  // namespace hone::launcher
