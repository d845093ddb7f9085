// Files, through an interface that tests can make fail. HDF5 goes through it too (hdf5_driver.h in
// runtime/checkpoint).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace hone::runtime {

// Random access. Not thread safe. All methods throw IoError naming the path and the system's
// reason.
class File {
 public:
  virtual ~File() = default;
  virtual int64_t Size() = 0;
  // Reads exactly n bytes; IoError if the file ends first.
  virtual void Read(int64_t offset, void* dst, int64_t n) = 0;
  virtual void Write(int64_t offset, const void* src, int64_t n) = 0;
  virtual void Truncate(int64_t size) = 0;
  virtual void Sync() = 0;   // to stable storage
  virtual void Close() = 0;  // reports late write errors; the destructor swallows them
};

enum class OpenMode { kRead, kCreate /* truncates */, kReadWrite /* must exist */, kAppend };

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual std::unique_ptr<File> Open(const std::string& path, OpenMode mode) = 0;
  virtual bool Exists(const std::string& path) = 0;
  virtual std::vector<std::string> List(const std::string& dir) = 0;  // names, sorted
  virtual void MakeDirs(const std::string& dir) = 0;
  virtual void Rename(const std::string& from, const std::string& to) = 0;  // then syncs the parent
  // Swaps two folders in one step where the file system can; else through a third name. Then syncs.
  virtual void Exchange(const std::string& a, const std::string& b) = 0;
  virtual void Remove(const std::string& path) = 0;  // a file
  virtual void RemoveAll(const std::string& dir) = 0;
  virtual void SyncDir(const std::string& dir) = 0;

  std::string ReadAll(const std::string& path);
  // Writes path.tmp, syncs, renames over `path`: a reader sees the old bytes or the new, never a
  // mix.
  void WriteAtomically(const std::string& path, const std::string& bytes);
};

FileSystem& LocalFileSystem();

// Wraps another file system and fails on purpose.
class FaultyFileSystem : public FileSystem {
 public:
  // Called before each operation ("open", "read", "write", "truncate", "sync", "close", "rename",
  // …) with the path and, for writes, the total bytes written so far, these included; returns the
  // error text to throw as IoError, or "". A write that fails leaves its first half in the file, as
  // a full disk does.
  using Fault =
      std::function<std::string(const std::string& op, const std::string& path, int64_t bytes)>;
  FaultyFileSystem(FileSystem& base, Fault fault) : base_(base), fault_(std::move(fault)) {}

  std::unique_ptr<File> Open(const std::string& path, OpenMode mode) override;
  bool Exists(const std::string& path) override;
  std::vector<std::string> List(const std::string& dir) override;
  void MakeDirs(const std::string& dir) override;
  void Rename(const std::string& from, const std::string& to) override;
  void Exchange(const std::string& a, const std::string& b) override;
  void Remove(const std::string& path) override;
  void RemoveAll(const std::string& dir) override;
  void SyncDir(const std::string& dir) override;

  // Used by this class's files: counts `bytes`, then throws if the fault says so.
  void MaybeFail(const std::string& op, const std::string& path, int64_t bytes = 0);

 private:
  FileSystem& base_;
  Fault fault_;
  std::mutex mutex_;
  int64_t written_ = 0;
};

}  // namespace hone::runtime

namespace hone {
using runtime::FileSystem;
}  // namespace hone
