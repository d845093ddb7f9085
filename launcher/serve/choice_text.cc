#include "launcher/serve/choice_text.h"

#include <algorithm>
#include <utility>

namespace hone::launcher {
namespace {

const std::string kOpen = "<think>", kClose = "</think>", kReplacement = "\xEF\xBF\xBD";

}  // namespace

size_t HeldBack(const std::string& text, const std::vector<std::string>& words) {
  size_t held = 0;
  for (const std::string& word : words) {
    for (size_t n = std::min(text.size(), word.empty() ? 0 : word.size() - 1); n > held; --n) {
      if (text.compare(text.size() - n, n, word, 0, n) == 0) held = n;
    }
  }
  return held;
}

std::string StopFilter::Push(const std::string& text) {
  if (stopped_) return "";
  pending_ += text;
  size_t at = std::string::npos;
  for (const std::string& word : words_) {
    if (!word.empty()) at = std::min(at, pending_.find(word));
  }
  stopped_ = at != std::string::npos;
  const size_t end = stopped_ ? at : pending_.size() - HeldBack(pending_, words_);
  std::string out = pending_.substr(0, end);
  pending_.erase(0, stopped_ ? pending_.size() : end);
  return out;
}

std::string StopFilter::Flush() { return std::exchange(pending_, ""); }

void ThinkSplitter::SkipBreaks() {
  if (!skip_breaks_) return;
  pending_.erase(0, std::min(pending_.find_first_not_of('\n'), pending_.size()));
  skip_breaks_ = pending_.empty();
}

bool ThinkSplitter::Advance(SplitText* out) {
  if (state_ == State::kStart) {
    const size_t begin = std::min(pending_.find_first_not_of(" \n"), pending_.size());
    const std::string head = pending_.substr(begin, kOpen.size());
    if (head != kOpen && kOpen.starts_with(head)) return false;
    state_ = head == kOpen ? State::kThinking : State::kAnswer;
    skip_breaks_ = head == kOpen;
    if (head == kOpen) pending_.erase(0, begin + kOpen.size());
    return true;
  }
  SkipBreaks();
  if (state_ == State::kAnswer) {
    out->content += std::exchange(pending_, "");
    return false;
  }
  const size_t close = pending_.find(kClose);
  const bool closed = close != std::string::npos;
  size_t end = closed ? close : pending_.size() - HeldBack(pending_, {kClose});
  // Line breaks may yet turn out to stand before the tag.
  size_t kept = end;
  while (kept > 0 && pending_[kept - 1] == '\n') --kept;
  out->reasoning += pending_.substr(0, kept);
  pending_.erase(0, closed ? end + kClose.size() : kept);
  if (closed) {
    state_ = State::kAnswer;
    skip_breaks_ = true;
  }
  return closed;
}

SplitText ThinkSplitter::Push(const std::string& text) {
  SplitText out;
  pending_ += text;
  while (Advance(&out)) {
  }
  return out;
}

SplitText ThinkSplitter::Flush() {
  SplitText out;
  (state_ == State::kThinking ? out.reasoning : out.content) = std::exchange(pending_, "");
  return out;
}

bool ChoiceText::IsStop(int32_t token) const {
  const auto& ids = options_.stop_ids;
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

SplitText ChoiceText::Push(int32_t token) {
  if (IsStop(token)) return {};
  return splitter_.Push(filter_.Push(
      token < tokenizer_.vocab_size() ? decoder_.Push(token) : decoder_.Flush() + kReplacement));
}

SplitText ChoiceText::Flush() {
  std::string last = filter_.Push(decoder_.Flush());
  last += filter_.Flush();
  SplitText text = splitter_.Push(last);
  SplitText rest = splitter_.Flush();
  return {text.reasoning + rest.reasoning, text.content + rest.content};
}

}  // namespace hone::launcher
