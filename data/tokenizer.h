// Text ↔ token ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hone::data {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual int32_t vocab_size() const = 0;
  // With `parse_special` the spelled-out special tokens in `text` become their ids; without, they
  // are ordinary text. No token is added at either end.
  virtual std::vector<int32_t> Encode(std::string_view text, bool parse_special = true) const = 0;
  // The exact bytes of each token, joined. Special tokens as their spelling unless skipped.
  virtual std::string Decode(const std::vector<int32_t>& ids, bool skip_special = false) const = 0;
  virtual std::string TokenBytes(int32_t id) const = 0;
  virtual int32_t SpecialId(std::string_view name) const = 0;  // −1 if there is none
  virtual int32_t eos_id() const = 0;
  virtual int32_t bos_id() const = 0;      // −1 if there is none
  virtual std::string Digest() const = 0;  // of everything that changes its results
};

// ids 0–255 are bytes; then <|bos|> 256, <|eos|> 257, <|pad|> 258, <think> 259, </think> 260,
// <answer> 261,
// </answer> 262; then `extra_special`.
std::unique_ptr<Tokenizer> MakeByteTokenizer(const std::vector<std::string>& extra_special = {});
// "byte", or a folder or file with tokenizer.json / vocab.json + merges.txt / tokenizer.model /
// tok512.bin.
std::unique_ptr<Tokenizer> LoadTokenizer(const std::string& spec,
                                         const std::vector<std::string>& extra_special = {});

// Turns a stream of ids into text without ever splitting a UTF-8 character.
class IncrementalDecoder {
 public:
  explicit IncrementalDecoder(const Tokenizer& tokenizer, bool skip_special = false);
  std::string Push(int32_t id);  // whole characters that are now complete
  std::string Flush();           // what is left, incomplete bytes as U+FFFD

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace hone::data
