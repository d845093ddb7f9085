#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "data/bpe/bpe_tokenizer.h"
#include "data/bpe/json_access.h"
#include "data/bpe/json_steps.h"
#include "data/text.h"

namespace hone::data {
namespace {

using nlohmann::json;

// Which parts of token spellings the decoder turns back: ▁ → space and <0xNN> → byte.
struct Spelling {
  bool byte_level = false;
  std::vector<std::pair<std::string, std::string>> replacements;

  void ReadDecoder(const json& node) {
    if (!node.is_object()) return;
    json type = node.value("type", json());
    if (type == "Sequence" && node.contains("decoders")) {
      for (const json& step : node["decoders"]) ReadDecoder(step);
    } else if (type == "Metaspace") {
      replacements.emplace_back(node.value("replacement", "▁"), " ");
    } else if (type == "Replace" && node.contains("pattern") &&
               node["pattern"].contains("String")) {
      replacements.emplace_back(node["pattern"]["String"].get<std::string>(),
                                node.value("content", ""));
    }
  }
  std::string Bytes(const std::string& token, bool byte_fallback) const {
    std::string bytes;
    if (byte_level) return FromByteAlphabet(token, &bytes) ? bytes : token;
    int32_t byte = byte_fallback ? FallbackByte(token) : -1;
    if (byte >= 0) return std::string(1, static_cast<char>(byte));
    bytes = token;
    for (const auto& [from, to] : replacements) {
      if (!from.empty()) bytes = ReplaceAll(bytes, from, to);
    }
    return bytes;
  }
  // 10 of "<0x0A>"; −1 of anything else.
  static int32_t FallbackByte(const std::string& token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
    if (!std::isxdigit(static_cast<unsigned char>(token[3])) ||
        !std::isxdigit(static_cast<unsigned char>(token[4]))) {
      return -1;
    }
    return std::stoi(token.substr(3, 2), nullptr, 16);
  }
};

// Ids by the tokens' own spelling: merges are spelled so too.
StringMap<int32_t> ReadVocab(const json& model, const std::string& where) {
  const json& vocab = Need(model, "vocab", where);
  Check<DataError>(vocab.is_object() && !vocab.empty(),
                   "{}.vocab: a JSON {} where a map of tokens to ids was expected", where,
                   vocab.type_name());
  StringMap<int32_t> id_of;
  for (const auto& [token, id] : vocab.items()) {
    Check<DataError>(id.is_number_integer() && IsId(id.get<int64_t>()),
                     "{}.vocab: token '{}' has the id {}", where, token, id.dump());
    id_of[token] = id.get<int32_t>();
  }
  return id_of;
}

void AddMerge(const std::string& left, const std::string& right, int32_t rank,
              const StringMap<int32_t>& id_of, const std::string& where, BpeModel* model) {
  auto a = id_of.find(left), b = id_of.find(right), merged = id_of.find(left + right);
  Check<DataError>(a != id_of.end() && b != id_of.end() && merged != id_of.end(),
                   "{}: merge {} joins '{}' and '{}', but the vocabulary lacks '{}'", where, rank,
                   left, right,
                   a == id_of.end()   ? left
                   : b == id_of.end() ? right
                                      : left + right);
  model->merges.Insert(a->second, b->second, {rank, merged->second});
}

void ReadMerges(const json& node, const StringMap<int32_t>& id_of, const std::string& where,
                BpeModel* model) {
  const json& merges = JsonList(node, "merges", where);
  model->merges.Reserve(merges.size());
  int32_t rank = 0;
  for (const json& merge : merges) {
    std::string at = fmt::format("{}.merges", where);
    if (merge.is_array() && merge.size() == 2) {
      AddMerge(As<std::string>(merge[0], at), As<std::string>(merge[1], at), rank, id_of, at,
               model);
    } else {
      std::string text = As<std::string>(merge, at);
      size_t space = text.find(' ');
      Check<DataError>(space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
                       "{}: merge {} is '{}'; 'left right' was expected", at, rank, text);
      AddMerge(text.substr(0, space), text.substr(space + 1), rank, id_of, at, model);
    }
    ++rank;
  }
}

void RefuseUnlessEmpty(const json& node, const char* key, const std::string& where) {
  Check<DataError>(
      !node.contains(key) || node[key].is_null() || node[key] == "" || node[key] == 0.0,
      "{}.{} = {} is not supported", where, key, node.contains(key) ? node[key].dump() : "");
}

void ReadModel(const json& node, const Spelling& spelling, const std::string& where,
               BpeParts* parts) {
  std::string type = Get<std::string>(node, "type", "BPE", where);
  if (type != "BPE") UnsupportedJson(where, type, "BPE");
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    RefuseUnlessEmpty(node, key, where);
  }
  BpeModel& model = parts->model;
  model.from_bytes = spelling.byte_level;
  model.byte_fallback = Get(node, "byte_fallback", false, where);
  model.ignore_merges = Get(node, "ignore_merges", false, where);
  model.fuse_unknown = Get(node, "fuse_unk", false, where);
  StringMap<int32_t> id_of = ReadVocab(node, where);
  ReadMerges(node, id_of, where, &model);
  std::string unknown = Get<std::string>(node, "unk_token", "", where);
  if (!unknown.empty()) {
    Check<DataError>(id_of.contains(unknown), "{}: unk_token '{}' is not in the vocabulary", where,
                     unknown);
    model.unknown = id_of[unknown];
  }
  for (const auto& [token, id] : id_of) {
    if (static_cast<size_t>(id) >= parts->token_bytes.size()) {
      parts->token_bytes.resize(static_cast<size_t>(id) + 1);
    }
    parts->token_bytes[static_cast<size_t>(id)] = spelling.Bytes(token, model.byte_fallback);
    std::string bytes;
    if (!spelling.byte_level) {
      model.id_of[token] = id;
      int32_t byte = Spelling::FallbackByte(token);
      if (byte >= 0) model.byte_id[static_cast<size_t>(byte)] = id;
    } else if (FromByteAlphabet(token, &bytes)) {
      if (bytes.size() == 1) model.byte_id[static_cast<uint8_t>(bytes[0])] = id;
      model.id_of[bytes] = id;
    }
  }
}

AddedToken ReadAddedToken(const json& node, const std::string& where) {
  AddedToken token;
  token.content = As<std::string>(Need(node, "content", where), where + ".content");
  token.special = Get(node, "special", false, where);
  token.normalized = Get(node, "normalized", !token.special, where);
  token.single_word = Get(node, "single_word", false, where);
  token.lstrip = Get(node, "lstrip", false, where);
  token.rstrip = Get(node, "rstrip", false, where);
  return token;
}

std::string Named(const json& config, const char* key, const std::string& where) {
  if (!config.contains(key) || config[key].is_null()) return "";
  if (config[key].is_object()) return Get<std::string>(config[key], "content", "", where);
  return Get<std::string>(config, key, "", where);
}

}  // namespace

namespace {

BpeParts FromJson(const json& root, const std::string& path) {
  BpeParts parts;
  Check<DataError>(root.is_object(), "{}: a JSON {} where an object was expected", path,
                   root.type_name());
  Spelling spelling;
  json pre_tokenizer = root.value("pre_tokenizer", json());
  spelling.byte_level = HasByteLevel(pre_tokenizer);
  spelling.ReadDecoder(root.value("decoder", json()));
  ReadModel(Need(root, "model", path), spelling, path + ": model", &parts);
  json normalizer = root.value("normalizer", json());
  if (!normalizer.is_null()) parts.normalizer = ReadNormalizer(normalizer, path + ": normalizer");
  parts.pre_tokenizer = pre_tokenizer.is_null()
                            ? MakeWhole()
                            : ReadPreTokenizer(pre_tokenizer, path + ": pre_tokenizer");
  json added = root.value("added_tokens", json::array());
  Check<DataError>(added.is_array(), "{}: added_tokens is no list", path);
  for (const json& node : added) {
    std::string where = fmt::format("{}: added_tokens[{}]", path, parts.added.size());
    AddedToken token = ReadAddedToken(node, where);
    token.id = As<int32_t>(Need(node, "id", where), where + ".id");
    Check<DataError>(IsId(token.id), "{}: the id {}", where, token.id);
    parts.added.push_back(std::move(token));
  }
  return parts;
}

}  // namespace

BpeParts ReadTokenizerJson(const std::string& path) {
  std::string text = runtime::LocalFileSystem().ReadAll(path);
  json root = ParseJson(text, path);
  try {
    BpeParts parts = FromJson(root, path);
    parts.description = std::move(text);
    return parts;
  } catch (const json::exception& e) {
    throw DataError(fmt::format("{}: a value has the wrong type: {}", path, e.what()));
  }
}

void ReadTokenizerConfig(const std::string& folder, BpeParts* parts) {
  std::string path = (std::filesystem::path(folder) / "tokenizer_config.json").string();
  if (!runtime::LocalFileSystem().Exists(path)) return;
  std::string text = runtime::LocalFileSystem().ReadAll(path);
  json config = ParseJson(text, path);
  Check<DataError>(config.is_object(), "{}: no JSON object", path);
  if (std::string bos = Named(config, "bos_token", path); !bos.empty()) parts->bos = bos;
  if (std::string eos = Named(config, "eos_token", path); !eos.empty()) parts->eos = eos;
  json more = config.value("added_tokens_decoder", json());
  if (more.is_null()) return;
  Check<DataError>(more.is_object(), "{}: added_tokens_decoder is no map", path);
  for (const auto& [id, node] : more.items()) {
    AddedToken token = ReadAddedToken(node, fmt::format("{}: added_tokens_decoder.{}", path, id));
    Check<DataError>(!id.empty() && id.size() < 10 && id.find_first_not_of("0123456789") == id.npos,
                     "{}: added_tokens_decoder has the id '{}'", path, id);
    token.id = std::stoi(id);
    Check<DataError>(IsId(token.id), "{}: added_tokens_decoder has the id {}", path, id);
    bool known =
        std::any_of(parts->added.begin(), parts->added.end(), [&](const AddedToken& other) {
          return other.id == token.id || other.content == token.content;
        });
    if (!known) parts->added.push_back(std::move(token));
  }
}

}  // namespace hone::data
