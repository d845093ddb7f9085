#include "runtime/file_system.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "runtime/error.h"

namespace hone::runtime {
namespace {

[[noreturn]] void FailWith(const char* op, const std::string& path, int error) {
  throw IoError(fmt::format("[{}] {}: {}", op, path, std::strerror(error)));
}

class LocalFile : public File {
 public:
  LocalFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~LocalFile() override {
    if (fd_ >= 0) ::close(fd_);
  }

  int64_t Size() override {
    struct stat info;
    if (::fstat(fd_, &info) != 0) FailWith("stat", path_, errno);
    return info.st_size;
  }
  void Read(int64_t offset, void* dst, int64_t n) override {
    char* to = static_cast<char*>(dst);
    while (n > 0) {
      ssize_t got = ::pread(fd_, to, n, offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) FailWith("read", path_, errno);
      Check<IoError>(got > 0, "[read] {}: ends at byte {}, {} bytes too soon", path_, offset, n);
      to += got;
      offset += got;
      n -= got;
    }
  }
  void Write(int64_t offset, const void* src, int64_t n) override {
    const char* from = static_cast<const char*>(src);
    while (n > 0) {
      ssize_t put = ::pwrite(fd_, from, std::min(n, kWritebackBytes), offset);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) FailWith("write", path_, errno);
      from += put;
      offset += put;
      n -= put;
      StartWriteback(offset, put);
    }
  }
  void Truncate(int64_t size) override {
    if (::ftruncate(fd_, size) != 0) FailWith("truncate", path_, errno);
  }
  void Sync() override {
    if (::fsync(fd_) != 0) FailWith("sync", path_, errno);
  }
  void Close() override {
    int fd = fd_;
    fd_ = -1;
    if (fd >= 0 && ::close(fd) != 0) FailWith("close", path_, errno);
  }

 private:
  static constexpr int64_t kWritebackBytes = 8 << 20;

  // Sends a large file to the disk as it grows, so that the disk works while the caller computes
  // the next bytes and Sync finds little left to do. A hint: errors are left to Sync.
  void StartWriteback(int64_t end, int64_t bytes) {
    if (end - bytes != pending_end_) pending_begin_ = end - bytes;
    pending_end_ = end;
    if (pending_end_ - pending_begin_ < kWritebackBytes) return;
    ::sync_file_range(fd_, pending_begin_, pending_end_ - pending_begin_, SYNC_FILE_RANGE_WRITE);
    pending_begin_ = pending_end_;
  }

  std::string path_;
  int fd_;
  int64_t pending_begin_ = 0, pending_end_ = 0;
};

std::string ParentOf(const std::string& path) {
  std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

class PosixFileSystem : public FileSystem {
 public:
  std::unique_ptr<File> Open(const std::string& path, OpenMode mode) override {
    int flags = O_CLOEXEC;
    switch (mode) {
      case OpenMode::kRead:
        flags |= O_RDONLY;
        break;
      case OpenMode::kCreate:
        flags |= O_RDWR | O_CREAT | O_TRUNC;
        break;
      case OpenMode::kReadWrite:
        flags |= O_RDWR;
        break;
      case OpenMode::kAppend:
        flags |= O_RDWR | O_CREAT;
        break;
    }
    int fd = ::open(path.c_str(), flags, 0644);
    if (fd < 0) FailWith("open", path, errno);
    return std::make_unique<LocalFile>(path, fd);
  }
  bool Exists(const std::string& path) override { return ::access(path.c_str(), F_OK) == 0; }
  std::vector<std::string> List(const std::string& dir) override {
    std::error_code error;
    std::vector<std::string> names;
    std::filesystem::directory_iterator it(dir, error), end;
    for (; !error && it != end; it.increment(error)) {
      names.push_back(it->path().filename().string());
    }
    if (error) FailWith("list", dir, error.value());
    std::sort(names.begin(), names.end());
    return names;
  }
  void MakeDirs(const std::string& dir) override {
    std::error_code error;
    std::filesystem::create_directories(dir, error);
    if (error) FailWith("make folder", dir, error.value());
  }
  void Rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) FailWith("rename", from + " to " + to, errno);
    SyncDir(ParentOf(to));
  }
  void Exchange(const std::string& a, const std::string& b) override {
    if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) {
      SyncDir(ParentOf(b));
      return;
    }
    if (errno != EINVAL && errno != ENOSYS) FailWith("exchange", a + " and " + b, errno);
    std::string aside = a + ".exchange.tmp";
    Rename(b, aside);
    Rename(a, b);
    Rename(aside, a);
  }
  void Remove(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) FailWith("remove", path, errno);
  }
  void RemoveAll(const std::string& dir) override {
    std::error_code error;
    std::filesystem::remove_all(dir, error);
    if (error) FailWith("remove", dir, error.value());
  }
  void SyncDir(const std::string& dir) override {
    int fd = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) FailWith("sync folder", dir, errno);
    int result = ::fsync(fd);
    int error = errno;
    ::close(fd);
    // Some network file systems cannot sync a folder and say EINVAL; they order renames themselves.
    if (result != 0 && error != EINVAL) FailWith("sync folder", dir, error);
  }
};

}  // namespace

FileSystem& LocalFileSystem() {
  static PosixFileSystem file_system;
  return file_system;
}

std::string FileSystem::ReadAll(const std::string& path) {
  auto file = Open(path, OpenMode::kRead);
  std::string bytes(file->Size(), '\0');
  file->Read(0, bytes.data(), static_cast<int64_t>(bytes.size()));
  return bytes;
}

void FileSystem::WriteAtomically(const std::string& path, const std::string& bytes) {
  std::string temporary = path + ".tmp";
  auto file = Open(temporary, OpenMode::kCreate);
  file->Write(0, bytes.data(), static_cast<int64_t>(bytes.size()));
  file->Sync();
  file->Close();
  Rename(temporary, path);
}

}  // namespace hone::runtime
