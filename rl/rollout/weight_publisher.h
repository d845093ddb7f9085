// Weights from learner ranks to workers, each rank serving its own slabs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/process_group.h"
#include "rl/rollout/coordinator.h"
#include "rl/rollout/weight_digest.h"
#include "runtime/slab.h"

namespace hone::rl {

// One on each learner rank. Serves immutable snapshots over gRPC, and through shared memory to
// workers of the same user on the same machine: through an anonymous file; or from a device to
// devices, by CUDA IPC, and past the host. Keeps the newest, and one under each name that is
// pinned: a reference, a reward model. Others are "gone".
class WeightPublisher {
 public:
  struct Options {
    std::string listen = "127.0.0.1:0";
    std::string secret;
    std::string tls_certificate, tls_key, tls_ca;
    bool shared_memory = true;
    Device place = {};    // of the snapshots: the host, or the device that the slabs are on
    size_t versions = 2;  // so many are kept, beside those that are pinned
  };
  explicit WeightPublisher(Options options);
  ~WeightPublisher();
  std::string address() const;

  // Collective over `world`: copies `slabs` (this rank's; of replicas one rank serves each, so that
  // all serve about the same number of bytes), and returns the version with its digest and
  // everyone's endpoints, the same on all ranks. `pinned_as` ≠ "": it is none of the newest,
  // but stays until the same name is pinned anew or released.
  WeightVersion Publish(parallel::ProcessGroup& world, int64_t version, const SlabIndex& slabs,
                        const std::string& pinned_as = "");
  // What this rank serves of it, as long as it stays; all ranks together have every tensor.
  SlabIndex Pinned(const std::string& name) const;
  void Release(const std::string& name);
  // What passed between host and device so far, in publishing and in streaming from the device.
  int64_t host_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The worker's side: fetches every slab of `version` into `target` and checks the digest before
// returning it usable; CommError names what failed ("gone", digest, endpoint).
class WeightSync {
 public:
  struct Options {
    std::string secret;
    std::string tls_certificate, tls_key, tls_ca;
    bool shared_memory = true;
  };
  explicit WeightSync(Options options);
  ~WeightSync();
  void Fetch(const WeightVersion& version, const SlabIndex& target);
  // What passed between host and device so far, in fetching.
  int64_t host_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::rl
