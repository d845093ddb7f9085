// HDF5 checkpoints: any layout saves, any other loads.
//
// A checkpoint is a folder: `shard-NNNNN.h5` from each rank with its slabs as contiguous datasets,
// and `index.h5` with the slab table (name, dtype, global shape, offset, extent, shard, dataset,
// XXH3 digest), the metadata JSON, and for people and h5py a view of each whole tensor as a virtual
// dataset under /model (relative source names; NaN as the fill value). A tensor without a group in
// its name is shown as /model/NAME, others as /NAME. Loading reads the slab table and the shards,
// never the view.
//
// Saving writes into `DIR.tmp`, syncs, lets the ranks agree, and renames: a folder with its final
// name is complete, and one of the same name is replaced in the same step. A folder is refused by
// name when a shard is missing, short or changed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/file_system.h"
#include "runtime/lazy_slab.h"
#include "runtime/rendezvous.h"
#include "runtime/slab.h"

namespace hone::runtime {

// Groups of state live under their own prefix in the slab names: "model/…", "optimizer/master/…",
// "optimizer/exp_avg/…", "optimizer/exp_avg_sq/…". Everything else is JSON metadata.
struct CheckpointContents {
  SlabIndex slabs;  // this rank's; where ranks hold the same slab, the lowest rank writes it
  std::string
      metadata;  // JSON, from rank 0: stage, step, RNG counters, data position, weight version…
  // More slabs, each made when its turn comes, in this order, on a thread of the writer's.
  std::vector<LazySlab> lazy = {};
};

// Collective. When asynchronous, `contents` is copied to host memory, on the host before the call
// returns and from a device behind what its stream has been given; the rest happens on a background
// thread, and `Wait` (or the next Save) reports its error. At most one save is in flight. Thread:
// call from one thread only.
class CheckpointWriter {
 public:
  struct Options {
    bool asynchronous = true;
    int compression = 0;  // deflate level; 0: contiguous datasets at the disk's speed
    // How many bytes of lazy slabs, or one slab, are held beside the one that is being written.
    int64_t ahead_bytes = 64 << 20;
    // What works on tensors of a device; see Hold. Null: Save waits for the device.
    Stream* stream = nullptr;
  };
  CheckpointWriter(FileSystem& fs, std::shared_ptr<Rendezvous> ranks, Options options);
  ~CheckpointWriter();

  // `dir` is the final name. `on_committed` runs (on the background thread, on every rank) after
  // the rename.
  void Save(const std::string& dir, const CheckpointContents& contents,
            std::function<void()> on_committed = nullptr);
  void Wait();
  // Before the device's tensors are changed or freed: makes `stream` of the options wait, on the
  // device, until the last Save has read them.
  void Hold();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct CheckpointSlabInfo {
  Slab slab;
  DType dtype;
  std::string shard, dataset, digest;  // "" for a tensor without elements
  int64_t bytes;
  int64_t position;  // of its bytes in the shard; −1 when compressed
};

class CheckpointReader {
 public:
  // Opens and checks the table: every tensor wholly covered, every shard there and of the right
  // length. CheckpointError names what is wrong. Not collective.
  CheckpointReader(FileSystem& fs, const std::string& dir);
  ~CheckpointReader();

  const std::string& metadata() const;
  const std::vector<CheckpointSlabInfo>& slabs() const;
  std::vector<Slab> Tensors() const;  // each global tensor once, whole
  bool Has(const std::string& name) const;
  // Fills every slab of `dst`; CheckpointError names a tensor that is missing or of another global
  // shape. Digests of all pieces read are checked.
  void Load(const SlabIndex& dst) const;
  // Reads every byte and checks every digest. The error names each file and tensor that is damaged.
  void Verify() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Complete checkpoints in a folder of `step-NNNNNN`s, oldest first.
std::vector<int64_t> ListCheckpointSteps(FileSystem& fs, const std::string& dir);
std::string CheckpointStepName(int64_t step);  // "step-000100"
// Removes all but the last `keep_last` and those whose step divides by `keep_every` (0: none),
// never `protect`; and unfinished `.tmp` folders. One rank calls it, while no save is under way: in
// `on_committed`, say.
void PruneCheckpoints(FileSystem& fs, const std::string& dir, int keep_last, int64_t keep_every,
                      int64_t protect = -1);

}  // namespace hone::runtime
