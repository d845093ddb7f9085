// Every input that fuzzing kept: each reached a part of a reader that no other did, or once crashed
// one (regression-*).
#include <gtest/gtest.h>

#include <iterator>

#include "tests/fuzz/targets.h"

namespace hone::fuzz {
namespace {

namespace fs = std::filesystem;

class Corpus : public ::testing::TestWithParam<const char*> {};

TEST_P(Corpus, IsReadOrRefused) {
  int inputs = 0, read = 0;
  for (const auto& file :
       fs::directory_iterator(HONE_SOURCE_DIR "/tests/fuzz/corpus/" + std::string(GetParam()))) {
    SCOPED_TRACE(file.path().filename());
    std::ifstream in(file.path(), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    ++inputs;
    try {
      Targets().at(GetParam())(bytes);
      ++read;
    } catch (const Error&) {
    }
  }
  // Both whole files and broken ones are among them.
  EXPECT_GT(inputs, 20);
  EXPECT_GT(read, 0);
  EXPECT_GT(inputs, read);
}

INSTANTIATE_TEST_SUITE_P(Targets, Corpus,
                         ::testing::Values("tokenizer_json", "safetensors", "model_config",
                                           "chat_template"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace hone::fuzz
