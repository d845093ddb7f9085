// 10,000 generated strings against the `tokenizers` library, for every vocabulary there is: the
// fixtures', and under HONE_DATA real ones.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "data/tokenizer.h"
#include "tests/data/generated_text.h"
#include "tests/read_json.h"

namespace hone::data {
namespace {

using nlohmann::json;

const std::string kFixtures = std::string(HONE_SOURCE_DIR) + "/tests/fixtures/tokenizers/";

// FNV-1a over the ids of a group, as the script has it.
class Digest {
 public:
  template <class Ids>
  void Add(const Ids& ids) {
    for (auto id : ids) Add(static_cast<uint32_t>(id));
    Add(0xFFFFFFFFu);
  }
  std::string Hex() const {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash_));
    return text;
  }

 private:
  void Add(uint32_t id) { hash_ = (hash_ ^ id) * 0x100000001B3; }
  uint64_t hash_ = 0xCBF29CE484222325;
};

class GeneratedIds : public ::testing::Test {
 protected:
  GeneratedIds() : fixture_(ReadJson(kFixtures + "generated_ids.json")) {
    const GeneratedText text(fixture_);
    for (uint64_t i = 0; i < fixture_["count"]; ++i) texts_.push_back(text.At(i));
  }
  void Compare(const std::string& name, const Tokenizer& tokenizer) const {
    const std::vector<std::string> want = fixture_["tokenizers"][name];
    const size_t group = fixture_["group"];
    ASSERT_EQ(want.size() * group, texts_.size());
    for (size_t g = 0; g < want.size(); ++g) {
      Digest digest;
      for (size_t i = g * group; i < (g + 1) * group; ++i) {
        digest.Add(tokenizer.Encode(texts_[i], /*parse_special=*/i % 2 == 0));
      }
      EXPECT_EQ(digest.Hex(), want[g]) << name << ": see make_generated_ids.py " << name << " " << g
                                       << ", from " << texts_[g * group];
    }
  }

  json fixture_;
  std::vector<std::string> texts_;
};

TEST_F(GeneratedIds, TheStringsAreThoseOfTheScript) {
  Digest digest;
  for (const std::string& text : texts_) {
    digest.Add(std::vector<uint8_t>(text.begin(), text.end()));
  }
  EXPECT_EQ(fixture_["text_digest"], digest.Hex());
}

TEST_F(GeneratedIds, OfTheFixturesAreThoseOfTheTokenizersLibrary) {
  int compared = 0;
  for (const auto& [name, digests] : fixture_["tokenizers"].items()) {
    if (name.starts_with("data/")) continue;
    Compare(name, *LoadTokenizer(kFixtures + name));
    ++compared;
  }
  EXPECT_EQ(compared, 16);
}

TEST_F(GeneratedIds, OfRealVocabulariesToo) {
  const char* data = std::getenv("HONE_DATA");
  if (data == nullptr) GTEST_SKIP() << "set HONE_DATA to the folder with real data";
  int compared = 0;
  for (const auto& [name, digests] : fixture_["tokenizers"].items()) {
    if (!name.starts_with("data/")) continue;
    Compare(name, *LoadTokenizer(std::string(data) + "/tokenizers" + name.substr(4)));
    ++compared;
  }
  EXPECT_EQ(compared, 7);
}

// The library takes no bytes that are not UTF-8. Here they must come back as they were, and leave
// the ids of what is whole before them alone.
TEST_F(GeneratedIds, BytesThatAreNoUtf8ComeBack) {
  const auto tokenizer = LoadTokenizer(kFixtures + "deepseek_v3.json");
  for (size_t i = 0; i < texts_.size(); ++i) {
    std::string text = texts_[i];
    text.erase(text.size() - i % std::min<size_t>(4, text.size()));  // may cut a character
    if (i % 3 == 0) text.insert(text.size() / 2, 1, static_cast<char>(0x80 + i % 128));
    ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text) << i;
  }
}

}  // namespace
}  // namespace hone::data
