#include "runtime/metrics.h"

#include <algorithm>

namespace hone::runtime {

struct MetricsWriter::Impl {
  std::unique_ptr<File> file;
  int64_t end = 0;
};

namespace {

// The end of the last whole line that lies before `end`.
int64_t WholeLines(File& file, int64_t end) {
  constexpr int64_t kChunk = 4096;
  while (end > 0) {
    int64_t begin = std::max<int64_t>(0, end - kChunk);
    std::string tail(end - begin, '\0');
    file.Read(begin, tail.data(), end - begin);
    size_t newline = tail.rfind('\n');
    if (newline != std::string::npos) return begin + static_cast<int64_t>(newline) + 1;
    end = begin;
  }
  return 0;
}

}  // namespace

MetricsWriter::MetricsWriter(FileSystem& fs, const std::string& path, int64_t resume_offset)
    : impl_(std::make_unique<Impl>()) {
  impl_->file = fs.Open(path, OpenMode::kAppend);
  int64_t size = impl_->file->Size();
  int64_t keep = resume_offset < 0 ? size : std::min(resume_offset, size);
  impl_->end = WholeLines(*impl_->file, keep);
  if (impl_->end != size) impl_->file->Truncate(impl_->end);
}

MetricsWriter::~MetricsWriter() = default;

void MetricsWriter::Write(const std::string& json_object) {
  std::string line = json_object + "\n";
  impl_->file->Write(impl_->end, line.data(), static_cast<int64_t>(line.size()));
  impl_->end += static_cast<int64_t>(line.size());
}

int64_t MetricsWriter::Offset() {
  impl_->file->Sync();
  return impl_->end;
}

}  // namespace hone::runtime
