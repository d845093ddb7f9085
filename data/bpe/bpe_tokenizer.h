// A BPE tokenizer put together from its parts, and the readers of the files that describe them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/bpe/added_tokens.h"
#include "data/bpe/bpe_model.h"
#include "data/bpe/normalizer.h"
#include "data/bpe/pre_tokenizer.h"
#include "data/tokenizer.h"

namespace hone::data {

struct BpeParts {
  BpeModel model;
  std::vector<std::string> token_bytes;    // by id; what the token stands for in the text
  std::vector<AddedToken> added;           // may name ids past token_bytes
  std::unique_ptr<Normalizer> normalizer;  // null: none
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::string bos, eos;     // as spelled; "" if not known
  std::string description;  // the bytes of the files: goes into the digest
};
// Text is cut at the added tokens that want it as given, normalised, cut at those that want it
// normalised, pre-tokenised, and merged word by word. Bytes that are no UTF-8 are encoded one by
// one. Thread safe; keeps a bounded cache of words.
std::unique_ptr<Tokenizer> MakeBpeTokenizer(BpeParts parts,
                                            const std::vector<std::string>& extra_special);

// Vocabularies beyond this are refused: a wild id must not ask for all memory.
constexpr bool IsId(int64_t id) { return id >= 0 && id < 4'000'000; }

// Each throws DataError, beginning with the path, on a malformed file, and names what it does not
// support.
BpeParts ReadTokenizerJson(const std::string& path);
// vocab.json + merges.txt, or encoder.json + vocab.bpe. The cutting is Qwen2's if
// tokenizer_config.json beside them says so, else GPT-2's.
BpeParts ReadVocabAndMerges(const std::string& vocab_path, const std::string& merges_path);
// A SentencePiece model of type BPE, or ranks.
BpeParts ReadTokenizerModel(const std::string& path);
// "base64-token rank" lines, whose order is that of the merges. In a file named *.tiktoken they are
// Qwen's, else Llama 3's: the files say nothing of how text is cut and which special tokens follow.
bool LooksLikeRanks(const std::string& bytes);
BpeParts ReadRanks(const std::string& text, const std::string& path);
// llama2.c's tokenizer.bin: int32 longest token, then {float score, int32 length, bytes} a token.
BpeParts ReadLlama2cBin(const std::string& path);

// bos, eos and further added tokens out of tokenizer_config.json in `folder`, where there is one.
void ReadTokenizerConfig(const std::string& folder, BpeParts* parts);

}  // namespace hone::data
