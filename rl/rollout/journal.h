// Finished samples on disk: length-prefixed protobuf records, committed in groups with a check
// each. A torn tail is dropped when the file is opened again; damage in the middle is an error
// naming file and offset.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/task.h"
#include "rl/rollout/sample.h"
#include "runtime/file_system.h"

namespace hone::rl {

struct JournalHeader {
  std::string stage;
  int64_t rollout = 0, weight_version = 0;
  std::string weight_digest;
  std::string plan_digest;  // of prompts, sampling parameters and seed: what else decides a sample
};

class Journal {
 public:
  // What is done where no file, or one of another weight or plan digest, or no weight digest is
  // given: begin anew, with a file that holds samples set aside (renamed with the suffix .stale, or
  // .stale-2, …); or leave everything as it is and throw DataError, since what the file is to hold
  // cannot be drawn again.
  enum class Otherwise { kBeginAnew, kRefuse };
  Journal(FileSystem& fs, const std::string& path, const JournalHeader& header,
          Otherwise otherwise = Otherwise::kBeginAnew);
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
// A line of rollouts/STAGE/….jsonl: the sample beside the problem it answers.
std::string SampleToJson(const Sample& sample, const data::Problem& problem);

}  // namespace hone::rl
