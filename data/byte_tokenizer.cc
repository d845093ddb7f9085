#include <fmt/format.h>

#include <algorithm>

#include "data/tokenizer.h"
#include "runtime/error.h"
#include "runtime/philox.h"

namespace hone::data {
namespace {

constexpr int32_t kBytes = 256;
constexpr const char* kBuiltIn[] = {"<|bos|>",  "<|eos|>",  "<|pad|>",  "<think>",
                                    "</think>", "<answer>", "</answer>"};

class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(const std::vector<std::string>& extra_special) {
    for (const char* name : kBuiltIn) Add(name);
    for (const std::string& name : extra_special) Add(name);
  }

  int32_t vocab_size() const override { return kBytes + static_cast<int32_t>(special_.size()); }

  std::vector<int32_t> Encode(std::string_view text, bool parse_special) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    while (!text.empty()) {
      int32_t special = parse_special ? LongestSpecialAt(text) : -1;
      ids.push_back(special >= 0 ? special : static_cast<uint8_t>(text[0]));
      text.remove_prefix(special >= 0 ? Name(special).size() : 1);
    }
    return ids;
  }

  std::string Decode(const std::vector<int32_t>& ids, bool skip_special) const override {
    std::string text;
    for (int32_t id : ids) {
      if (id < kBytes || !skip_special) text += TokenBytes(id);
    }
    return text;
  }

  std::string TokenBytes(int32_t id) const override {
    Check<DataError>(id >= 0 && id < vocab_size(),
                     "[byte_tokenizer] no token has id {}; ids end at {}", id, vocab_size() - 1);
    return id < kBytes ? std::string(1, static_cast<char>(id)) : Name(id);
  }

  int32_t SpecialId(std::string_view name) const override {
    auto at = std::find(special_.begin(), special_.end(), name);
    return at == special_.end() ? -1 : kBytes + static_cast<int32_t>(at - special_.begin());
  }
  int32_t bos_id() const override { return kBytes; }
  int32_t eos_id() const override { return kBytes + 1; }

  std::string Digest() const override {
    std::string all;
    for (const std::string& name : special_) all += name + '\n';
    return fmt::format("byte-{}-{:016x}", vocab_size(), HashName(all));
  }

 private:
  void Add(const std::string& name) {
    Check<ConfigError>(!name.empty(), "[byte_tokenizer] a special token is the empty string");
    if (SpecialId(name) < 0) special_.push_back(name);
  }
  const std::string& Name(int32_t id) const { return special_[static_cast<size_t>(id - kBytes)]; }

  int32_t LongestSpecialAt(std::string_view text) const {
    int32_t best = -1;
    size_t length = 0;
    for (size_t i = 0; i < special_.size(); ++i) {
      if (special_[i].size() > length && text.starts_with(special_[i])) {
        best = kBytes + static_cast<int32_t>(i);
        length = special_[i].size();
      }
    }
    return best;
  }

  std::vector<std::string> special_;
};

}  // namespace

std::unique_ptr<Tokenizer> MakeByteTokenizer(const std::vector<std::string>& extra_special) {
  return std::make_unique<ByteTokenizer>(extra_special);
}

}  // namespace hone::data
