// metrics.jsonl: one object a step.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "runtime/file_system.h"

namespace hone::runtime {

// Appends JSON lines. Rank 0 only. Flushed line by line. A torn last line is cut off.
class MetricsWriter {
 public:
  MetricsWriter(FileSystem& fs, const std::string& path);
  ~MetricsWriter();
  void Write(const std::string& json_object);
  void Sync();  // to stable storage, before a checkpoint that the lines lead up to
  // Leaves the lines that `keep` wants; the file is replaced in one step. So a resumed run takes
  // out those of the steps that it takes again, and goes on as if never stopped.
  void Keep(const std::function<bool(std::string_view line)>& keep);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::runtime
