// timeout: 300
// configs/stories260k.yaml, much shortened: import, sampling, SFT, RL, rejection sampling, SFT,
// export; then other programs read what came out. docs/stories260k.md has the whole run's numbers.
//
// Needs HONE_DATA with weights/stories260K; and for the last part a Python with transformers:
// HONE_TEST_PYTHON, or python3.
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "rl/loaded_model.h"
#include "runtime/file_system.h"
#include "tests/launcher/program.h"
#include "tests/read_json.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

using nlohmann::json;

const std::string kConfig = std::string(HONE_SOURCE_DIR) + "/configs/stories260k.yaml";

Words Shortened(const std::string& run) {
  Words words = {"run", kConfig, "--run-dir", run};
  for (const char* set :
       {"stages.ordered.problems=96", "stages.plain.problems=16", "stages.heldout_text.problems=16",
        "stages.cold_start.epochs=1", "stages.rl.steps=3", "stages.rl.prompts_per_rollout=4",
        "stages.rl.group_size=8", "stages.samples.problems=16",
        // Hardly trained as it is, the model keeps no order: any story will do.
        "stages.samples.prompts.free=true", "stages.samples.prompts.split=all",
        "stages.samples.keep_unfinished=true", "stages.sft.epochs=1",
        "evaluate.suites.unseen.count=16"}) {
    words.insert(words.end(), {"--set", set});
  }
  return words;
}

class Stories260kTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* data = std::getenv("HONE_DATA");
    if (data == nullptr ||
        !std::filesystem::exists(std::string(data) + "/weights/stories260K/hf")) {
      GTEST_SKIP() << "needs HONE_DATA/weights/stories260K";
    }
  }
  // What a program says; it must end well.
  std::string Output(const Words& arguments) {
    Program program(HoneCommand(0, arguments), folder_ / "said");
    EXPECT_EQ(program.Wait(), 0) << program.output();
    return program.output();
  }
  runtime::TemporaryFolder folder_;
};

TEST_F(Stories260kTest, FromAFolderToAFolder) {
  const std::string run = folder_ / "run";
  Program program(HoneCommand(0, Shortened(run)), folder_ / "output");
  ASSERT_EQ(program.Wait(std::chrono::seconds(240)), 0) << program.output();

  const json summary = ParseJson(ReadFile(run + "/summary.json"));
  std::map<std::string, json> stages;
  for (const json& stage : summary["stages"]) stages[stage["name"]] = stage;
  for (const auto& [name, stage] : stages) EXPECT_EQ(stage["state"], "done") << name;
  for (const char* name : {"base", "cold_start", "rl", "sft"}) {
    const json& eval = stages[name]["eval"];
    EXPECT_EQ(eval["unseen"]["problems"], 16) << name;
    EXPECT_TRUE(eval["unseen"].contains("sampled_story_words")) << name;
    // A model of random weights has log 512 = 6.2; the base model's own stories cost it about 1.5.
    EXPECT_GT(eval["story_loss"]["loss"], 0.8) << name;
    EXPECT_LT(eval["story_loss"]["loss"], 2.2) << name;
  }
  // Every lesson in hindsight is an order that its text begins to fulfil.
  std::ifstream lessons(run + "/datasets/ordered.jsonl");
  int count = 0;
  for (std::string line; std::getline(lessons, line); ++count) {
    const json lesson = ParseJson(line);
    EXPECT_TRUE(lesson["prompt"].get<std::string>().starts_with("<s>Use ")) << line;
    EXPECT_FALSE(lesson["completion"].get<std::string>().starts_with(" ")) << line;
  }
  EXPECT_GT(count, 8);

  const std::string exported = run + "/export/export";
  for (const char* file : {"config.json", "model.safetensors", "tok512.bin"}) {
    EXPECT_TRUE(std::filesystem::exists(exported + "/" + file)) << file;
  }
  const Words ask = {"--raw", "--bos",        "--prompt", "Once upon", "--temperature",
                     "0",     "--max-tokens", "40",       "--json"};
  Words of_export = {"generate", exported}, of_run = {"generate", run + "/checkpoints/sft"};
  of_export.insert(of_export.end(), ask.begin(), ask.end());
  of_run.insert(of_run.end(), ask.begin(), ask.end());
  const json drawn = ParseJson(Output(of_export));
  EXPECT_EQ(drawn["tokens"], ParseJson(Output(of_run))["tokens"]);

  const json scores = ParseJson(
      Output({"eval", exported, "--config", kConfig, "--set", "evaluate.suites.unseen.count=4",
              "--set", "evaluate.suites.unseen.samples_per_problem=3", "--json"}));
  EXPECT_EQ(scores["unseen"]["problems"], 4);
  EXPECT_GE(scores["unseen"].at("sampled_pass_at_k"), scores["unseen"]["sampled_accuracy"]);
  EXPECT_TRUE(scores["unseen"].contains("sampled_story_ending"));

  const char* named = std::getenv("HONE_TEST_PYTHON");
  const std::string python = named ? named : "python3";
  if (std::system((python + " -c 'import transformers' 2>/dev/null").c_str()) != 0) {
    GTEST_SKIP() << "no Python with transformers: what it makes of the result is not looked at";
  }
  runtime::LocalFileSystem().WriteAtomically(folder_ / "load.py", R"(
import json, sys, torch
from transformers import AutoModelForCausalLM
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info
prompt, drawn = json.loads(sys.argv[2]), json.loads(sys.argv[3])
out = model.generate(torch.tensor([prompt]), max_new_tokens=len(drawn), do_sample=False, pad_token_id=0)
assert out[0, len(prompt):].tolist() == drawn, (out, drawn)
)");
  auto tokenizer = data::LoadTokenizer(exported);
  std::vector<int32_t> prompt = tokenizer->Encode("Once upon");
  prompt.insert(prompt.begin(), tokenizer->bos_id());
  EXPECT_EQ(std::system(fmt::format("{} {} {} '{}' '{}'", python, folder_ / "load.py", exported,
                                    json(prompt).dump(), drawn["tokens"].dump())
                            .c_str()),
            0);
}

}  // namespace
}  // namespace hone::launcher
