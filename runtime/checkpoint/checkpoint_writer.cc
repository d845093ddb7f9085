#include <algorithm>
#include <exception>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/hdf5_file.h"
#include "runtime/checkpoint/seal.h"
#include "runtime/checkpoint/slab_table.h"
#include "runtime/digest.h"
#include "runtime/error.h"

namespace hone::runtime {
namespace {

// A slab that this rank writes, and its bytes: contiguous, in host memory.
struct HostPiece {
  Slab slab;
  DType dtype;
  const void* data;
  int64_t bytes() const { return slab.size() * DTypeSize(dtype); }
};

// One block that the snapshots of successive saves share.
class SnapshotBuffer {
 public:
  // Room for `bytes`; what Take handed out before is gone.
  void Reset(int64_t bytes) {
    if (bytes > capacity_) {
      block_.reset();
      block_ = std::make_unique_for_overwrite<char[]>(bytes);
      capacity_ = bytes;
    }
    used_ = 0;
  }
  char* Take(int64_t bytes) { return block_.get() + std::exchange(used_, used_ + bytes); }

 private:
  std::unique_ptr<char[]> block_;
  int64_t capacity_ = 0, used_ = 0;
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
  SnapshotBuffer buffer;
  std::thread thread;
  std::exception_ptr error;

  struct Job {
    std::string dir, metadata;
    std::vector<HostPiece> pieces;
    std::function<void()> on_committed;
    std::string temporary() const { return dir + ".tmp"; }
  };

  std::vector<const SlabTensor*> ChooseSlabs(const std::string& dir, const SlabIndex& slabs);
  void CopyToHost(const std::vector<const SlabTensor*>& slabs, std::vector<HostPiece>* pieces);
  void Run(const Job& job);
  SlabTable WriteShard(const Job& job);
  SlabTable GatherTables(const Job& job);
  void WriteIndex(const Job& job, const SlabTable& table);
  void Publish(const Job& job);
};

// Every rank tells the others which slabs it holds; the lowest that holds one writes it.
std::vector<const SlabTensor*> CheckpointWriter::Impl::ChooseSlabs(const std::string& dir,
                                                                   const SlabIndex& slabs) {
  std::string error = ErrorOf([&] { std::for_each(slabs.begin(), slabs.end(), CheckTensor); });
  AgreeOrThrow(*ranks, error);
  std::string message = DigestOf(dir);
  for (const SlabTensor& st : slabs) message += KeyOf(st.slab);
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
  std::vector<const SlabTensor*> chosen;
  for (size_t i = 0; i < slabs.size(); ++i) {
    if (taken.insert(message.substr((i + 1) * kKeyBytes, kKeyBytes)).second) {
      chosen.push_back(&slabs[i]);
    }
  }
  return chosen;
}

void CheckpointWriter::Impl::CopyToHost(const std::vector<const SlabTensor*>& slabs,
                                        std::vector<HostPiece>* pieces) {
  auto in_place = [this](const Tensor& t) {
    return !options.asynchronous && t.contiguous() && t.device().is_cpu();
  };
  int64_t total = 0;
  for (const SlabTensor* st : slabs) total += in_place(st->tensor) ? 0 : st->tensor.bytes();
  buffer.Reset(total);
  for (const SlabTensor* st : slabs) {
    const Tensor& t = st->tensor;
    void* data = t.raw();
    if (!in_place(t)) {
      data = buffer.Take(t.bytes());
      CopyTo(t, Tensor(data, t.shape(), t.dtype(), Device::Cpu()));
    }
    pieces->push_back({st->slab, t.dtype(), data});
  }
}

SlabTable CheckpointWriter::Impl::WriteShard(const Job& job) {
  SlabTable table;
  std::string shard = ShardName(ranks->rank()), path = job.temporary() + "/" + shard;
  bool any = std::any_of(job.pieces.begin(), job.pieces.end(),
                         [](const HostPiece& piece) { return piece.bytes() > 0; });
  std::map<std::string, int> uses;  // of a dataset name: a rank may hold two slabs of one tensor
  std::optional<Hdf5File> file;
  if (any) file.emplace(Hdf5File::Create(fs, path));
  for (const HostPiece& piece : job.pieces) {
    CheckpointSlabInfo info{piece.slab, piece.dtype, "", "", "", piece.bytes(), -1};
    if (info.bytes > 0) {
      int use = uses[piece.slab.name]++;
      info.shard = shard;
      info.dataset = use ? fmt::format("{}#{}", piece.slab.name, use) : piece.slab.name;
      info.digest = DigestOf(piece.data, info.bytes);
      info.position = file->WriteDataset(info.dataset, info.dtype, piece.slab.extent, piece.data,
                                         options.compression);
      if (options.on_written) options.on_written(piece.slab);
      table.slabs.push_back(std::move(info));
    } else if (NumElements(piece.slab.global_shape) == 0) {
      table.slabs.push_back(std::move(info));
    }
  }
  if (!any) return table;
  file->Close();
  fs.SyncDir(job.temporary());
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
    agree([&] {
      WriteIndex(job, table);
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
  Impl::Job job{dir, contents.metadata, {}, std::move(on_committed)};
  impl_->CopyToHost(impl_->ChooseSlabs(dir, contents.slabs), &job.pieces);
  if (!impl_->options.asynchronous) return impl_->Run(job);
  impl_->thread = std::thread([impl = impl_.get(), job = std::move(job)] {
    try {
      impl->Run(job);
    } catch (...) {
      impl->error = std::current_exception();
    }
  });
}

void CheckpointWriter::Wait() {
  if (impl_->thread.joinable()) impl_->thread.join();
  if (impl_->error) std::rethrow_exception(std::exchange(impl_->error, nullptr));
}

}  // namespace hone::runtime
