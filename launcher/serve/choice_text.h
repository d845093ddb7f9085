// From drawn tokens to what a client is shown: whole characters, nothing of a stop string, thinking
// apart from the answer.
#pragma once

#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace hone::launcher {

// How many bytes at the end of `text` may be the beginning of one of `words`.
size_t HeldBack(const std::string& text, const std::vector<std::string>& words);

// Cuts text at the first stop string. What may yet become one is held back.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> words) : words_(std::move(words)) {}
  std::string Push(const std::string& text);
  std::string Flush();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> words_;
  std::string pending_;
  bool stopped_ = false;
};

struct SplitText {
  std::string reasoning, content;
};

// R1's convention: what stands before </think> is reasoning. It begins with <think>, unless the
// prompt ended with that already. Line breaks around the tags belong to neither part.
class ThinkSplitter {
 public:
  // `active` false: everything is content.
  ThinkSplitter(bool active, bool opened_by_prompt)
      : state_(!active            ? State::kAnswer
               : opened_by_prompt ? State::kThinking
                                  : State::kStart),
        skip_breaks_(active && opened_by_prompt) {}
  SplitText Push(const std::string& text);
  SplitText Flush();

 private:
  enum class State { kStart, kThinking, kAnswer };
  // Moves what is decided from pending_ to *out; false when nothing more is.
  bool Advance(SplitText* out);
  void SkipBreaks();

  State state_;
  bool skip_breaks_;
  std::string pending_;
};

// One choice of a response.
class ChoiceText {
 public:
  struct Options {
    std::vector<int32_t> stop_ids;
    std::vector<std::string> stop_strings;
    bool split_thinking = false, prompt_opens_thinking = false;
  };
  // `tokenizer` outlives this.
  ChoiceText(const data::Tokenizer& tokenizer, const Options& options)
      : tokenizer_(tokenizer),
        options_(options),
        decoder_(tokenizer),
        filter_(options.stop_strings),
        splitter_(options.split_thinking, options.prompt_opens_thinking) {}

  SplitText Push(int32_t token);
  SplitText Flush();  // after the last token
  bool IsStop(int32_t token) const;

 private:
  const data::Tokenizer& tokenizer_;
  Options options_;
  data::IncrementalDecoder decoder_;
  StopFilter filter_;
  ThinkSplitter splitter_;
};

}  // namespace hone::launcher
