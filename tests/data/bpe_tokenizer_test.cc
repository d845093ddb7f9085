// Real tokenizers and their golden ids; they need HONE_DATA.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/tokenizer.h"
#include "tests/read_json.h"

namespace hone::data {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::stringstream bytes;
  bytes << in.rdbuf();
  return bytes.str();
}

class RealTokenizer : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* data = std::getenv("HONE_DATA");
    if (data == nullptr) GTEST_SKIP() << "set HONE_DATA to the folder with real data";
    folder_ = std::string(data) + "/tokenizers/";
  }

  void CheckGoldens(const std::string& tokenizer_path, const std::string& golden) {
    auto tokenizer = LoadTokenizer(folder_ + tokenizer_path);
    std::ifstream lines(folder_ + "goldens/" + golden);
    int count = 0, wrong = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      auto record = ParseJson(line);
      std::string text = record["text"];
      auto expected = record["ids"].get<std::vector<int32_t>>();
      auto ids = tokenizer->Encode(text, false);
      if (ids != expected && ++wrong <= 3)
        ADD_FAILURE() << golden << " line " << count + 1 << ": " << text;
      EXPECT_EQ(tokenizer->Decode(ids), tokenizer->Decode(expected));
    }
    EXPECT_EQ(count, 299);
    EXPECT_EQ(wrong, 0);
  }

  // llama.cpp's texts, and for each the ids.
  void CheckLlamaCpp(const std::string& tokenizer_path, const std::string& out) {
    auto tokenizer = LoadTokenizer(folder_ + tokenizer_path);
    std::string all = ReadFile(folder_ + "llama_cpp_vocab_tests.inp");
    const std::string between = "\n__ggml_vocab_test__\n";
    std::vector<std::string> texts;
    size_t at = 0;
    for (size_t end; (end = all.find(between, at)) != std::string::npos;
         at = end + between.size()) {
      texts.push_back(all.substr(at, end - at));
    }
    texts.push_back(all.substr(at));
    std::istringstream lines(ReadFile(folder_ + out));
    size_t i = 0;
    for (std::string line; std::getline(lines, line) && i < texts.size(); ++i) {
      std::istringstream numbers(line);
      std::vector<int32_t> expected((std::istream_iterator<int32_t>(numbers)), {});
      EXPECT_EQ(tokenizer->Encode(texts[i], false), expected) << "text " << i << ": " << texts[i];
    }
    EXPECT_GE(i, 46u);
  }

  std::string folder_;
};

TEST_F(RealTokenizer, Gpt2) {
  CheckGoldens("gpt-2", "gpt-2.golden.jsonl");
  CheckLlamaCpp("gpt-2", "gpt-2/ggml-vocab-gpt-2.gguf.out");
}
TEST_F(RealTokenizer, Qwen2) {
  CheckGoldens("qwen2", "qwen2.golden.jsonl");
  CheckLlamaCpp("qwen2", "qwen2/ggml-vocab-qwen2.gguf.out");
}
TEST_F(RealTokenizer, DeepSeekLlm) {
  CheckGoldens("deepseek-llm/tokenizer.reconstructed.json", "deepseek-llm.golden.jsonl");
  CheckLlamaCpp("deepseek-llm/tokenizer.reconstructed.json",
                "deepseek-llm/ggml-vocab-deepseek-llm.gguf.out");
}
TEST_F(RealTokenizer, DeepSeekCoder) {
  CheckGoldens("deepseek-coder/tokenizer.reconstructed.json", "deepseek-coder.golden.jsonl");
  CheckLlamaCpp("deepseek-coder/tokenizer.reconstructed.json",
                "deepseek-coder/ggml-vocab-deepseek-coder.gguf.out");
}

TEST_F(RealTokenizer, Stories260K) {
  std::string weights = folder_ + "../weights/stories260K/";
  auto tokenizer = LoadTokenizer(weights + "tok512.bin");
  EXPECT_EQ(tokenizer->vocab_size(), 512);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  auto golden = ParseJson(ReadFile(weights + "golden.json"));
  for (const auto& item : golden["cases"]) {
    auto expected = item["ids"].get<std::vector<int32_t>>();
    std::vector<int32_t> ids = {tokenizer->bos_id()};
    for (int32_t id : tokenizer->Encode(item["text"].get<std::string>(), false)) ids.push_back(id);
    EXPECT_EQ(ids, expected) << item["text"];
  }
  auto story = golden["greedy_ids"].get<std::vector<int32_t>>();
  EXPECT_EQ(tokenizer->Decode(story, true).substr(0, 21), " Once upon a time, th");
}

TEST_F(RealTokenizer, ChatTokensAreKnown) {
  auto tokenizer = LoadTokenizer(folder_ + "qwen2");
  EXPECT_EQ(tokenizer->eos_id(), 151645);
  EXPECT_EQ(tokenizer->bos_id(), -1);
  EXPECT_EQ(tokenizer->Encode("<|im_start|>user"), (std::vector<int32_t>{151644, 872}));
  EXPECT_GT(tokenizer->Encode("<|im_start|>user", false).size(), 4u);
  EXPECT_EQ(tokenizer->Decode({151644, 872}, true), "user");
  auto more = LoadTokenizer(folder_ + "qwen2", {"<think>", "<|im_end|>"});
  EXPECT_EQ(more->vocab_size(), 151647);
  EXPECT_EQ(more->Encode("<think>"), (std::vector<int32_t>{151646}));
  EXPECT_NE(more->Digest(), tokenizer->Digest());
}

}  // namespace
}  // namespace hone::data
