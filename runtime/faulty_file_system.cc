#include "runtime/error.h"
#include "runtime/file_system.h"

namespace hone::runtime {
namespace {

class FaultyFile : public File {
 public:
  FaultyFile(FaultyFileSystem& owner, std::string path, std::unique_ptr<File> base)
      : owner_(owner), path_(std::move(path)), base_(std::move(base)) {}

  int64_t Size() override { return base_->Size(); }
  void Read(int64_t offset, void* dst, int64_t n) override {
    owner_.MaybeFail("read", path_);
    base_->Read(offset, dst, n);
  }
  void Write(int64_t offset, const void* src, int64_t n) override {
    try {
      owner_.MaybeFail("write", path_, n);
    } catch (const IoError&) {
      base_->Write(offset, src, n / 2);
      throw;
    }
    base_->Write(offset, src, n);
  }
  void Truncate(int64_t size) override {
    owner_.MaybeFail("truncate", path_);
    base_->Truncate(size);
  }
  void Sync() override {
    owner_.MaybeFail("sync", path_);
    base_->Sync();
  }
  void Close() override {
    owner_.MaybeFail("close", path_);
    base_->Close();
  }

 private:
  FaultyFileSystem& owner_;
  std::string path_;
  std::unique_ptr<File> base_;
};

}  // namespace

void FaultyFileSystem::MaybeFail(const std::string& op, const std::string& path, int64_t bytes) {
  std::lock_guard lock(mutex_);
  written_ += bytes;
  std::string error = fault_(op, path, written_);
  Check<IoError>(error.empty(), "[{}] {}: {}", op, path, error);
}

std::unique_ptr<File> FaultyFileSystem::Open(const std::string& path, OpenMode mode) {
  MaybeFail("open", path);
  return std::make_unique<FaultyFile>(*this, path, base_.Open(path, mode));
}
bool FaultyFileSystem::Exists(const std::string& path) { return base_.Exists(path); }
std::vector<std::string> FaultyFileSystem::List(const std::string& dir) {
  MaybeFail("list", dir);
  return base_.List(dir);
}
void FaultyFileSystem::MakeDirs(const std::string& dir) {
  MaybeFail("make folder", dir);
  base_.MakeDirs(dir);
}
void FaultyFileSystem::Rename(const std::string& from, const std::string& to) {
  MaybeFail("rename", from);
  base_.Rename(from, to);
}
void FaultyFileSystem::Exchange(const std::string& a, const std::string& b) {
  MaybeFail("exchange", a);
  base_.Exchange(a, b);
}
void FaultyFileSystem::Remove(const std::string& path) {
  MaybeFail("remove", path);
  base_.Remove(path);
}
void FaultyFileSystem::RemoveAll(const std::string& dir) {
  MaybeFail("remove", dir);
  base_.RemoveAll(dir);
}
void FaultyFileSystem::SyncDir(const std::string& dir) {
  MaybeFail("sync folder", dir);
  base_.SyncDir(dir);
}

}  // namespace hone::runtime
