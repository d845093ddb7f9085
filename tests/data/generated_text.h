// The strings of fixtures/make_generated_ids.py, by the same rules.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/utf8.h"

namespace hone::data {

class GeneratedText {
 public:
  explicit GeneratedText(const nlohmann::json& fixture)
      : seed_(fixture.at("seed")),
        scripts_(fixture.at("scripts")),
        spaces_(fixture.at("spaces")),
        emoji_(fixture.at("emoji")),
        words_(fixture.at("words")),
        special_(fixture.at("special")),
        signs_(fixture.at("signs")) {}

  std::string At(uint64_t i) const {
    Stream s{seed_ + i * 0x632BE59BD9B4E019};
    std::string text;
    for (uint64_t atoms = 1 + s.Below(16); atoms > 0; --atoms) Append(s, &text);
    return text;
  }

 private:
  using Strings = std::vector<std::string>;
  struct Stream {  // splitmix64
    uint64_t state;
    uint64_t Below(uint64_t n) {
      uint64_t z = state += 0x9E3779B97F4A7C15;
      z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
      z = (z ^ z >> 27) * 0x94D049BB133111EB;
      return (z ^ z >> 31) % n;
    }
  };

  static const std::string& One(Stream& s, const Strings& of) { return of[s.Below(of.size())]; }
  static void Letters(Stream& s, uint32_t first, uint32_t last, uint64_t count, std::string* text) {
    for (; count > 0; --count) {
      AppendUtf8(first + static_cast<uint32_t>(s.Below(last - first + 1)), text);
    }
  }
  void Append(Stream& s, std::string* text) const {
    const uint64_t kind = s.Below(10);
    if (kind < 3) {
      const auto& [first, last] = scripts_[s.Below(scripts_.size())];
      Letters(s, first, last, 1 + s.Below(8), text);
    } else if (kind == 3) {
      Letters(s, '0', '9', 1 + s.Below(12), text);
    } else if (kind == 4 || kind == 5) {
      const Strings& of = kind == 4 ? spaces_ : signs_;
      for (uint64_t n = 1 + s.Below(kind == 4 ? 6 : 4); n > 0; --n) *text += One(s, of);
    } else if (kind == 6) {
      Letters(s, 'a', 'z', 1, text);
      Letters(s, 0x300, 0x36F, s.Below(4), text);
    } else {
      *text += One(s, kind == 7 ? emoji_ : kind == 8 ? special_ : words_);
    }
  }

  uint64_t seed_;
  std::vector<std::pair<uint32_t, uint32_t>> scripts_;
  Strings spaces_, emoji_, words_, special_, signs_;
};

}  // namespace hone::data
