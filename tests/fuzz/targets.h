// What is fuzzed: readers of files that strangers write. Each target reads any bytes and returns;
// hone's own errors are an answer, anything else that is thrown, and any crash, is a bug.
//
// `./hone fuzz TARGET SECONDS` runs one under libFuzzer and AddressSanitizer; replay_test.cc runs
// every input under corpus/TARGET with the ordinary build.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "runtime/error.h"

namespace hone::fuzz {

// A folder in memory, one for this process, gone when it ends.
class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp") +
                       std::string("/hone-fuzz-XXXXXX");
    folder_ = ::mkdtemp(name.data());
  }
  ~Scratch() { std::filesystem::remove_all(folder_); }
  static std::string Write(const std::string& name, std::string_view bytes) {
    static const Scratch scratch;
    const std::string path = scratch.folder_ + "/" + name;
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    return path;
  }

 private:
  std::string folder_;
};

inline void ReadTokenizerJson(std::string_view bytes) {
  const auto tokenizer = data::LoadTokenizer(Scratch::Write("tokenizer.json", bytes));
  for (std::string_view text :
       {"", "a fox <l> 12\n\n  don't", "\xEB\x8B\xB5\xF0\x9F\x98\x80 \xC3\xA9", "\xFF\xC3 \x80"}) {
    for (bool parse_special : {true, false}) {
      tokenizer->Decode(tokenizer->Encode(text, parse_special), parse_special);
    }
  }
  tokenizer->Digest();
}

// The header's JSON; and behind a zero byte the data.
inline void ReadSafetensors(std::string_view bytes) {
  const std::string_view header = bytes.substr(0, bytes.find('\0'));
  bytes.remove_prefix(std::min(bytes.size(), header.size() + 1));
  const uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  file.append(header).append(bytes);
  const model::SafetensorsReader reader(Scratch::Write("a.safetensors", file));
  for (const auto& entry : reader.entries()) {
    const Tensor all = reader.Get(entry.name);
    const auto* data = static_cast<const volatile char*>(all.raw());
    for (int64_t i = 0; i < all.bytes(); ++i) data[i];
  }
}

inline void ReadModelConfig(std::string_view bytes) {
  model::ModelConfig::FromHuggingFaceText(std::string(bytes), "config.json").ToHuggingFaceJson();
}

inline void ReadChatTemplate(std::string_view bytes) {
  const std::string path = Scratch::Write("tokenizer_config.json", bytes);
  const auto form = data::ChatTemplate::FromFolder(std::filesystem::path(path).parent_path());
  form.Text({{"user", "a", ""}, {"assistant", "<think>b</think>c", ""}}, {});
}

inline const std::map<std::string, std::function<void(std::string_view)>>& Targets() {
  static const std::map<std::string, std::function<void(std::string_view)>> targets = {
      {"tokenizer_json", ReadTokenizerJson},
      {"safetensors", ReadSafetensors},
      {"model_config", ReadModelConfig},
      {"chat_template", ReadChatTemplate}};
  return targets;
}

inline void RunTarget(const std::string& name, std::string_view bytes) {
  try {
    Targets().at(name)(bytes);
  } catch (const Error&) {
  }
}

}  // namespace hone::fuzz
