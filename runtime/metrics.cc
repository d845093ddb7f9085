#include "runtime/metrics.h"

#include <algorithm>

namespace hone::runtime {

struct MetricsWriter::Impl {
  FileSystem& fs;
  std::string path;
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

MetricsWriter::MetricsWriter(FileSystem& fs, const std::string& path)
    : impl_(new Impl{fs, path, fs.Open(path, OpenMode::kAppend)}) {
  int64_t size = impl_->file->Size();
  impl_->end = WholeLines(*impl_->file, size);
  if (impl_->end != size) impl_->file->Truncate(impl_->end);
}

MetricsWriter::~MetricsWriter() = default;

void MetricsWriter::Write(const std::string& json_object) {
  std::string line = json_object + "\n";
  impl_->file->Write(impl_->end, line.data(), static_cast<int64_t>(line.size()));
  impl_->end += static_cast<int64_t>(line.size());
}

void MetricsWriter::Sync() { impl_->file->Sync(); }

void MetricsWriter::Keep(const std::function<bool(std::string_view line)>& keep) {
  std::string all(static_cast<size_t>(impl_->end), '\0'), kept;
  impl_->file->Read(0, all.data(), impl_->end);
  for (size_t begin = 0, next; begin < all.size(); begin = next) {
    next = all.find('\n', begin) + 1;
    std::string_view line(all.data() + begin, next - begin);
    if (keep(line)) kept += line;
  }
  if (kept.size() == all.size()) return;
  impl_->fs.WriteAtomically(impl_->path, kept);
  impl_->file = impl_->fs.Open(impl_->path, OpenMode::kAppend);
  impl_->end = static_cast<int64_t>(kept.size());
}

}  // namespace hone::runtime
