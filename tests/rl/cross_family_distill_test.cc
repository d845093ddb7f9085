// Distillation across families: what a llama over bytes says, as text, is learned by a qwen3 of
// another vocabulary, through that one's chat template.
// timeout: 180
#include <gtest/gtest.h>

#include <filesystem>

#include "rl/loaded_model.h"
#include "rl/rollout/inference_engine.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

constexpr int kQuestions = 10;

std::string Question(int i) { return fmt::format("What is {} + {}?", i, i + 1); }

// Lines of prompt and completion.
void WriteLines(const std::string& path, const std::vector<std::string>& completions) {
  std::string lines;
  for (int i = 0; i < kQuestions; ++i) {
    lines += nlohmann::json{{"prompt", Question(i)}, {"completion", completions[i]}}.dump() + "\n";
  }
  runtime::LocalFileSystem().WriteAtomically(path, lines);
}

std::string TeacherRun(const std::string& lessons) {
  return R"(run: {name: teacher, seed: 2}
tokenizer: byte
model: {family: llama, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2,
  num_attention_heads: 4, vocab_size: 263, max_position_embeddings: 128, initializer_range: 0.1}
optimizer: {weight_decay: 0.0}
stages:
  - {name: taught, kind: sft, epochs: 60, lr: {peak: 0.01}, save_every: 1000,
     batch: {packs: 1, pack_tokens: 512}, data: {jsonl: )" +
         lessons + "}}\n";
}

std::string StudentRun(const std::string& tokenizer, const std::string& samples) {
  return R"(run: {name: student, seed: 3}
model: {family: qwen3, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2,
  num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, vocab_size: 432,
  max_position_embeddings: 256, tie_word_embeddings: true, initializer_range: 0.1}
optimizer: {weight_decay: 0.0}
tokenizer: )" +
         tokenizer + R"(
stages:
  - {name: distilled, kind: distill, epochs: 60, lr: {peak: 0.01}, save_every: 1000,
     batch: {packs: 2, pack_tokens: 512}, data: {chat: qwen2.5, jsonl: )" +
         samples + "}}\n";
}

// The likeliest completion of each prompt, as text.
std::vector<std::string> Ask(const std::string& run, const std::vector<std::string>& prompts) {
  LoadedModel model = LoadModelForInference(run, {});
  EngineConfig config;
  config.max_tokens = model.files.config.max_position_embeddings;
  InferenceEngine engine(*model.ctx, *model.stage, config);
  for (size_t i = 0; i < prompts.size(); ++i) {
    GenerateRequest request;
    request.id = i;
    request.prompt = model.tokenizer->Encode(prompts[i]);
    request.max_new_tokens = 64;
    request.sampling.temperature = 0;
    request.stop_ids = model.stop_ids;
    engine.Add(std::move(request));
  }
  std::vector<std::string> answers(prompts.size());
  while (engine.pending() > 0) {
    for (GenerateResult& done : engine.Step()) {
      if (done.finish == FinishReason::kStop) done.tokens.pop_back();
      answers[done.id] = model.tokenizer->Decode(done.tokens);
    }
  }
  return answers;
}

// A folder with a byte-level BPE of 420 tokens.
std::string MakeTokenizer(const std::string& folder) {
  std::filesystem::create_directories(folder);
  std::filesystem::copy_file(std::string(HONE_SOURCE_DIR) + "/tests/fixtures/tokenizers/qwen2.json",
                             folder + "/tokenizer.json");
  runtime::LocalFileSystem().WriteAtomically(folder + "/tokenizer_config.json",
                                             R"({"eos_token": "<|im_end|>"})");
  return folder;
}

TEST(CrossFamilyDistill, TheStudentSaysWhatTheTeacherSaid) {
  runtime::TemporaryFolder folder;
  std::vector<std::string> lessons, questions, chats;
  for (int i = 0; i < kQuestions; ++i) {
    lessons.push_back(fmt::format("<think>{}+{}={}</think>{}", i, i + 1, 2 * i + 1, 2 * i + 1));
    questions.push_back(Question(i));
    chats.push_back(data::ChatTemplate::Named("qwen2.5").Text({{"user", Question(i), ""}},
                                                              {.add_generation_prompt = true}));
  }
  WriteLines(folder / "lessons.jsonl", lessons);
  ASSERT_TRUE(Train(TeacherRun(folder / "lessons.jsonl"), {}, folder / "teacher"));
  runtime::LocalFileSystem().WriteAtomically(folder / "teacher/config.yaml",
                                             TeacherRun(folder / "lessons.jsonl"));
  const std::vector<std::string> said = Ask(folder / "teacher", questions);
  int right = 0;
  for (int i = 0; i < kQuestions; ++i) right += said[i] == lessons[i];
  ASSERT_GE(right, kQuestions - 1) << said[0];

  WriteLines(folder / "samples.jsonl", said);
  const std::string student =
      StudentRun(MakeTokenizer(folder / "tokenizer"), folder / "samples.jsonl");
  ASSERT_TRUE(Train(student, {}, folder / "student"));
  runtime::LocalFileSystem().WriteAtomically(folder / "student/config.yaml", student);
  const std::vector<std::string> learned = Ask(folder / "student", chats);
  int same = 0;
  for (int i = 0; i < kQuestions; ++i) same += learned[i] == said[i];
  EXPECT_GE(same, kQuestions - 1) << learned[0] << "\n" << said[0];
  // Not because the two are alike: the student's tokens are not the teacher's bytes.
  EXPECT_LT(data::LoadTokenizer(folder / "tokenizer", {})->Encode(said[3]).size(), said[3].size());
}

}  // namespace
}  // namespace hone::rl
