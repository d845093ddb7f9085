#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "data/bpe/bpe_tokenizer.h"
#include "data/bpe/regex.h"
#include "data/text.h"
#include "runtime/error.h"
#include "runtime/file_system.h"

namespace hone::data {
namespace {

// Just enough of the protobuf wire format: fields one after the other, each a number or some bytes.
class ProtoReader {
 public:
  ProtoReader(std::string_view bytes, const std::string& path) : rest_(bytes), path_(path) {}

  struct Field {
    uint64_t number = 0, value = 0;  // of a varint or a fixed field
    std::string_view bytes;          // of a length-delimited one
  };
  bool Next(Field* field) {
    if (rest_.empty()) return false;
    uint64_t key = Varint();
    *field = {key >> 3, 0, {}};
    switch (key & 7) {
      case 0:
        field->value = Varint();
        break;
      case 1:
        field->value = Fixed(8);
        break;
      case 2:
        field->bytes = Take(Varint());
        break;
      case 5:
        field->value = Fixed(4);
        break;
      default:
        throw DataError(fmt::format("{}: not a SentencePiece model: wire type {}", path_, key & 7));
    }
    return true;
  }

 private:
  std::string_view Take(uint64_t n) {
    Check<DataError>(n <= rest_.size(), "{}: not a SentencePiece model: it ends too early", path_);
    std::string_view head = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return head;
  }
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      uint8_t byte = static_cast<uint8_t>(Take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) break;
    }
    return value;
  }
  uint64_t Fixed(size_t n) {
    uint64_t value = 0;
    std::memcpy(&value, Take(n).data(), n);
    return value;
  }

  std::string_view rest_;
  const std::string& path_;
};

// SentencePiece's types of pieces.
enum PieceType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};
struct Piece {
  std::string text;
  float score = 0;
  uint64_t type = kNormal;
};
struct SentencePieceModel {
  std::vector<Piece> pieces;
  uint64_t model_type = 1;  // 1 unigram, 2 BPE
  int64_t bos = 1, eos = 2;
  bool byte_fallback = false, add_dummy_prefix = true;
  bool remove_extra_whitespaces = true, has_char_map = false;
};

float FloatOf(uint64_t bits) {
  uint32_t low = static_cast<uint32_t>(bits);
  float value;
  std::memcpy(&value, &low, sizeof value);
  return value;
}

// Field numbers as in sentencepiece_model.proto.
SentencePieceModel ParseModel(std::string_view bytes, const std::string& path) {
  SentencePieceModel model;
  ProtoReader reader(bytes, path);
  for (ProtoReader::Field field; reader.Next(&field);) {
    if (field.number < 1 || field.number > 3) continue;
    ProtoReader inner(field.bytes, path);
    if (field.number == 1) model.pieces.emplace_back();
    for (ProtoReader::Field f; inner.Next(&f);) {
      switch (field.number * 100 + f.number) {
        case 101:
          model.pieces.back().text = f.bytes;
          break;
        case 102:
          model.pieces.back().score = FloatOf(f.value);
          break;
        case 103:
          model.pieces.back().type = f.value;
          break;
        case 203:
          model.model_type = f.value;
          break;
        case 235:
          model.byte_fallback = f.value != 0;
          break;
        case 241:
          model.bos = static_cast<int32_t>(f.value);
          break;
        case 242:
          model.eos = static_cast<int32_t>(f.value);
          break;
        case 302:
          model.has_char_map = !f.bytes.empty();
          break;
        case 303:
          model.add_dummy_prefix = f.value != 0;
          break;
        case 304:
          model.remove_extra_whitespaces = f.value != 0;
          break;
        default:
          break;
      }
    }
  }
  return model;
}

// Higher scores merge first; equal scores have equal rank.
std::vector<int32_t> RanksOfScores(const std::vector<Piece>& pieces) {
  std::map<float, int32_t, std::greater<>> rank_of_score;
  for (const Piece& piece : pieces) rank_of_score[piece.score] = 0;
  int32_t next = 0;
  for (auto& [score, rank] : rank_of_score) rank = next++;
  std::vector<int32_t> ranks;
  for (const Piece& piece : pieces) {
    ranks.push_back(piece.type == kNormal ? rank_of_score[piece.score] : -1);
  }
  return ranks;
}

int32_t HexByte(const std::string& text) {
  unsigned value = 0;
  return text.size() == 6 && std::sscanf(text.c_str(), "<0x%2X>", &value) == 1
             ? static_cast<int32_t>(value)
             : -1;
}

// A vocabulary whose pieces spell a space as a space.
void AddPieces(const std::vector<Piece>& pieces, BpeParts* parts) {
  BpeModel& model = parts->model;
  model.from_bytes = false;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    int32_t id = static_cast<int32_t>(i), byte = piece.type == kByte ? HexByte(piece.text) : -1;
    parts->token_bytes.push_back(byte >= 0 ? std::string(1, static_cast<char>(byte)) : piece.text);
    if (byte >= 0) model.byte_id[static_cast<size_t>(byte)] = id;
    if (piece.type == kUnknown) model.unknown = id;
    if (piece.type == kNormal) model.id_of.emplace(piece.text, id);
    if (piece.type == kControl || piece.type == kUserDefined || piece.type == kUnknown) {
      AddedToken token;
      token.id = id;
      token.content = piece.text;
      token.special = piece.type != kUserDefined;
      parts->added.push_back(std::move(token));
    }
  }
  AddMergesFromRanks(parts->token_bytes, RanksOfScores(pieces), &model);
}

std::string TextOf(const BpeParts& parts, int64_t id) {
  bool known = id >= 0 && id < static_cast<int64_t>(parts.token_bytes.size());
  return known ? parts.token_bytes[static_cast<size_t>(id)] : "";
}

BpeParts FromSentencePiece(const std::string& bytes, const std::string& path) {
  SentencePieceModel model = ParseModel(bytes, path);
  Check<DataError>(!model.pieces.empty(), "{}: not a SentencePiece model: it has no pieces", path);
  Check<DataError>(model.model_type == 2,
                   "{}: a SentencePiece model of type {}; only BPE (2) is supported", path,
                   model.model_type);
  Check<DataError>(
      !model.has_char_map && !model.remove_extra_whitespaces,
      "{}: its normaliser changes characters or spaces, which is not supported; convert "
      "it to a tokenizer.json",
      path);
  for (Piece& piece : model.pieces) piece.text = ReplaceAll(piece.text, "▁", " ");
  BpeParts parts;
  parts.model.byte_fallback = model.byte_fallback;
  parts.model.fuse_unknown = true;
  AddPieces(model.pieces, &parts);
  std::vector<std::unique_ptr<Normalizer>> steps;
  steps.push_back(MakeReplace("▁", " ", path));
  if (model.add_dummy_prefix) steps.push_back(MakePrepend(" "));
  parts.normalizer = MakeNormalizerSequence(std::move(steps));
  parts.pre_tokenizer = MakeWhole();
  parts.bos = TextOf(parts, model.bos);
  parts.eos = TextOf(parts, model.eos);
  parts.description = bytes;
  return parts;
}

}  // namespace

BpeParts ReadTokenizerModel(const std::string& path) {
  std::string bytes = runtime::LocalFileSystem().ReadAll(path);
  return LooksLikeRanks(bytes) ? ReadRanks(bytes, path) : FromSentencePiece(bytes, path);
}

BpeParts ReadLlama2cBin(const std::string& path) {
  std::string bytes = runtime::LocalFileSystem().ReadAll(path);
  std::vector<Piece> pieces;
  for (size_t at = sizeof(int32_t); at < bytes.size();) {
    Piece piece;
    int32_t length = -1;
    bool header = at + 8 <= bytes.size();
    if (header) {
      std::memcpy(&piece.score, bytes.data() + at, 4);
      std::memcpy(&length, bytes.data() + at + 4, 4);
    }
    Check<DataError>(header && length >= 0 && at + 8 + static_cast<size_t>(length) <= bytes.size(),
                     "{}: token {} does not fit into the file", path, pieces.size());
    piece.text = bytes.substr(at + 8, static_cast<size_t>(length));
    at += 8 + static_cast<size_t>(length);
    size_t id = pieces.size();
    piece.type = id == 0 ? kUnknown : id < 3 ? kControl : id < 259 ? kByte : kNormal;
    pieces.push_back(std::move(piece));
  }
  Check<DataError>(pieces.size() > 259, "{}: {} tokens; the first 259 are control and byte tokens",
                   path, pieces.size());
  pieces[1].text = "<s>";
  pieces[2].text = "</s>";
  BpeParts parts;
  parts.model.byte_fallback = true;
  AddPieces(pieces, &parts);
  parts.normalizer = MakePrepend(" ");
  parts.pre_tokenizer = MakeWhole();
  parts.bos = "<s>";
  parts.eos = "</s>";
  parts.description = bytes;
  return parts;
}

}  // namespace hone::data
