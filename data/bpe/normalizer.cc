#include "data/bpe/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/locid.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>

#include "data/bpe/regex.h"
#include "data/utf8.h"
#include "runtime/error.h"

namespace hone::data {
namespace {

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

class UnicodeNormalizer : public Normalizer {
 public:
  explicit UnicodeNormalizer(UnicodeForm form) {
    UErrorCode error = U_ZERO_ERROR;
    bool compatible = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
    bool compose = form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc;
    form_ = icu::Normalizer2::getInstance(nullptr, compatible ? "nfkc" : "nfc",
                                          compose ? UNORM2_COMPOSE : UNORM2_DECOMPOSE, error);
    Check(U_SUCCESS(error), "[normalizer] ICU has no data: {}", u_errorName(error));
  }
  std::string Apply(std::string_view text) const override {
    if (IsAscii(text)) return std::string(text);
    std::string out;
    icu::StringByteSink<std::string> sink(&out);
    UErrorCode error = U_ZERO_ERROR;
    icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
    form_->normalizeUTF8(0, piece, sink, nullptr, error);
    Check(U_SUCCESS(error), "[normalizer] {} bytes failed: {}", text.size(), u_errorName(error));
    return out;
  }

 private:
  const icu::Normalizer2* form_;
};

class Lowercase : public Normalizer {
 public:
  std::string Apply(std::string_view text) const override {
    icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
    std::string out;
    icu::UnicodeString::fromUTF8(piece).toLower(icu::Locale::getRoot()).toUTF8String(out);
    return out;
  }
};

class StripAccents : public Normalizer {
 public:
  std::string Apply(std::string_view text) const override {
    std::string out;
    while (!text.empty()) {
      Utf8Step step = NextUtf8(text);
      if ((U_GET_GC_MASK(static_cast<UChar32>(step.code)) & U_GC_M_MASK) == 0) {
        out.append(text.substr(0, step.length));
      }
      text.remove_prefix(step.length);
    }
    return out;
  }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  std::string Apply(std::string_view text) const override {
    size_t begin = std::string_view::npos, end = 0;
    for (size_t at = 0; at < text.size();) {
      Utf8Step step = NextUtf8(text.substr(at));
      if (!IsSpace(step.code)) {
        begin = std::min(begin, at);
        end = at + step.length;
      }
      at += step.length;
    }
    if (begin == std::string_view::npos) return left_ || right_ ? "" : std::string(text);
    size_t from = left_ ? begin : 0, to = right_ ? end : text.size();
    return std::string(text.substr(from, to - from));
  }

 private:
  bool left_, right_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  std::string Apply(std::string_view text) const override {
    return text.empty() ? "" : prefix_ + std::string(text);
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(const std::string& pattern, std::string content, const std::string& where)
      : regex_(pattern, where), content_(std::move(content)) {}
  std::string Apply(std::string_view text) const override {
    std::vector<std::pair<size_t, size_t>> matches;
    regex_.FindAll(text, &matches);
    std::string out;
    size_t upto = 0;
    for (auto [begin, end] : matches) {
      out.append(text.substr(upto, begin - upto)).append(content_);
      upto = end;
    }
    return out.append(text.substr(upto));
  }

 private:
  Regex regex_;
  std::string content_;
};

class NormalizerSequence : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<Normalizer>> steps)
      : steps_(std::move(steps)) {}
  std::string Apply(std::string_view text) const override {
    std::string now(text);
    for (const auto& step : steps_) now = step->Apply(now);
    return now;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

}  // namespace

std::unique_ptr<Normalizer> MakeUnicodeNormalizer(UnicodeForm form) {
  return std::make_unique<UnicodeNormalizer>(form);
}
std::unique_ptr<Normalizer> MakeLowercase() { return std::make_unique<Lowercase>(); }
std::unique_ptr<Normalizer> MakeStripAccents() { return std::make_unique<StripAccents>(); }
std::unique_ptr<Normalizer> MakeStrip(bool left, bool right) {
  return std::make_unique<Strip>(left, right);
}
std::unique_ptr<Normalizer> MakePrepend(const std::string& prefix) {
  return std::make_unique<Prepend>(prefix);
}
std::unique_ptr<Normalizer> MakeReplace(const std::string& pattern, const std::string& content,
                                        const std::string& where) {
  return std::make_unique<Replace>(pattern, content, where);
}
std::unique_ptr<Normalizer> MakeNormalizerSequence(std::vector<std::unique_ptr<Normalizer>> steps) {
  return std::make_unique<NormalizerSequence>(std::move(steps));
}

bool IsSpace(uint32_t code) { return u_isUWhiteSpace(static_cast<UChar32>(code)) != 0; }

bool IsWordCharacter(uint32_t code) {
  UChar32 c = static_cast<UChar32>(code);
  return u_isalnum(c) || u_isUAlphabetic(c) || c == '_' ||
         u_charType(c) == U_CONNECTOR_PUNCTUATION || u_charType(c) == U_NON_SPACING_MARK ||
         u_charType(c) == U_COMBINING_SPACING_MARK;
}

}  // namespace hone::data
