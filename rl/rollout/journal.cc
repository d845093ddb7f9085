#include "rl/rollout/journal.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "rl/rollout/wire.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

// File: magic, then groups {u32 mark, u32 length, u64 check, bytes}, one a commit, of records {u32
// length, bytes}; the first record is the header.
constexpr char kMagic[8] = {'h', 'o', 'n', 'e', 'j', 'r', 'n', '2'};
constexpr uint32_t kMark = 0x6A6E7267;
constexpr size_t kGroupHead = 16;

void AppendRecord(std::string* out, std::string_view bytes) {
  uint32_t size = static_cast<uint32_t>(bytes.size());
  out->append(reinterpret_cast<const char*>(&size), sizeof size);
  out->append(bytes);
}

std::string Group(std::string_view records) {
  uint32_t head[2] = {kMark, static_cast<uint32_t>(records.size())};
  uint64_t check = XXH3_64bits(records.data(), records.size());
  std::string group(reinterpret_cast<const char*>(head), sizeof head);
  group.append(reinterpret_cast<const char*>(&check), sizeof check);
  return group.append(records);
}

// The records of an intact group at `at`; false when there is none.
bool ReadGroup(std::string_view bytes, size_t at, std::string_view* records) {
  if (at + kGroupHead > bytes.size()) return false;
  uint32_t head[2];
  uint64_t check;
  std::memcpy(head, bytes.data() + at, sizeof head);
  std::memcpy(&check, bytes.data() + at + sizeof head, sizeof check);
  if (head[0] != kMark || head[1] > bytes.size() - at - kGroupHead) return false;
  *records = bytes.substr(at + kGroupHead, head[1]);
  return XXH3_64bits(records->data(), records->size()) == check;
}

void SplitRecords(std::string_view group, std::vector<std::string_view>* records) {
  while (group.size() >= sizeof(uint32_t)) {
    uint32_t size;
    std::memcpy(&size, group.data(), sizeof size);
    records->push_back(group.substr(sizeof size, size));
    group.remove_prefix(std::min(group.size(), sizeof size + size));
  }
}

// The records of a file. Bytes that are no intact group, with none behind them, are a torn tail:
// `intact` ends before it. With an intact group behind them they are damage.
struct Parsed {
  std::vector<std::string_view> records;
  size_t intact = 0;
};
Parsed Parse(std::string_view bytes, const std::string& path) {
  Parsed p;
  if (bytes.size() < sizeof kMagic) return p;
  Check<DataError>(std::memcmp(bytes.data(), kMagic, sizeof kMagic) == 0,
                   "[journal] {} is not a journal: it begins otherwise", path);
  p.intact = sizeof kMagic;
  std::string_view group;
  while (ReadGroup(bytes, p.intact, &group)) {
    SplitRecords(group, &p.records);
    p.intact += kGroupHead + group.size();
  }
  for (size_t at = p.intact + 1; at < bytes.size(); ++at) {
    Check<DataError>(!ReadGroup(bytes, at, &group),
                     "[journal] {} is damaged at offset {}: records there fail their check but "
                     "others follow at {}; move the file away to draw its samples again",
                     path, p.intact, at);
  }
  return p;
}

JournalHeader ParseHeader(std::string_view record, const std::string& path) {
  proto::JournalHeader m;
  Check<DataError>(m.ParseFromArray(record.data(), static_cast<int>(record.size())),
                   "[journal] {} has no header", path);
  return {m.stage(), m.rollout(), m.weight_version(), m.weight_digest(), m.plan_digest()};
}

}  // namespace

struct Journal::Impl {
  FileSystem& fs;
  std::string path;
  std::unique_ptr<runtime::File> file;
  int64_t end = 0;
  std::string pending;  // records since the last commit
  std::vector<Sample> recovered;

  // Takes over an existing file if it is of the same weights and plan; false to begin anew.
  bool Recover(const JournalHeader& header, Otherwise otherwise) {
    if (!fs.Exists(path)) return false;
    std::string bytes = fs.ReadAll(path);
    Parsed parsed = Parse(bytes, path);
    if (parsed.records.empty()) return false;
    JournalHeader old = ParseHeader(parsed.records[0], path);
    // Without a digest nothing on disk can be known to be of these weights.
    bool drawn_by_them = !header.weight_digest.empty() &&
                         old.weight_digest == header.weight_digest && old.stage == header.stage &&
                         old.rollout == header.rollout;
    if (!drawn_by_them || old.plan_digest != header.plan_digest) {
      Check<DataError>(otherwise == Otherwise::kBeginAnew || !drawn_by_them,
                       "[journal] {} holds samples of another plan, and the weights {} that drew "
                       "them are no more: undo the change of '{}' (its prompts, their number, "
                       "sampling, max_new_tokens or the seed) until this rollout is learned from, "
                       "or go back to an earlier checkpoint",
                       path, header.weight_digest, header.stage);
      if (otherwise == Otherwise::kBeginAnew && parsed.records.size() > 1) SetAside();
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

  void SetAside() {
    std::string aside = path + ".stale";
    for (int n = 2; fs.Exists(aside); ++n) aside = fmt::format("{}.stale-{}", path, n);
    fs.Rename(path, aside);
  }

  void Begin(const JournalHeader& header) {
    proto::JournalHeader m;
    m.set_stage(header.stage);
    m.set_rollout(header.rollout);
    m.set_weight_version(header.weight_version);
    m.set_weight_digest(header.weight_digest);
    m.set_plan_digest(header.plan_digest);
    file = fs.Open(path, runtime::OpenMode::kCreate);
    std::string start(kMagic, sizeof kMagic), record;
    AppendRecord(&record, m.SerializeAsString());
    Write(start + Group(record));
    fs.SyncDir(path.substr(0, path.rfind('/')));  // the file itself is to last, too
  }

  void Write(const std::string& bytes) {
    file->Write(end, bytes.data(), static_cast<int64_t>(bytes.size()));
    file->Sync();
    end += static_cast<int64_t>(bytes.size());
  }
};

Journal::Journal(FileSystem& fs, const std::string& path, const JournalHeader& header,
                 Otherwise otherwise)
    : impl_(new Impl{fs, path, nullptr, 0, {}, {}}) {
  fs.MakeDirs(path.substr(0, path.rfind('/')));
  if (impl_->Recover(header, otherwise)) return;
  Check<DataError>(otherwise == Otherwise::kBeginAnew,
                   "[journal] {} does not hold the samples that the weights {} drew, and these "
                   "are no more; go back to an earlier checkpoint",
                   path, header.weight_digest);
  impl_->Begin(header);
}
Journal::~Journal() = default;

const std::vector<Sample>& Journal::recovered() const { return impl_->recovered; }

void Journal::Append(const Sample& sample) { AppendRecord(&impl_->pending, EncodeSample(sample)); }

void Journal::Commit() {
  if (impl_->pending.empty()) return;
  impl_->Write(Group(impl_->pending));
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

std::string SampleToJson(const Sample& s, const data::Problem& problem) {
  static constexpr const char* kFinish[] = {"stop", "length", "cancelled"};
  nlohmann::json j = {{"prompt", s.key.prompt},
                      {"sample", s.key.sample},
                      {"problem", s.problem_id},
                      {"question", problem.prompt},
                      {"gold", problem.answer},
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
