// What a user can get wrong: each is one clear error before training starts, said once whatever
// the number of ranks, and the program ends with 2 (usage, config) or 1 (data).
#include <gmock/gmock.h>

#include "tests/launcher/program.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

int Count(const std::string& text, const std::string& what) {
  int count = 0;
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size()) ++count;
  return count;
}

class BadInputTest : public testing::Test {
 protected:
  BadInputTest() {
    rl::WriteQuestions(Path("questions.jsonl"));
    yaml_ = rl::TinyRun(Path("questions.jsonl"));
    WriteConfig(yaml_);
  }
  std::string Path(const std::string& name) const { return folder_ / name; }
  static void Write(const std::string& path, const std::string& text) {
    runtime::LocalFileSystem().WriteAtomically(path, text);
  }
  void WriteConfig(const std::string& yaml) const { Write(Path("run.yaml"), yaml); }
  // The config with the first `from` made `to`.
  void Change(const std::string& from, const std::string& to) {
    const size_t at = yaml_.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    WriteConfig(yaml_.replace(at, from.size(), to));
  }
  // A line of the training data, counted from 1, made `text`.
  void SetLine(int number, const std::string& text) const {
    std::istringstream in(ReadFile(Path("questions.jsonl")));
    std::string all;
    for (auto [line, i] = std::pair{std::string(), 1}; std::getline(in, line); ++i) {
      all += (i == number ? text : line) + "\n";
    }
    Write(Path("questions.jsonl"), all);
  }

  void ExpectOneError(int ranks, const std::string& subcommand, const Words& more, int code,
                      const Words& says) {
    SCOPED_TRACE(fmt::format("{} on {} ranks {}", subcommand, ranks, testing::PrintToString(more)));
    Words words = {subcommand, Path("run.yaml")};
    if (subcommand != "check") words.insert(words.end(), {"--run-dir", Path("run")});
    for (const std::string& assignment : more) words.insert(words.end(), {"--set", assignment});
    Program program(HoneCommand(ranks, words), Path("output"));
    EXPECT_EQ(program.Wait(std::chrono::seconds(30)), code);
    const std::string output = program.output();
    EXPECT_EQ(Count(output, "hone: "), 1) << output;
    for (const std::string& part : says) EXPECT_THAT(output, HasSubstr(part));
    EXPECT_THAT(output, Not(HasSubstr("tokens/s"))) << "it trained";
    EXPECT_FALSE(std::filesystem::exists(Path("run/checkpoints")));
  }
  // Under mpirun with two ranks, whose mesh is dp = 2 unless `more` says otherwise; and, what
  // starts no ranks, on this machine.
  void ExpectRefused(int code, const Words& says, Words more = {}) {
    bool mesh = false;
    for (const std::string& assignment : more) mesh = mesh || assignment.starts_with("mesh.");
    if (!mesh) more.push_back("mesh.dp=2");
    ExpectOneError(2, "train", more, code, says);
    ExpectOneError(0, "run", more, code, says);
  }

  runtime::TemporaryFolder folder_;
  std::string yaml_;
};

TEST_F(BadInputTest, TheConfigItselfIsSound) {
  Program program(HoneCommand(0, {"check", Path("run.yaml")}), Path("output"));
  EXPECT_EQ(program.Wait(), 0) << program.output();
}

TEST_F(BadInputTest, LayoutsThatDoNotFitTheModel) {
  ExpectRefused(2, {"4 layers do not cut into 8 stages"},
                {"mesh.pp=2", "pipeline.schedule=interleaved", "pipeline.chunks=4"});
  Change("n_routed_experts: 4", "n_routed_experts: 3");
  Change("n_group: 2", "n_group: 1");
  ExpectRefused(2, {"3 experts do not split over ep = 2"}, {"mesh.dp=2", "mesh.ep=2"});
  ExpectRefused(2, {"ep = 3", "dp = 2"}, {"mesh.dp=2", "mesh.ep=3"});
}

TEST_F(BadInputTest, MoreExpertRanksThanExperts) {
  ExpectOneError(0, "check", {"mesh.dp=8", "mesh.ep=8"}, 2, {"4 experts", "ep = 8"});
}

TEST_F(BadInputTest, SchedulesThatDoNotFitTheBatch) {
  ExpectRefused(2, {"stage 'base'", "dualpipe_v", "4"},
                {"mesh.pp=2", "pipeline.schedule=dualpipe_v", "stages.base.batch.packs=3"});
  ExpectRefused(2, {"stage 'sft'", "7 packs", "dp = 2"}, {"stages.sft.batch.packs=7"});
}

TEST_F(BadInputTest, OtherRanksThanTheMesh) {
  ExpectOneError(2, "train", {"mesh.dp=4"}, 2, {"4 ranks, but 2 were started"});
  ExpectOneError(2, "train", {}, 2, {"1 ranks, but 2 were started"});
  ExpectOneError(0, "train", {"mesh.dp=2"}, 2, {"2 ranks, but 1 were started"});
}

TEST_F(BadInputTest, FamiliesAndKeysThatThereAreNot) {
  Change("family: deepseek_v3", "family: deepseek_v4");
  ExpectRefused(2, {"run.yaml:3", "deepseek_v4", "deepseek_v3"});
  Change("family: deepseek_v4", "family: deepseek_v3");
  Change("save_every", "save_evry");
  ExpectRefused(2, {"run.yaml:", "save_evry", "save_every"});
}

TEST_F(BadInputTest, AHuggingFaceConfigWithoutAField) {
  std::filesystem::create_directory(Path("hf"));
  const size_t begin = yaml_.find("model: {"), end = yaml_.find("optimizer:");
  WriteConfig(yaml_.replace(begin, end - begin, "model: {hf: " + Path("hf") + "}\n"));
  nlohmann::json config = {{"model_type", "llama"},         {"hidden_size", 16},
                           {"intermediate_size", 16},       {"num_hidden_layers", 2},
                           {"num_attention_heads", 2},      {"vocab_size", 263},
                           {"max_position_embeddings", 128}};
  config.erase("num_hidden_layers");
  Write(Path("hf/config.json"), config.dump());
  ExpectRefused(2, {Path("hf/config.json"), "num_hidden_layers"});
  config["num_hidden_layers"] = 2;
  config["model_type"] = "gpt_neox";
  Write(Path("hf/config.json"), config.dump());
  ExpectRefused(2, {Path("hf/config.json"), "gpt_neox", "llama"});
}

TEST_F(BadInputTest, LinesOfTheTrainingData) {
  SetLine(5, "");
  ExpectRefused(1, {"questions.jsonl:5", "empty line"});
  SetLine(5, R"({"prompt": "n", "completion": )");
  ExpectRefused(1, {"questions.jsonl:5", "not JSON"});
  SetLine(5, R"({"prompt": "n"})");
  ExpectRefused(1, {"questions.jsonl:5", "completion"});
}

TEST_F(BadInputTest, SequencesBeyondTheContext) {
  ExpectRefused(2, {"stage 'base'", "max_length 256", "context of 128"},
                {"stages.base.batch.pack_tokens=256", "stages.base.batch.max_length=256"});
  SetLine(7, nlohmann::json{{"prompt", "n"}, {"completion", std::string(200, 'x')}}.dump());
  ExpectRefused(1, {"stage 'sft'", "questions.jsonl:7", "202 tokens", "fit into 129"},
                {"stages.sft.batch.pack_tokens=512"});
}

TEST_F(BadInputTest, OptionsThatCannotBeWhatIsMeant) {
  struct Row {
    Words words;
    int code;
    std::string says;
  };
  const std::string config = Path("run.yaml");
  const std::vector<Row> rows = {
      {{"check", "--set", "run.seed=2", config}, 0, "tiny: 2 stages"},
      {{"check", "--set", "stages.base.steps=x", config}, 2, "stages.base.steps"},
      {{"check", "--set", "run.seed=2", "run.seed=3", config}, 2, "not expected"},
      {{"check", "--set", "run.seed=2"}, 2, "config"},
      {{"check", "--gpu-memory", "80"}, 2, "config"},
      {{"check", config, "--gpu-memory", "nan"}, 2, "above 0"},
      {{"plan", config, "--gpu-memory", "nan"}, 2, "above 0"},
      {{"run", config, "--learner-restarts", "-1"}, 2, "--learner-restarts"},
      {{"run", config, "--run-dir", Path("run"), "--until", "bas"}, 2, "did you mean 'base'"},
      {{"submit", config, "--nodes", "1", "--dry-run", "--until", "bas"}, 2, "mean 'base'"},
      {{"submit", config, "--nodes", "1", "--dry-run", "--run-dir", "a b"}, 2, "has a space"},
      {{"eval", Path("x"), "--problems", "{family: chain}", "--count", "0"}, 2, "--count"},
  };
  for (const Row& row : rows) {
    Program program(HoneCommand(0, row.words), Path("output"));
    EXPECT_EQ(program.Wait(), row.code) << testing::PrintToString(row.words);
    EXPECT_THAT(program.output(), HasSubstr(row.says)) << testing::PrintToString(row.words);
  }
  EXPECT_FALSE(std::filesystem::exists(Path("run")));
}

TEST_F(BadInputTest, OneRankAloneFindsWhatTheOthersDoNot) {
  // As with a folder that one node does not see.
  const std::string script =
      "cd " + folder_.path() + " && if [ $OMPI_COMM_WORLD_RANK = 1 ]; then " + "cd /; fi; exec " +
      HoneProgram() + " train run.yaml --run-dir " + Path("run") + " --set mesh.dp=2";
  Program program({"mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n",
                   "2", "sh", "-c", script},
                  Path("output"));
  EXPECT_EQ(program.Wait(std::chrono::seconds(30)), 2);
  EXPECT_EQ(Count(program.output(), "hone: "), 1) << program.output();
  EXPECT_THAT(program.output(), HasSubstr("hone: rank 1: "));
}

}  // namespace
}  // namespace hone::launcher
