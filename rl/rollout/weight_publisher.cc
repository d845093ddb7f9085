#include "rl/rollout/weight_publisher.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

#include "rl/rollout/weight_snapshot.h"
#include "rl/rollout/weight_stream.h"
#include "rl/rollout/wire.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"
#include "runtime/host_traffic.h"
#include "runtime/shareable_memory.h"

namespace hone::rl {
namespace {

constexpr auto kFetchDeadline = std::chrono::minutes(10);

// Names this machine, so that nobody tries to open device memory of another.
std::string MachineId() { return FirstLine("/proc/sys/kernel/random/boot_id"); }

void FillInfo(const SlabTensor& s, proto::SlabInfo* m) {
  m->set_name(s.slab.name);
  m->mutable_global_shape()->Add(s.slab.global_shape.begin(), s.slab.global_shape.end());
  m->mutable_offset()->Add(s.slab.offset.begin(), s.slab.offset.end());
  m->mutable_extent()->Add(s.slab.extent.begin(), s.slab.extent.end());
  m->set_dtype(std::string(runtime::DTypeName(s.tensor.dtype())));
  m->set_bytes(s.tensor.bytes());
}

Slab ToSlab(const proto::SlabInfo& m) {
  Slab slab;
  slab.name = m.name();
  slab.global_shape.assign(m.global_shape().begin(), m.global_shape().end());
  slab.offset.assign(m.offset().begin(), m.offset().end());
  slab.extent.assign(m.extent().begin(), m.extent().end());
  int64_t bytes =
      runtime::NumElements(slab.extent) * runtime::DTypeSize(runtime::DTypeFromName(m.dtype()));
  Check<CommError>(bytes == m.bytes() && slab.offset.size() == slab.extent.size() &&
                       slab.global_shape.size() == slab.extent.size(),
                   "[weights] the manifest's entry for {} does not add up", m.name());
  return slab;
}

// The server's side of a loan: keeps the snapshot until the call ends. Owned by the call.
class Lender final : public grpc::ServerWriteReactor<proto::Loan> {
 public:
  Lender(std::shared_ptr<const WeightSnapshot> snapshot, const std::string& handle,
         const grpc::Status& status)
      : snapshot_(std::move(snapshot)) {
    if (!snapshot_) {
      Finish(status);
      return;
    }
    loan_.set_handle(handle);
    StartWrite(&loan_);
  }

 private:
  void OnCancel() override {
    if (snapshot_) Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

  std::shared_ptr<const WeightSnapshot> snapshot_;
  proto::Loan loan_;
};

// Snapshots on a device that nobody refers to any more. To free their memory waits for all work of
// the device with the driver's locks held, so a call that gives one back leaves it here for the
// publishing thread, which frees it where no step is under way.
class Retired {
 public:
  static std::shared_ptr<const WeightSnapshot> Guard(std::unique_ptr<const WeightSnapshot> snapshot,
                                                     std::shared_ptr<Retired> retired) {
    if (snapshot->place().is_cpu()) return snapshot;
    return {snapshot.release(), [retired = std::move(retired)](const WeightSnapshot* s) {
              std::lock_guard lock(retired->mutex_);
              retired->snapshots_.emplace_back(s);
            }};
  }
  void Free() {
    std::lock_guard lock(mutex_);
    snapshots_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<const WeightSnapshot>> snapshots_;
};

}  // namespace

// ---- Serving ------------------------------------------------------------------------------------

using Served = proto::WeightServer::WithRawCallbackMethod_Stream<
    proto::WeightServer::WithCallbackMethod_Lend<proto::WeightServer::Service>>;

struct WeightPublisher::Impl final : Served {
  explicit Impl(Options o) : options(std::move(o)) {
    Security security{options.secret, options.tls_certificate, options.tls_key, options.tls_ca};
    grpc::ServerBuilder builder;
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    int port = 0;
    builder.AddListeningPort(options.listen, ServerCredentials(security, options.listen), &port);
    builder.RegisterService(this);
    server = builder.BuildAndStart();
    Check<CommError>(server != nullptr && port != 0, "[weights] cannot listen on {}",
                     options.listen);
    address = ReachableAddress(options.listen, port);
  }
  ~Impl() override { server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2)); }

  std::shared_ptr<const WeightSnapshot> Find(int64_t version, grpc::Status* status) {
    std::lock_guard lock(mutex);
    auto it = snapshots.find(version);
    if (it != snapshots.end()) return it->second;
    for (const auto& [name, held] : pinned) {
      if (held.version == version) return held.snapshot;
    }
    *status = {grpc::StatusCode::NOT_FOUND, fmt::format("weights {} are gone", version)};
    return nullptr;
  }

  grpc::Status Manifest(grpc::ServerContext* context, const proto::ManifestRequest* request,
                        proto::ManifestReply* reply) override {
    grpc::Status status = CheckSecret(*context, options.secret);
    if (!status.ok()) return status;
    auto snapshot = Find(request->version(), &status);
    if (!snapshot) return status;
    for (const SlabTensor& s : snapshot->slabs()) FillInfo(s, reply->add_slabs());
    if (!options.shared_memory) return status;
    if (!snapshot->place().is_cpu()) {
      reply->set_device_machine(MachineId());
    } else {
      reply->set_shared_memory(snapshot->path());
      reply->set_nonce(snapshot->nonce());
    }
    return grpc::Status::OK;
  }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Stream(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* bytes) override {
    grpc::Status status = CheckSecret(*context, options.secret);
    proto::ManifestRequest request;
    grpc::ByteBuffer copy(*bytes);
    if (status.ok()) {
      status = grpc::SerializationTraits<proto::ManifestRequest>::Deserialize(&copy, &request);
    }
    auto snapshot = status.ok() ? Find(request.version(), &status) : nullptr;
    if (snapshot && !snapshot->place().is_cpu()) host_bytes += snapshot->size();
    return SendSnapshot(std::move(snapshot), status);
  }

  grpc::ServerWriteReactor<proto::Loan>* Lend(grpc::CallbackServerContext* context,
                                              const proto::ManifestRequest* request) override {
    grpc::Status status = CheckSecret(*context, options.secret);
    auto snapshot = status.ok() ? Find(request->version(), &status) : nullptr;
    std::string handle;
    try {
      Check<DeviceError>(!snapshot || !snapshot->place().is_cpu(),
                         "these weights are in host memory");
      if (snapshot) handle = snapshot->handle();
    } catch (const DeviceError& error) {
      snapshot = nullptr;
      status = {grpc::StatusCode::FAILED_PRECONDITION, error.what()};
    }
    return new Lender(std::move(snapshot), handle, status);
  }

  // What a rank serves of the slabs that `keys` names. Asked for by name, since a reward model has
  // slabs that the policy lacks, and not on every rank.
  struct Ownership {
    std::string keys;
    std::vector<bool> owned;
  };

  // Which of `slabs` this rank serves. A slab that several ranks hold goes, the largest first, to
  // the one of them that has the least to serve yet.
  const std::vector<bool>& Owned(parallel::ProcessGroup& world, const SlabIndex& slabs,
                                 const std::string& pinned_as) {
    std::string keys;
    for (const SlabTensor& s : slabs) {
      keys += fmt::format("{:016} {}\n", s.tensor.bytes(), s.slab.ToString());
    }
    auto [known, fresh] = ownership.try_emplace(pinned_as);
    Ownership& own = known->second;
    if (!fresh && keys == own.keys) return own.owned;
    std::map<std::string, std::vector<int>, std::greater<>> holders;
    auto all = world.AllGatherBytes(keys);
    for (int r = 0; r < world.size(); ++r) {
      for (size_t at = 0, end; at < all[r].size(); at = end + 1) {
        end = all[r].find('\n', at);
        auto& ranks = holders[all[r].substr(at, end - at)];
        if (ranks.empty() || ranks.back() != r) ranks.push_back(r);
      }
    }
    std::vector<int64_t> load(static_cast<size_t>(world.size()), 0);
    std::set<std::string> mine;
    for (auto& [key, ranks] : holders) {
      int server = *std::min_element(ranks.begin(), ranks.end(),
                                     [&](int a, int b) { return load[a] < load[b]; });
      load[server] += std::stoll(key.substr(0, 16));
      if (server == world.rank()) mine.insert(key);
    }
    own = {keys, {}};
    for (const SlabTensor& s : slabs) {  // a tied tensor that is here twice is served once
      own.owned.push_back(
          mine.erase(fmt::format("{:016} {}", s.tensor.bytes(), s.slab.ToString())) > 0);
    }
    return own.owned;
  }

  // Forgets what the next snapshot takes the place of: a device should not hold one more.
  void MakeRoom(const std::string& pinned_as) {
    if (!pinned_as.empty()) return Release(pinned_as);
    {
      std::lock_guard lock(mutex);
      while (snapshots.size() >= options.versions) snapshots.erase(snapshots.begin());
    }
    retired->Free();
  }

  void Release(const std::string& name) {
    {
      std::lock_guard lock(mutex);
      pinned.erase(name);
    }
    retired->Free();
  }

  void Keep(int64_t version, std::shared_ptr<const WeightSnapshot> snapshot,
            const std::string& pinned_as) {
    std::lock_guard lock(mutex);
    if (pinned_as.empty()) {
      snapshots[version] = std::move(snapshot);
    } else {
      pinned[pinned_as] = {version, std::move(snapshot)};
    }
  }

  struct Held {
    int64_t version = 0;
    std::shared_ptr<const WeightSnapshot> snapshot;
  };

  Options options;
  std::string address;
  std::unique_ptr<grpc::Server> server;
  std::mutex mutex;
  std::shared_ptr<Retired> retired = std::make_shared<Retired>();
  std::map<int64_t, std::shared_ptr<const WeightSnapshot>> snapshots;
  std::map<std::string, Held> pinned;
  std::map<std::string, Ownership> ownership;  // by the name that is pinned; "": the policy's
  std::atomic<int64_t> host_bytes{0};
};

WeightPublisher::WeightPublisher(Options options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
WeightPublisher::~WeightPublisher() = default;
std::string WeightPublisher::address() const { return impl_->address; }

WeightVersion WeightPublisher::Publish(parallel::ProcessGroup& world, int64_t version,
                                       const SlabIndex& slabs, const std::string& pinned_as) {
  const std::vector<bool>& owned = impl_->Owned(world, slabs, pinned_as);
  SlabIndex mine;
  for (size_t i = 0; i < slabs.size(); ++i) {
    if (owned[i]) mine.push_back(slabs[i]);
  }
  impl_->MakeRoom(pinned_as);
  const int64_t traffic = runtime::HostTraffic();
  WeightDigester digester;
  auto snapshot =
      Retired::Guard(std::make_unique<WeightSnapshot>(
                         mine, impl_->options.place,
                         [&digester](const SlabTensor& copied) { digester.Add(copied); }),
                     impl_->retired);
  std::string partial = digester.Finish();
  impl_->host_bytes += runtime::HostTraffic() - traffic;
  impl_->Keep(version, std::move(snapshot), pinned_as);
  WeightVersion result;
  result.version = version;
  std::vector<std::string> digests;
  for (const std::string& s : world.AllGatherBytes(partial + impl_->address)) {
    digests.push_back(s.substr(0, 32));
    result.endpoints.push_back(s.substr(32));
  }
  result.digest = CombineDigests(digests);
  return result;
}

SlabIndex WeightPublisher::Pinned(const std::string& name) const {
  std::lock_guard lock(impl_->mutex);
  auto it = impl_->pinned.find(name);
  return it == impl_->pinned.end() ? SlabIndex() : it->second.snapshot->slabs();
}

void WeightPublisher::Release(const std::string& name) { impl_->Release(name); }

int64_t WeightPublisher::host_bytes() const { return impl_->host_bytes; }

// ---- Fetching -----------------------------------------------------------------------------------

namespace {

// Where the weights of one version go, and which of it has come.
class Delivery {
 public:
  explicit Delivery(const SlabIndex& target) : target_(target) {
    for (size_t i = 0; i < target.size(); ++i) {
      by_name_[target[i].slab.name].push_back(i);
      missing_.push_back(target[i].slab.size());
    }
  }

  Device device() const { return target_.empty() ? Device::Cpu() : target_[0].tensor.device(); }

  // The memory of `slab`, where that is one piece of one target; or null.
  char* PlaceOf(const Slab& slab, DType dtype) const {
    auto found = by_name_.find(slab.name);
    if (found == by_name_.end() || found->second.size() != 1 || slab.extent.empty()) return nullptr;
    const auto& [to, tensor] = target_[found->second[0]];
    bool inside = to.extent.size() == slab.extent.size() && tensor.dtype() == dtype &&
                  tensor.device().is_cpu() && tensor.contiguous() &&
                  slab.offset[0] >= to.offset[0] &&
                  slab.offset[0] + slab.extent[0] <= to.offset[0] + to.extent[0];
    int64_t row_bytes = runtime::DTypeSize(dtype);
    for (size_t d = 1; inside && d < slab.extent.size(); ++d) {
      inside = slab.offset[d] == to.offset[d] && slab.extent[d] == to.extent[d];
      row_bytes *= slab.extent[d];
    }
    if (!inside) return nullptr;
    return static_cast<char*>(tensor.raw()) + (slab.offset[0] - to.offset[0]) * row_bytes;
  }

  // `slab` came, to where PlaceOf said.
  void Placed(const Slab& slab) { Came(by_name_.at(slab.name)[0], slab.size()); }

  // `slab` came, to memory of `from`: it is copied to wherever the targets want it.
  void Copy(const Slab& slab, DType dtype, const char* bytes, Device from = {}) {
    auto found = by_name_.find(slab.name);
    if (found == by_name_.end()) return;
    Tensor tensor(const_cast<char*>(bytes), slab.extent, dtype, from);
    for (size_t i : found->second) Came(i, runtime::CopySlab({slab, tensor}, target_[i]));
  }

  // The whole manifest came, to memory of `from`.
  void CopyAll(const proto::ManifestReply& manifest, const char* bytes, Device from) {
    for (const proto::SlabInfo& info : manifest.slabs()) {
      Copy(ToSlab(info), runtime::DTypeFromName(info.dtype()), bytes, from);
      bytes += info.bytes();
    }
  }

  // The digest of all targets; CommError when something of them has not come.
  std::string Finish(int64_t version) {
    int64_t wanted = 0, missing = 0;
    for (size_t i = 0; i < target_.size(); ++i) {
      wanted += target_[i].slab.size();
      missing += missing_[i];
    }
    Check<CommError>(missing == 0,
                     "[weights] version {} gave {} of {} elements: its learner has another model "
                     "or layout",
                     version, wanted - missing, wanted);
    return digester_.Finish();
  }

 private:
  // A target that is whole is digested while the next comes.
  void Came(size_t i, int64_t elements) {
    if (elements == 0) return;
    missing_[i] -= elements;
    Check<CommError>(missing_[i] >= 0, "[weights] some of {} came twice",
                     target_[i].slab.ToString());
    if (missing_[i] == 0) digester_.Add(target_[i]);
  }

  const SlabIndex& target_;
  std::unordered_map<std::string, std::vector<size_t>> by_name_;
  std::vector<int64_t> missing_;  // elements of each target
  WeightDigester digester_;
};

}  // namespace

struct WeightSync::Impl {
  Options options;
  Security security;
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels;
  int64_t host_bytes = 0;

  const std::shared_ptr<grpc::Channel>& ChannelTo(const std::string& endpoint) {
    auto& channel = channels[endpoint];
    if (!channel) channel = Connect(endpoint, security);
    return channel;
  }

  void FetchFrom(const std::string& endpoint, int64_t version, Delivery& delivery) {
    proto::ManifestRequest request;
    request.set_version(version);
    proto::ManifestReply manifest;
    grpc::ClientContext context;
    Prepare(context, security, std::chrono::seconds(30));
    grpc::Status status =
        proto::WeightServer::NewStub(ChannelTo(endpoint))->Manifest(&context, request, &manifest);
    Check<CommError>(status.ok(), "[weights] {} does not serve weights {}: {}", endpoint, version,
                     status.error_message());
    if (options.shared_memory && FetchMapped(manifest, delivery)) return;
    if (options.shared_memory && FetchLent(endpoint, request, manifest, delivery)) return;
    StreamFrom(endpoint, request, manifest, delivery);
  }

  // From a file in memory; false where there is none, or not here.
  static bool FetchMapped(const proto::ManifestReply& manifest, Delivery& delivery) {
    if (manifest.shared_memory().empty()) return false;
    int64_t size = 0;
    for (const proto::SlabInfo& info : manifest.slabs()) size += info.bytes();
    MappedSnapshot mapped(manifest.shared_memory(), manifest.nonce(), size);
    if (mapped.bytes()) delivery.CopyAll(manifest, mapped.bytes(), Device::Cpu());
    return mapped.bytes() != nullptr;
  }

  // From the learner's device to one of this machine that reaches it; false where they do not.
  bool FetchLent(const std::string& endpoint, const proto::ManifestRequest& request,
                 const proto::ManifestReply& manifest, Delivery& delivery) {
    const Device device = delivery.device();
    if (device.is_cpu() || manifest.device_machine() != MachineId()) return false;
    grpc::ClientContext context;
    Prepare(context, security, kFetchDeadline);
    auto call = proto::WeightServer::NewStub(ChannelTo(endpoint))->Lend(&context, request);
    proto::Loan loan;
    if (!call->Read(&loan)) {
      const grpc::Status status = call->Finish();
      // The driver shares memory with no process, or the weights are on the host.
      if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) return false;
      throw CommError(fmt::format("[weights] {} does not lend weights {}: {}", endpoint,
                                  request.version(), status.error_message()));
    }
    auto memory = runtime::OpenShareable(device, loan.handle());
    if (memory) delivery.CopyAll(manifest, static_cast<const char*>(memory.get()), device);
    const bool copied = memory != nullptr;
    memory.reset();  // before the learner may free it
    context.TryCancel();
    call->Finish();
    return copied;
  }

  // Straight to where it belongs; or a slab at a time, so that no second copy of the model is held.
  void StreamFrom(const std::string& endpoint, const proto::ManifestRequest& request,
                  const proto::ManifestReply& manifest, Delivery& delivery) {
    grpc::ClientContext context;
    Prepare(context, security, kFetchDeadline);
    SnapshotReader reader(ChannelTo(endpoint), context, request);
    std::vector<char> staged;
    bool whole = true;
    for (const proto::SlabInfo& info : manifest.slabs()) {
      const Slab slab = ToSlab(info);
      const DType dtype = runtime::DTypeFromName(info.dtype());
      char* place = delivery.PlaceOf(slab, dtype);
      if (!place) staged.resize(static_cast<size_t>(info.bytes()));
      whole = reader.Read(place ? place : staged.data(), info.bytes());
      if (!whole) break;
      place ? delivery.Placed(slab) : delivery.Copy(slab, dtype, staged.data());
    }
    grpc::Status status = reader.Finish();
    Check<CommError>(status.ok() && whole, "[weights] the stream of weights {} from {} broke: {}",
                     request.version(), endpoint,
                     status.ok() ? "it ended early" : status.error_message());
  }
};

WeightSync::WeightSync(Options options) : impl_(std::make_unique<Impl>()) {
  impl_->security = {options.secret, options.tls_certificate, options.tls_key, options.tls_ca};
  impl_->options = std::move(options);
}
WeightSync::~WeightSync() = default;
int64_t WeightSync::host_bytes() const { return impl_->host_bytes; }

void WeightSync::Fetch(const WeightVersion& version, const SlabIndex& target) {
  const int64_t traffic = runtime::HostTraffic();
  Delivery delivery(target);
  for (const std::string& endpoint : version.endpoints) {
    impl_->FetchFrom(endpoint, version.version, delivery);
  }
  std::string digest = delivery.Finish(version.version);
  impl_->host_bytes += runtime::HostTraffic() - traffic;
  Check<CommError>(digest == version.digest,
                   "[weights] version {} has digest {} here and {} at its "
                   "source: the bytes were changed on the way",
                   version.version, digest, version.digest);
}

}  // namespace hone::rl
