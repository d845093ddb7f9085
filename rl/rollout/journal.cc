#include "rl/rollout/journal.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "rl/rollout/wire.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

// File: magic, then records of {u32 length, u32 check, bytes}; the first record is the header.
constexpr char kMagic[8] = {'h', 'o', 'n', 'e', 'j', 'r', 'n', '1'};
constexpr uint32_t kMaxRecord = 1u << 30;

uint32_t CheckOf(std::string_view bytes) {
  return static_cast<uint32_t>(XXH3_64bits(bytes.data(), bytes.size()));
}

void AppendRecord(std::string* out, std::string_view bytes) {
  uint32_t head[2] = {static_cast<uint32_t>(bytes.size()), CheckOf(bytes)};
  out->append(reinterpret_cast<const char*>(head), sizeof head);
  out->append(bytes);
}

// The records of a file. A record that is cut short, or whose check fails with nothing behind it,
// is a torn tail: `intact` ends before it. Damage with records behind it is an error.
struct Parsed {
  std::vector<std::string_view> records;
  size_t intact = 0;
};
Parsed Parse(std::string_view bytes, const std::string& path) {
  Parsed p;
  if (bytes.size() < sizeof kMagic) return p;
  Check<DataError>(std::memcmp(bytes.data(), kMagic, sizeof kMagic) == 0,
                   "[journal] {} is not a journal: it begins otherwise", path);
  size_t at = p.intact = sizeof kMagic;
  while (at + 8 <= bytes.size()) {
    uint32_t head[2];
    std::memcpy(head, bytes.data() + at, sizeof head);
    if (head[0] > kMaxRecord || at + 8 + head[0] > bytes.size()) return p;
    std::string_view record = bytes.substr(at + 8, head[0]);
    if (CheckOf(record) != head[1]) {
      Check<DataError>(at + 8 + head[0] == bytes.size(),
                       "[journal] {} is damaged at offset {}: a record fails its check but others "
                       "follow; move the file away to draw its samples again",
                       path, at);
      return p;
    }
    p.records.push_back(record);
    at = p.intact = at + 8 + head[0];
  }
  return p;
}

JournalHeader ParseHeader(std::string_view record, const std::string& path) {
  proto::JournalHeader m;
  Check<DataError>(m.ParseFromArray(record.data(), static_cast<int>(record.size())),
                   "[journal] {} has no header", path);
  return {m.stage(), m.rollout(), m.weight_version(), m.weight_digest()};
}

}  // namespace

struct Journal::Impl {
  FileSystem& fs;
  std::string path;
  std::unique_ptr<runtime::File> file;
  int64_t end = 0;
  std::string pending;
  std::vector<Sample> recovered;

  // Takes over an existing file if it is of the same weights; false to begin anew.
  bool Recover(const JournalHeader& header) {
    if (!fs.Exists(path)) return false;
    std::string bytes = fs.ReadAll(path);
    Parsed parsed = Parse(bytes, path);
    if (parsed.records.empty()) return false;
    JournalHeader old = ParseHeader(parsed.records[0], path);
    if (old.weight_digest != header.weight_digest || old.stage != header.stage ||
        old.rollout != header.rollout) {
      fs.Rename(path, path + ".stale");
      return false;
    }
    for (size_t i = 1; i < parsed.records.size(); ++i) {
      recovered.push_back(DecodeSample(parsed.records[i]));
    }
    file = fs.Open(path, runtime::OpenMode::kReadWrite);
    if (parsed.intact < bytes.size()) file->Truncate(static_cast<int64_t>(parsed.intact));
    end = static_cast<int64_t>(parsed.intact);
    return true;
  }

  void Begin(const JournalHeader& header) {
    proto::JournalHeader m;
    m.set_stage(header.stage);
    m.set_rollout(header.rollout);
    m.set_weight_version(header.weight_version);
    m.set_weight_digest(header.weight_digest);
    file = fs.Open(path, runtime::OpenMode::kCreate);
    pending.assign(kMagic, sizeof kMagic);
    AppendRecord(&pending, m.SerializeAsString());
  }
};

Journal::Journal(FileSystem& fs, const std::string& path, const JournalHeader& header)
    : impl_(new Impl{fs, path, nullptr, 0, {}, {}}) {
  fs.MakeDirs(path.substr(0, path.rfind('/')));
  if (impl_->Recover(header)) return;
  impl_->Begin(header);
  Commit();
}
Journal::~Journal() = default;

const std::vector<Sample>& Journal::recovered() const { return impl_->recovered; }

void Journal::Append(const Sample& sample) { AppendRecord(&impl_->pending, EncodeSample(sample)); }

void Journal::Commit() {
  if (impl_->pending.empty()) return;
  impl_->file->Write(impl_->end, impl_->pending.data(),
                     static_cast<int64_t>(impl_->pending.size()));
  impl_->file->Sync();
  impl_->end += static_cast<int64_t>(impl_->pending.size());
  impl_->pending.clear();
}

std::vector<Sample> ReadJournal(FileSystem& fs, const std::string& path) {
  std::string bytes = fs.ReadAll(path);
  Parsed parsed = Parse(bytes, path);
  std::vector<Sample> samples;
  for (size_t i = 1; i < parsed.records.size(); ++i) {
    samples.push_back(DecodeSample(parsed.records[i]));
  }
  return samples;
}

std::string EncodeSample(const Sample& sample) { return ToProto(sample).SerializeAsString(); }

Sample DecodeSample(std::string_view bytes) {
  proto::Sample m;
  Check<DataError>(m.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())),
                   "[sample] {} bytes are not a sample", bytes.size());
  return FromProto(m);
}

std::string SampleToJson(const Sample& s) {
  static constexpr const char* kFinish[] = {"stop", "length", "cancelled"};
  nlohmann::json j = {{"prompt", s.key.prompt},
                      {"sample", s.key.sample},
                      {"problem", s.problem_id},
                      {"text", s.text},
                      {"outcome", std::string(OutcomeName(s.outcome))},
                      {"finish", kFinish[static_cast<int>(s.finish)]},
                      {"rewards", s.rewards},
                      {"temperature", s.temperature},
                      {"tokens", s.completion_tokens()}};
  // What a model drew need not be UTF-8.
  return j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace hone::rl
