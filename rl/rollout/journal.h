// Finished samples on disk: length-prefixed protobuf records with a CRC, committed in groups. A
// torn tail is dropped when the file is opened again; a damaged record in the middle is an error
// naming file and offset.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rl/rollout/sample.h"
#include "runtime/file_system.h"

namespace hone::rl {

struct JournalHeader {
  std::string stage;
  int64_t rollout = 0, weight_version = 0;
  std::string weight_digest;
};

class Journal {
 public:
  // Opens or creates; an existing file whose header has another weight digest is set aside (renamed
  // with the suffix .stale) and begun anew: its samples were drawn by weights that are no more.
  Journal(FileSystem& fs, const std::string& path, const JournalHeader& header);
  ~Journal();
  const std::vector<Sample>& recovered() const;  // intact records found at opening
  void Append(const Sample& sample);             // durable only after Commit
  void Commit();                                 // write and sync

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};
std::vector<Sample> ReadJournal(FileSystem& fs, const std::string& path);
// Exact, for sending samples between ranks. DataError on malformed bytes.
std::string EncodeSample(const Sample& sample);
Sample DecodeSample(std::string_view bytes);
std::string SampleToJson(const Sample& sample);  // a line of rollouts/STAGE/….jsonl

}  // namespace hone::rl
