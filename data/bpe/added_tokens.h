// Tokens that are cut out of the text before anything else is done to it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hone::data {

// As in the "added_tokens" of a tokenizer.json.
struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special =
      false;  // a control token: skipped when decoding if asked, plain text if not parsed
  bool normalized = false;   // looked for in the normalised text, else in the text as given
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false, rstrip = false;  // takes the white space on that side with it
};

// Finds tokens: at each place the longest, from left to right.
class AddedTokenFinder {
 public:
  void Add(const AddedToken& token);
  bool empty() const { return tokens_.empty(); }
  // Calls text(piece) and token(token) in order. Special tokens are text unless `parse_special`.
  void Cut(std::string_view text, bool parse_special,
           const std::function<void(std::string_view)>& on_text,
           const std::function<void(const AddedToken&)>& on_token) const;

 private:
  struct Node {
    std::vector<std::pair<char, int32_t>> next;  // the children
    int32_t token = -1;                          // that ends here
  };
  int32_t Child(int32_t node, char byte) const;
  // The longest token that begins at `at`, or −1.
  int32_t LongestAt(std::string_view text, size_t at) const;

  std::vector<Node> nodes_ = {Node{}};
  std::vector<AddedToken> tokens_;
  std::array<bool, 256> begins_{};
};

}  // namespace hone::data
