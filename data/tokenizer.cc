#include "data/tokenizer.h"

#include "data/utf8.h"
#include "runtime/error.h"

namespace hone::data {

std::unique_ptr<Tokenizer> LoadTokenizer(const std::string& spec,
                                         const std::vector<std::string>& extra_special) {
  if (spec == "byte") return MakeByteTokenizer(extra_special);
  throw ConfigError("[tokenizer] '" + spec + "' is not a tokenizer that can be loaded; use 'byte'");
}

IncrementalDecoder::IncrementalDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special) {}

std::string IncrementalDecoder::Push(int32_t id) {
  pending_ += tokenizer_.Decode({id}, skip_special_);
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Step::Kind::kIncomplete) break;
    if (step.kind == Utf8Step::Kind::kCharacter) {
      out.append(rest.substr(0, step.length));
    } else {
      AppendUtf8(0xFFFD, &out);
    }
    rest.remove_prefix(step.length);
  }
  pending_.erase(0, pending_.size() - rest.size());
  return out;
}

std::string IncrementalDecoder::Flush() {
  std::string out = ReplaceInvalidUtf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace hone::data
