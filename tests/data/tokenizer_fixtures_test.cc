// Ids against those of the `tokenizers` library (tests/fixtures/make_tokenizer_fixtures.py), and
// what is said about tokenizer files that are wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "data/tokenizer.h"
#include "data/utf8.h"
#include "runtime/philox.h"
#include "tests/data/test_sources.h"
#include "tests/read_json.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::data {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

const std::string kFixtures = std::string(HONE_SOURCE_DIR) + "/tests/fixtures/tokenizers/";

void Compare(const Tokenizer& tokenizer, const json& texts, const json& golden,
             const std::string& name) {
  for (size_t i = 0; i < texts.size(); ++i) {
    std::string text = texts[i];
    EXPECT_EQ(tokenizer.Encode(text), golden["parsed"][i].get<Ids>())
        << name << " text " << i << ": " << text;
    EXPECT_EQ(tokenizer.Encode(text, false), golden["plain"][i].get<Ids>())
        << name << " without special tokens, text " << i << ": " << text;
  }
}

TEST(TokenizerFixtures, IdsAreThoseOfTheTokenizersLibrary) {
  json golden = ReadJson(kFixtures + "golden_ids.json");
  EXPECT_EQ(golden["tokenizers"].size(), 16u);
  for (const auto& [name, ids] : golden["tokenizers"].items()) {
    Compare(*LoadTokenizer(kFixtures + name + ".json"), golden["texts"], ids, name);
  }
}

TEST(TokenizerFixtures, RealTokenizersToo) {
  const char* data = std::getenv("HONE_DATA");
  if (data == nullptr) GTEST_SKIP() << "set HONE_DATA to the folder with real data";
  json golden = ReadJson(kFixtures + "real_ids.json");
  for (const auto& [path, ids] : golden["tokenizers"].items()) {
    Compare(*LoadTokenizer(std::string(data) + "/tokenizers/" + path), golden["texts"], ids, path);
  }
}

TEST(TokenizerFixtures, DecodeGivesTheTextBack) {
  json golden = ReadJson(kFixtures + "golden_ids.json");
  for (const char* name : {"llama3", "deepseek_v3", "gpt4o", "falcon", "starcoder"}) {
    auto tokenizer = LoadTokenizer(kFixtures + name + ".json");
    for (const std::string text : golden["texts"]) {
      EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text) << name;
    }
  }
}

TEST(TokenizerFixtures, BytesThatAreNoUtf8SurviveToo) {
  auto tokenizer = LoadTokenizer(kFixtures + "llama3.json");
  for (uint64_t round = 0; round < 300; ++round) {
    RandomStream stream({21, round});
    std::string text;
    for (uint64_t i = 0; i < 40; ++i) text += static_cast<char>(stream.Below(256, i));
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  }
}

TEST(TokenizerFixtures, StreamedTextIsTheText) {
  auto tokenizer = LoadTokenizer(kFixtures + "qwen2.json");
  std::string text = "so 답은 6이다 😀👍🏽, カタカナ", streamed;
  IncrementalDecoder decoder(*tokenizer);
  for (int32_t id : tokenizer->Encode(text)) {
    std::string piece = decoder.Push(id);
    EXPECT_TRUE(IsValidUtf8(piece));
    streamed += piece;
  }
  EXPECT_EQ(streamed + decoder.Flush(), text);
}

TEST(TokenizerFixtures, ManyThreadsGetTheSameIds) {
  auto tokenizer = LoadTokenizer(kFixtures + "llama3.json");
  json texts = ReadJson(kFixtures + "golden_ids.json")["texts"];
  auto encode_all = [&] {
    std::vector<Ids> all;
    for (int round = 0; round < 20; ++round) {
      for (const auto& text : texts) all.push_back(tokenizer->Encode(text.get<std::string>()));
    }
    return all;
  };
  std::vector<std::vector<Ids>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) threads.emplace_back([&] { result = encode_all(); });
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
}

TEST(TokenizerFixtures, ALongWordIsNotQuadratic) {
  auto tokenizer = LoadTokenizer(kFixtures + "llama3.json");
  std::string word(1 << 20, 'a');
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(word)), word);
}

TEST(TokenizerFixtures, IgnoredMergesTakeAWordWhole) {
  json root = ReadJson(kFixtures + "llama3.json");
  root["model"]["merges"] = json::array();
  const runtime::TemporaryFolder folder;
  const std::string path = folder / "no_merges.json";
  std::ofstream(path) << root.dump();
  int32_t the = root["model"]["vocab"]["Ġthe"];
  EXPECT_EQ(LoadTokenizer(path)->Encode(" the"), (Ids{the}));
  root["model"]["ignore_merges"] = false;
  std::ofstream(path) << root.dump();
  EXPECT_EQ(LoadTokenizer(path)->Encode(" the").size(), 4u);
}

// The message of loading the llama3 fixture after a change to it.
std::string MessageAfter(const std::function<void(json*)>& change) {
  json root = ReadJson(kFixtures + "llama3.json");
  change(&root);
  const runtime::TemporaryFolder folder;
  const std::string path = folder / "broken_tokenizer.json";
  std::ofstream(path) << root.dump();
  return MessageOf<DataError>([&] { LoadTokenizer(path); });
}

TEST(TokenizerFixtures, WrongFilesAreExplained) {
  auto expect = [](const std::string& part, const std::function<void(json*)>& change) {
    std::string message = MessageAfter(change);
    EXPECT_THAT(message, HasSubstr("broken_tokenizer.json: "));
    EXPECT_THAT(message, HasSubstr(part));
  };
  EXPECT_EQ(MessageAfter([](json*) {}), "");
  expect("'model' is missing", [](json* r) { r->erase("model"); });
  expect("an object was expected", [](json* r) { *r = json::array(); });
  expect("'Unigram' is not supported", [](json* r) { (*r)["model"]["type"] = "Unigram"; });
  expect("'vocab' is missing", [](json* r) { (*r)["model"].erase("vocab"); });
  expect("'merges' is missing", [](json* r) { (*r)["model"].erase("merges"); });
  expect("has the id \"x\"", [](json* r) { (*r)["model"]["vocab"]["a"] = "x"; });
  expect("has the id -1", [](json* r) { (*r)["model"]["vocab"]["a"] = -1; });
  expect("'left right' was expected", [](json* r) { (*r)["model"]["merges"][0] = "abc"; });
  expect("the vocabulary lacks 'qqq'", [](json* r) {
    (*r)["model"]["merges"][0] = json::array({"qqq", "b"});
  });
  expect("dropout", [](json* r) { (*r)["model"]["dropout"] = 0.1; });
  expect("'Bert' is not supported", [](json* r) { (*r)["pre_tokenizer"]["type"] = "Bert"; });
  expect("pre_tokenizer[0]: the pattern '(' does not compile",
         [](json* r) { (*r)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("; });
  expect("'Odd' is not supported",
         [](json* r) { (*r)["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Odd"; });
  expect("normalizer: 'Odd' is not supported", [](json* r) {
    (*r)["normalizer"] = {{"type", "Odd"}};
  });
  expect("added_tokens[0]: 'id' is missing", [](json* r) { (*r)["added_tokens"][0].erase("id"); });
}

TEST(TokenizerFixtures, FilesThatAreNoTokenizerAreExplained) {
  const runtime::TemporaryFolder folder;
  EXPECT_THAT(MessageOf<ConfigError>([&] { LoadTokenizer(folder.path()); }),
              HasSubstr("tokenizer.json"));
  EXPECT_THAT(MessageOf<ConfigError>([] { LoadTokenizer("/nowhere"); }), HasSubstr("'/nowhere'"));
  auto write = [&](const std::string& name, const std::string& bytes) {
    std::ofstream(folder / name, std::ios::binary) << bytes;
    return folder / name;
  };
  EXPECT_THAT(MessageOf<DataError>([&] { LoadTokenizer(write("a.json", "{")); }),
              HasSubstr("a.json: not JSON"));
  std::string deep;
  for (int i = 0; i < 30'000; ++i) deep += R"({"type":"Sequence","pretokenizers":[)";
  for (int i = 0; i < 30'000; ++i) deep += "]}";
  EXPECT_THAT(MessageOf<DataError>(
                  [&] { LoadTokenizer(write("a.json", R"({"pre_tokenizer":)" + deep + "}")); }),
              HasSubstr("a.json: JSON nested deeper than 100 levels"));
  EXPECT_THAT(MessageOf<DataError>([&] { LoadTokenizer(write("a.bin", std::string(20, 'x'))); }),
              HasSubstr("a.bin: token 0 does not fit"));
  EXPECT_THAT(MessageOf<DataError>([&] { LoadTokenizer(write("a.model", "\x0A\xFF")); }),
              HasSubstr("a.model: not a SentencePiece model"));
  EXPECT_THAT(MessageOf<DataError>([&] { LoadTokenizer(write("b.model", "IQ== 0\nIg== 2\n")); }),
              HasSubstr("b.model:2: "));
}

// Calls `visit` with every node but the middles of long lists and maps.
void VisitNodes(json* node, const std::function<void(json*)>& visit) {
  visit(node);
  if (!node->is_structured()) return;
  size_t at = 0, size = node->size();
  for (auto& child : *node) {
    if (size < 40 || at < 3) VisitNodes(&child, visit);
    ++at;
  }
}

TEST(TokenizerFixtures, AnyValueOfAnyTypeIsReadOrExplained) {
  int explained = 0, tried = 0;
  for (const char* name : {"strip_flags", "llama2"}) {
    json root = ReadJson(kFixtures + name + ".json");
    const runtime::TemporaryFolder folder;
    const std::string path = folder / "fuzzed_tokenizer.json";
    VisitNodes(&root, [&](json* node) {
      json kept = *node;
      for (const json& other : {json(), json(-1), json("x"), json::array(), json::object(),
                                json(1e300), json::array({json(), 7})}) {
        *node = other;
        std::ofstream(path) << root.dump();
        ++tried;
        try {
          LoadTokenizer(path)->Encode("a fox <l> 12");
        } catch (const DataError& e) {
          EXPECT_THAT(e.what(), HasSubstr("fuzzed_tokenizer.json"));
          ++explained;
        }
      }
      *node = kept;
    });
  }
  EXPECT_GT(explained, 200);
  EXPECT_GT(tried, 700);
}

// A SentencePiece model spelled by hand: pieces with scores, then trainer and normaliser settings.
std::string Varint(uint64_t value) {
  std::string out;
  for (; value >= 128; value >>= 7) out += static_cast<char>(value | 128);
  return out + static_cast<char>(value);
}
std::string Bytes(int field, const std::string& bytes) {
  return Varint(static_cast<uint64_t>(field << 3 | 2)) + Varint(bytes.size()) + bytes;
}
std::string Number(int field, uint64_t value) {
  return Varint(static_cast<uint64_t>(field << 3)) + Varint(value);
}
std::string PieceProto(const std::string& text, float score, uint64_t type) {
  std::string bits(4, 0);
  std::memcpy(bits.data(), &score, 4);
  return Bytes(1, Bytes(1, text) + Varint(2 << 3 | 5) + bits + Number(3, type));
}

TEST(TokenizerFixtures, SentencePieceModels) {
  std::string model =
      PieceProto("<unk>", 0, 2) + PieceProto("<s>", 0, 3) + PieceProto("</s>", 0, 3);
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", b);
    model += PieceProto(name, 0, 6);
  }
  // 259 "▁", 260 "a", 261 "b", 262 "▁a", 263 "ab", 264 "▁ab": "▁ab" is reached only over "ab".
  const char* pieces[] = {"▁", "a", "b", "▁a", "ab", "▁ab"};
  const float scores[] = {-10, -11, -12, -2, -1, -3};
  for (int i = 0; i < 6; ++i) model += PieceProto(pieces[i], scores[i], 1);
  model += Bytes(2, Number(3, 2) + Number(35, 1) + Number(41, 1) + Number(42, 2));
  model += Bytes(3, Number(3, 1) + Number(4, 0));
  const runtime::TemporaryFolder folder;
  const std::string path = folder / "sentencepiece.model";
  std::ofstream(path, std::ios::binary) << model;
  auto tokenizer = LoadTokenizer(path);
  for (size_t length = 0; length < model.size(); length += 31) {
    std::ofstream(path, std::ios::binary) << model.substr(0, length);
    try {
      LoadTokenizer(path)->Encode("ab aé");
    } catch (const DataError&) {
    }
  }
  // The format has no field 0: what is in one is of no piece.
  std::ofstream(path, std::ios::binary) << Bytes(0, Number(101, 1));
  EXPECT_THAT(MessageOf<DataError>([&] { LoadTokenizer(path); }), HasSubstr("it has no pieces"));
  EXPECT_EQ(tokenizer->Encode("ab aé"), (Ids{264, 262, 3 + 0xC3, 3 + 0xA9}));
  EXPECT_EQ(tokenizer->Decode({264, 262, 3 + 0xC3, 3 + 0xA9}), " ab aé");
  EXPECT_EQ(tokenizer->Encode("<s>ab"), (Ids{1, 264}));
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
}

TEST(TokenizerFixtures, Llama3Ranks) {
  // Bytes 0–255, then "he" and "hell": "hello" has no way to "hell" but is whole in the list.
  auto base64 = [](const std::string& text) {
    const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    for (size_t i = 0; i < text.size(); i += 3) {
      uint32_t bits = 0;
      for (size_t j = 0; j < 3; ++j) {
        bits = bits << 8 | (i + j < text.size() ? static_cast<uint8_t>(text[i + j]) : 0u);
      }
      for (size_t j = 0; j < 4; ++j) {
        out += i + j > text.size() ? '=' : digits[bits >> (18 - 6 * j) & 63];
      }
    }
    return out;
  };
  std::string ranks;
  int rank = 0;
  for (int b = 0; b < 256; ++b)
    ranks += base64({static_cast<char>(b)}) + " " + std::to_string(rank++) + "\n";
  for (const char* word : {"he", "hello"})
    ranks += base64(word) + " " + std::to_string(rank++) + "\n";
  const runtime::TemporaryFolder folder;
  const std::string path = folder / "llama3.model";
  std::ofstream(path, std::ios::binary) << ranks;
  auto tokenizer = LoadTokenizer(path);
  EXPECT_EQ(tokenizer->vocab_size(), 258 + 256);
  EXPECT_EQ(tokenizer->Encode("hello"), (Ids{257}));
  EXPECT_EQ(tokenizer->Encode("hell"), (Ids{256, 'l', 'l'}));
  EXPECT_EQ(tokenizer->Encode("<|begin_of_text|>he<|eot_id|>"), (Ids{258, 256, 258 + 9}));
  EXPECT_EQ(tokenizer->SpecialId("<|start_header_id|>"), 258 + 6);
  EXPECT_EQ(tokenizer->eos_id(), 259);
}

}  // namespace
}  // namespace hone::data
