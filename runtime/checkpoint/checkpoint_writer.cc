#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/hdf5_file.h"
#include "runtime/checkpoint/seal.h"
#include "runtime/checkpoint/slab_table.h"
#include "runtime/digest.h"
#include "runtime/error.h"
#include "runtime/host_snapshot.h"

namespace hone::runtime {
namespace {

int64_t BytesOf(const LazySlab& piece) { return piece.slab.size() * DTypeSize(piece.dtype); }

// The bytes of a slab, contiguous in host memory, and their digest.
struct ReadyPiece {
  Tensor tensor;
  std::string digest;
};

ReadyPiece MakePiece(const LazySlab& piece) {
  ReadyPiece made{piece.tensor(), ""};
  const Tensor& t = made.tensor;
  Check<CheckpointError>(t.contiguous() && t.device().is_cpu() && t.dtype() == piece.dtype &&
                             t.size() == piece.slab.size(),
                         "[checkpoint] {} is held by a tensor of shape {}", piece.slab.ToString(),
                         ShapeToString(t.shape()));
  if (t.bytes() > 0) made.digest = DigestOf(t.raw(), t.bytes());
  return made;
}

// Makes the pieces in order on a thread of its own, up to `ahead` bytes, or one piece, before they
// are taken: so that neither reading nor writing waits for the other.
class PieceReader {
 public:
  PieceReader(const std::vector<LazySlab>& pieces, int64_t ahead)
      : pieces_(pieces), ahead_(ahead), thread_([this] { Run(); }) {}
  ~PieceReader() {
    {
      std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  ReadyPiece Take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !ready_.empty() || error_; });
    if (ready_.empty()) std::rethrow_exception(error_);
    ReadyPiece piece = std::move(ready_.front());
    ready_.pop_front();
    held_ -= piece.tensor.bytes();
    changed_.notify_all();
    return piece;
  }

 private:
  void Run() {
    try {
      for (const LazySlab& piece : pieces_) {
        std::unique_lock lock(mutex_);
        const int64_t bytes = BytesOf(piece);
        changed_.wait(lock, [&] { return stopped_ || held_ == 0 || held_ + bytes <= ahead_; });
        if (stopped_) return;
        held_ += bytes;
        lock.unlock();
        ReadyPiece made = MakePiece(piece);
        lock.lock();
        ready_.push_back(std::move(made));
        changed_.notify_all();
      }
    } catch (...) {
      std::lock_guard lock(mutex_);
      error_ = std::current_exception();
      changed_.notify_all();
    }
  }

  const std::vector<LazySlab>& pieces_;
  const int64_t ahead_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<ReadyPiece> ready_;
  int64_t held_ = 0;  // bytes of what is ready or under way
  bool stopped_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses the others
};

// What fn throws, as text; "" when it returns.
template <class Fn>
std::string ErrorOf(const Fn& fn) {
  try {
    fn();
    return "";
  } catch (const std::exception& e) {
    return *e.what() ? e.what() : "an error without a text";
  }
}

// What stands for a slab when ranks compare what they hold.
std::string KeyOf(const Slab& slab) {
  return DigestOf(
      fmt::format("{} {} {}", ShapeToString(slab.offset), ShapeToString(slab.extent), slab.name));
}

constexpr size_t kKeyBytes = 32;

void CheckTensor(const SlabTensor& st) {
  const Slab& slab = st.slab;
  bool fits = st.tensor.size() == slab.size() &&
              (st.tensor.contiguous() || st.tensor.shape() == slab.extent);
  Check<CheckpointError>(fits, "[checkpoint] {} is held by a tensor of shape {}", slab.ToString(),
                         ShapeToString(st.tensor.shape()));
}

}  // namespace

struct CheckpointWriter::Impl {
  FileSystem& fs;
  std::shared_ptr<Rendezvous> ranks;
  Options options;
  HostSnapshot snapshot;
  std::thread thread;
  std::exception_ptr error;

  struct Job {
    std::string dir, metadata;
    std::vector<LazySlab> pieces;
    std::function<void()> on_committed;
    std::string temporary() const { return dir + ".tmp"; }
  };

  std::vector<bool> ChooseSlabs(const std::string& dir, const CheckpointContents& contents);
  std::vector<LazySlab> TakePieces(const CheckpointContents& contents,
                                   const std::vector<bool>& chosen);
  void Run(const Job& job);
  SlabTable WriteShard(const Job& job);
  SlabTable GatherTables(const Job& job);
  void WriteIndex(const Job& job, const SlabTable& table);
  void SyncShard(const Job& job);
  void Publish(const Job& job);
};

// Every rank tells the others which slabs it holds; the lowest that holds one writes it. Of the
// slabs, then the lazy ones: which this rank writes.
std::vector<bool> CheckpointWriter::Impl::ChooseSlabs(const std::string& dir,
                                                      const CheckpointContents& contents) {
  const SlabIndex& slabs = contents.slabs;
  std::string error = ErrorOf([&] { std::for_each(slabs.begin(), slabs.end(), CheckTensor); });
  AgreeOrThrow(*ranks, error);
  std::string message = DigestOf(dir);
  for (const SlabTensor& st : slabs) message += KeyOf(st.slab);
  for (const LazySlab& lazy : contents.lazy) message += KeyOf(lazy.slab);
  std::vector<std::string> messages = ranks->AllGather(message);

  std::set<std::string> taken;
  for (int r = 0; r < static_cast<int>(messages.size()); ++r) {
    Check<CheckpointError>(messages[r].compare(0, kKeyBytes, messages[0], 0, kKeyBytes) == 0,
                           "[checkpoint] rank {} saves to another folder than rank 0", r);
    if (r >= ranks->rank()) continue;
    for (size_t at = kKeyBytes; at < messages[r].size(); at += kKeyBytes) {
      taken.insert(messages[r].substr(at, kKeyBytes));
    }
  }
  std::vector<bool> chosen;
  for (size_t at = kKeyBytes; at < message.size(); at += kKeyBytes) {
    chosen.push_back(taken.insert(message.substr(at, kKeyBytes)).second);
  }
  return chosen;
}

// What is written, held where the caller's tensors cannot change it.
std::vector<LazySlab> CheckpointWriter::Impl::TakePieces(const CheckpointContents& contents,
                                                         const std::vector<bool>& chosen) {
  auto in_place = [this](const Tensor& t) {
    return !options.asynchronous && t.contiguous() && t.device().is_cpu();
  };
  const SlabIndex& slabs = contents.slabs;
  std::vector<Tensor> copied;
  for (size_t i = 0; i < slabs.size(); ++i) {
    if (chosen[i] && !in_place(slabs[i].tensor)) copied.push_back(slabs[i].tensor);
  }
  const std::vector<Tensor> copies = snapshot.Take(copied, options.stream);
  std::vector<LazySlab> pieces;
  for (size_t i = 0, next = 0; i < slabs.size(); ++i) {
    if (!chosen[i]) continue;
    Tensor t = in_place(slabs[i].tensor) ? slabs[i].tensor : copies[next++];
    pieces.push_back({slabs[i].slab, t.dtype(), [t] { return t; }});
  }
  for (size_t i = 0; i < contents.lazy.size(); ++i) {
    if (chosen[slabs.size() + i]) pieces.push_back(contents.lazy[i]);
  }
  return pieces;
}

SlabTable CheckpointWriter::Impl::WriteShard(const Job& job) {
  SlabTable table;
  std::string shard = ShardName(ranks->rank()), path = job.temporary() + "/" + shard;
  bool any = std::any_of(job.pieces.begin(), job.pieces.end(),
                         [](const LazySlab& piece) { return BytesOf(piece) > 0; });
  std::map<std::string, int> uses;  // of a dataset name: a rank may hold two slabs of one tensor
  std::optional<Hdf5File> file;
  if (any) file.emplace(Hdf5File::Create(fs, path));
  snapshot.Wait();
  PieceReader reader(job.pieces, options.ahead_bytes);
  for (const LazySlab& piece : job.pieces) {
    ReadyPiece ready = reader.Take();
    CheckpointSlabInfo info{piece.slab, piece.dtype, "", "", ready.digest, BytesOf(piece), -1};
    if (info.bytes > 0) {
      int use = uses[piece.slab.name]++;
      info.shard = shard;
      info.dataset = use ? fmt::format("{}#{}", piece.slab.name, use) : piece.slab.name;
      info.position = file->WriteDataset(info.dataset, info.dtype, piece.slab.extent,
                                         ready.tensor.raw(), options.compression);
      table.slabs.push_back(std::move(info));
    } else if (NumElements(piece.slab.global_shape) == 0) {
      table.slabs.push_back(std::move(info));
    }
  }
  if (!any) return table;
  file->Close();
  int64_t size = fs.Open(path, OpenMode::kRead)->Size();
  table.shards.push_back({shard, size, GapDigest(fs, path, table.slabs)});
  return table;
}

// Every rank's table, on rank 0 (an empty one on the others); throws on all when one could not
// write.
SlabTable CheckpointWriter::Impl::GatherTables(const Job& job) {
  SlabTable table;
  std::string error = ErrorOf([&] { table = WriteShard(job); });
  std::vector<std::string> texts = ranks->AllGather(error.empty() ? table.ToText() : "");
  AgreeOrThrow(*ranks, error);
  if (ranks->rank() != 0) return {};
  for (size_t r = 1; r < texts.size(); ++r) table.Append(SlabTable::FromText(texts[r]));
  return table;
}

void CheckpointWriter::Impl::WriteIndex(const Job& job, const SlabTable& table) {
  table.CheckCoverage();
  std::string path = job.temporary() + "/" + kIndexFile;
  Hdf5File index = Hdf5File::Create(fs, path, kSealBytes);
  index.WriteText(kTableName, table.ToText());
  index.WriteText(kMetadataName, job.metadata);

  std::map<std::string, std::vector<const CheckpointSlabInfo*>> tensors;
  for (const CheckpointSlabInfo& info : table.slabs) tensors[info.slab.name].push_back(&info);
  for (const auto& [name, slabs] : tensors) {
    std::vector<Hdf5File::Piece> pieces;
    for (const CheckpointSlabInfo* s : slabs) {
      if (s->bytes > 0) pieces.push_back({s->shard, s->dataset, s->slab.offset, s->slab.extent});
    }
    index.WriteView(ViewName(name), slabs[0]->dtype, slabs[0]->slab.global_shape, pieces);
  }
  index.Close();
  WriteSeal(fs, path);
}

void CheckpointWriter::Impl::SyncShard(const Job& job) {
  const std::string path = job.temporary() + "/" + ShardName(ranks->rank());
  if (!fs.Exists(path)) return;  // nothing to write
  auto file = fs.Open(path, OpenMode::kReadWrite);
  file->Sync();
  file->Close();
  fs.SyncDir(job.temporary());
}

void CheckpointWriter::Impl::Publish(const Job& job) {
  if (fs.Exists(job.dir)) {
    fs.Exchange(job.temporary(), job.dir);
    fs.RemoveAll(job.temporary());
  } else {
    fs.Rename(job.temporary(), job.dir);
  }
}

void CheckpointWriter::Impl::Run(const Job& job) {
  bool leader = ranks->rank() == 0;
  auto agree = [&](auto fn) { AgreeOrThrow(*ranks, leader ? ErrorOf(fn) : ""); };
  try {
    agree([&] {
      if (fs.Exists(job.temporary())) fs.RemoveAll(job.temporary());
      fs.MakeDirs(job.temporary());
    });
    SlabTable table = GatherTables(job);
    // The disk has its hands full with the shard while the index is made.
    std::future<std::string> index = std::async(
        std::launch::async, [&] { return leader ? ErrorOf([&] { WriteIndex(job, table); }) : ""; });
    std::string error = ErrorOf([&] { SyncShard(job); });
    const std::string index_error = index.get();
    AgreeOrThrow(*ranks, error.empty() ? index_error : error);
    agree([&] {
      fs.SyncDir(job.temporary());
      Publish(job);
    });
  } catch (const CheckpointError& e) {
    // Best effort: what cannot be removed now is at the next prune, and matters less than the
    // error.
    if (leader) ErrorOf([&] { fs.RemoveAll(job.temporary()); });
    throw CheckpointError(fmt::format("[checkpoint] {} was not saved: {}", job.dir, e.what()));
  }
  if (job.on_committed) job.on_committed();
}

CheckpointWriter::CheckpointWriter(FileSystem& fs, std::shared_ptr<Rendezvous> ranks,
                                   Options options)
    : impl_(new Impl{fs, std::move(ranks), options, {}, {}, {}}) {}

CheckpointWriter::~CheckpointWriter() {
  if (impl_->thread.joinable()) impl_->thread.join();
}

void CheckpointWriter::Save(const std::string& dir, const CheckpointContents& contents,
                            std::function<void()> on_committed) {
  Wait();
  std::vector<bool> chosen = impl_->ChooseSlabs(dir, contents);
  Impl::Job job{dir, contents.metadata, impl_->TakePieces(contents, chosen),
                std::move(on_committed)};
  if (!impl_->options.asynchronous) return impl_->Run(job);
  impl_->thread = std::thread([impl = impl_.get(), job = std::move(job)] {
    try {
      impl->Run(job);
    } catch (...) {
      impl->error = std::current_exception();
    }
  });
}

void CheckpointWriter::Hold() {
  if (impl_->options.stream) impl_->snapshot.Hold(*impl_->options.stream);
}

void CheckpointWriter::Wait() {
  if (impl_->thread.joinable()) impl_->thread.join();
  if (impl_->error) std::rethrow_exception(std::exchange(impl_->error, nullptr));
}

}  // namespace hone::runtime
