// The normalisers and pre-tokenizers of a tokenizer.json. Only for .cc files: brings in
// nlohmann/json.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "data/bpe/normalizer.h"
#include "data/bpe/pre_tokenizer.h"

namespace hone::data {

// Each throws DataError, beginning with `where`, on what is malformed or not supported.
std::unique_ptr<Normalizer> ReadNormalizer(const nlohmann::json& node, const std::string& where);
std::unique_ptr<PreTokenizer> ReadPreTokenizer(const nlohmann::json& node,
                                               const std::string& where);
bool HasByteLevel(const nlohmann::json& node);  // this pre-tokenizer or one in its sequence

const nlohmann::json& JsonList(const nlohmann::json& node, const char* key,
                               const std::string& where);
[[noreturn]] void UnsupportedJson(const std::string& where, const std::string& what,
                                  const std::string& known);

}  // namespace hone::data
