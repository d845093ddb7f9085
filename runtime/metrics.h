// metrics.jsonl: one object a step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/file_system.h"

namespace hone::runtime {

// Appends JSON lines. Rank 0 only. Flushed line by line; synced with `Offset`, which a checkpoint
// records, so that a resumed run cuts the file back and goes on as if never stopped. A torn last
// line is cut off; a file shorter than the offset is appended to where it ends.
class MetricsWriter {
 public:
  MetricsWriter(FileSystem& fs, const std::string& path, int64_t resume_offset = -1 /* keep all */);
  ~MetricsWriter();
  void Write(const std::string& json_object);
  int64_t Offset();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::runtime
