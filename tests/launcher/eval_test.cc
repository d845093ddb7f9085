// `hone eval`: what its options say is what is measured.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "launcher/commands.h"
#include "rl/evaluate_model.h"
#include "tests/launcher/program.h"
#include "tests/read_json.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

using nlohmann::json;

const std::string kRun = R"(run: {name: tiny, seed: 4}
tokenizer: byte
model: {family: llama, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2,
  num_attention_heads: 2, vocab_size: 263, max_position_embeddings: 160, initializer_range: 0.3}
stages:
  - {name: base, kind: pretrain, steps: 1, lr: {peak: 0.001}, batch: {packs: 1, pack_tokens: 64},
     data: {family: chain, text: answer}}
)";
constexpr char kSuites[] = R"(evaluate:
  suites:
    - {name: texts, text: {family: chain, text: answer}}
    - {name: short, problems: {family: chain}, count: 5, sampling: {max_new_tokens: 6}}
    - {name: long, problems: {family: arithmetic}, count: 4, sampling: {max_new_tokens: 24}}
)";

class EvalTest : public testing::Test {
 protected:
  void SetUp() override {
    runtime::LocalFileSystem().WriteAtomically(folder_ / "base.yaml", kRun);
    runtime::LocalFileSystem().WriteAtomically(config_, kRun + kSuites);
    Program train(HoneCommand(0, {"train", folder_ / "base.yaml", "--run-dir", run_}),
                  folder_ / "output");
    ASSERT_EQ(train.Wait(), 0) << train.output();
  }
  // What the command prints, and its exit code.
  std::string Output(Arguments arguments, int code) {
    arguments.insert(arguments.begin(), {"eval", run_});
    Program program(HoneCommand(0, arguments), folder_ / "output");
    EXPECT_EQ(program.Wait(), code) << program.output();
    return program.output();
  }
  json Eval(Arguments arguments) {
    arguments.push_back("--json");
    return ParseJson(Output(arguments, 0));
  }
  // What the suite gives, asked for directly.
  json Measured(const rl::EvaluationSuite& suite, uint64_t seed) {
    rl::VerifierPool::Options options;
    options.program = HoneProgram();
    rl::VerifierPool verifiers(options);
    rl::LoadedModel model = rl::LoadModelForInference(run_, {});
    return rl::EvaluateModel(model, suite, seed, 64, verifiers);
  }

  runtime::TemporaryFolder folder_;
  const std::string run_ = folder_ / "run", config_ = folder_ / "suites.yaml";
};

TEST_F(EvalTest, ProblemsAreThoseOfItsOptions) {
  rl::EvaluationSuite suite;
  suite.name = "problems";
  for (const uint64_t seed : {1, 9}) {
    ConfigReader source(Config::FromString("{family: chain, split: heldout}", "test"));
    suite.problems = data::MakeProblemSource(source, seed);
    suite.count = 7;
    suite.sampling.max_new_tokens = 12;
    const json scores =
        Eval({"--problems", "{family: chain, split: heldout}", "--count", "7", "--sampling",
              "{max_new_tokens: 12}", "--seed", std::to_string(seed)});
    EXPECT_EQ(scores, (json{{"problems", Measured(suite, seed)}}));
    EXPECT_EQ(scores["problems"].at("problems"), 7);
  }
}

TEST_F(EvalTest, SuitesAreThoseOfTheConfigThatAnswerProblems) {
  const rl::RunConfig config = rl::LoadRunConfig(config_, {});
  const json all = Eval({"--config", config_});
  EXPECT_EQ(all, (json{{"short", Measured(config.suites[1], 1)},
                       {"long", Measured(config.suites[2], 1)}}));
  EXPECT_EQ(Eval({"--config", config_, "--suite", "long"}), (json{{"long", all["long"]}}));
  const json fewer =
      Eval({"--config", config_, "--suite", "short", "--set", "evaluate.suites.short.count=3"});
  EXPECT_EQ(fewer["short"].at("problems"), 3);
}

TEST_F(EvalTest, SaysWhatItDoesNotFind) {
  EXPECT_NE(Output({"--config", config_, "--suite", "middle"}, 2).find("suite 'middle'"),
            std::string::npos);
  EXPECT_NE(Output({}, 2).find("--problems"), std::string::npos);
}

}  // namespace
}  // namespace hone::launcher
