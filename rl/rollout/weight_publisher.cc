#include "rl/rollout/weight_publisher.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>

#include "rl/rollout/weight_snapshot.h"
#include "rl/rollout/wire.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

constexpr int64_t kChunk = 4 << 20;
constexpr size_t kVersionsKept = 2;
constexpr int kMaxMessage = 64 << 20;
constexpr auto kFetchDeadline = std::chrono::minutes(10);

// A partial digest is 128 bits as 32 hex digits: two sums modulo 2^64.
struct DigestSum {
  uint64_t low = 0, high = 0;
  std::string ToHex() const { return fmt::format("{:016x}{:016x}", high, low); }
};

void AddRows(const SlabTensor& s, DigestSum* sum) {
  int64_t rows = s.slab.extent.empty() ? 1 : s.slab.extent[0];
  if (rows == 0 || s.tensor.size() == 0) return;
  if (!s.tensor.device().is_cpu()) {
    static const std::shared_ptr<Allocator> host = runtime::MakeAllocator(Device::Cpu());
    Tensor copy(host, s.tensor.shape(), s.tensor.dtype(), MemoryCategory::kCommunication);
    CopyTo(s.tensor, copy);
    return AddRows({s.slab, copy}, sum);
  }
  Check<ShapeError>(s.tensor.contiguous(), "[digest] {} is not contiguous", s.slab.ToString());
  int64_t row_bytes = s.tensor.bytes() / rows;
  uint64_t seed = HashName(s.slab.name);
  for (size_t d = 1; d < s.slab.offset.size(); ++d) {
    seed = seed * 0x9E3779B97F4A7C15 + static_cast<uint64_t>(s.slab.offset[d]);
  }
  uint64_t first = s.slab.offset.empty() ? 0 : static_cast<uint64_t>(s.slab.offset[0]);
  for (int64_t r = 0; r < rows; ++r) {
    XXH128_hash_t hash = XXH3_128bits_withSeed(
        static_cast<const char*>(s.tensor.raw()) + r * row_bytes, static_cast<size_t>(row_bytes),
        seed ^ (first + static_cast<uint64_t>(r)) * 0xD1342543DE82EF95);
    sum->low += hash.low64;
    sum->high += hash.high64;
  }
}

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

}  // namespace

std::string WeightDigest(const SlabIndex& slabs) {
  DigestSum sum;
  for (const SlabTensor& s : slabs) AddRows(s, &sum);
  return sum.ToHex();
}

std::string CombineDigests(const std::vector<std::string>& partial) {
  DigestSum sum;
  for (const std::string& hex : partial) {
    Check<CommError>(hex.size() == 32, "[digest] '{}' is not a digest", hex);
    sum.high += std::stoull(hex.substr(0, 16), nullptr, 16);
    sum.low += std::stoull(hex.substr(16), nullptr, 16);
  }
  return sum.ToHex();
}

// ---- Serving ------------------------------------------------------------------------------------

struct WeightPublisher::Impl final : proto::WeightServer::Service {
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

  std::shared_ptr<WeightSnapshot> Find(int64_t version, grpc::Status* status) {
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
    if (options.shared_memory) {
      reply->set_shared_memory(snapshot->path());
      reply->set_nonce(snapshot->nonce());
    }
    return grpc::Status::OK;
  }

  grpc::Status Stream(grpc::ServerContext* context, const proto::ManifestRequest* request,
                      grpc::ServerWriter<proto::WeightChunk>* writer) override {
    grpc::Status status = CheckSecret(*context, options.secret);
    if (!status.ok()) return status;
    auto snapshot = Find(request->version(), &status);
    if (!snapshot) return status;
    proto::WeightChunk chunk;
    for (int64_t at = 0; at < snapshot->size(); at += kChunk) {
      chunk.set_data(snapshot->bytes() + at,
                     static_cast<size_t>(std::min(kChunk, snapshot->size() - at)));
      if (!writer->Write(chunk)) return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
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

  struct Held {
    int64_t version = 0;
    std::shared_ptr<WeightSnapshot> snapshot;
  };

  Options options;
  std::string address;
  std::unique_ptr<grpc::Server> server;
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<WeightSnapshot>> snapshots;
  std::map<std::string, Held> pinned;
  std::map<std::string, Ownership> ownership;  // by the name that is pinned; "": the policy's
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
  auto snapshot = std::make_shared<WeightSnapshot>(mine);
  std::string partial = WeightDigest(snapshot->slabs());
  {
    std::lock_guard lock(impl_->mutex);
    if (!pinned_as.empty()) {
      impl_->pinned[pinned_as] = {version, snapshot};
    } else {
      impl_->snapshots[version] = snapshot;
    }
    while (impl_->snapshots.size() > kVersionsKept) {
      impl_->snapshots.erase(impl_->snapshots.begin());
    }
  }
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

void WeightPublisher::Release(const std::string& name) {
  std::lock_guard lock(impl_->mutex);
  impl_->pinned.erase(name);
}

// ---- Fetching -----------------------------------------------------------------------------------

struct WeightSync::Impl {
  Options options;
  Security security;
  std::map<std::string, std::unique_ptr<proto::WeightServer::Stub>> stubs;

  proto::WeightServer::Stub& StubOf(const std::string& endpoint) {
    auto& stub = stubs[endpoint];
    if (!stub) stub = proto::WeightServer::NewStub(Connect(endpoint, security, kMaxMessage));
    return *stub;
  }

  // Copies one slab's bytes wherever the target wants them; returns how many elements that were.
  static int64_t Deliver(const proto::SlabInfo& info, const char* bytes, const SlabIndex& target) {
    Slab slab = ToSlab(info);
    Tensor tensor(const_cast<char*>(bytes), slab.extent, runtime::DTypeFromName(info.dtype()),
                  Device::Cpu());
    int64_t copied = 0;
    for (const SlabTensor& t : target) {
      if (t.slab.name == slab.name) copied += runtime::CopySlab({slab, tensor}, t);
    }
    return copied;
  }

  int64_t FetchFrom(const std::string& endpoint, int64_t version, const SlabIndex& target) {
    proto::ManifestRequest request;
    request.set_version(version);
    proto::ManifestReply manifest;
    grpc::ClientContext context;
    Prepare(context, security, std::chrono::seconds(30));
    grpc::Status status = StubOf(endpoint).Manifest(&context, request, &manifest);
    Check<CommError>(status.ok(), "[weights] {} does not serve weights {}: {}", endpoint, version,
                     status.error_message());
    int64_t size = 0, copied = 0;
    for (const proto::SlabInfo& info : manifest.slabs()) size += info.bytes();
    if (options.shared_memory && !manifest.shared_memory().empty()) {
      MappedSnapshot mapped(manifest.shared_memory(), manifest.nonce(), size);
      if (const char* at = mapped.bytes()) {
        for (const proto::SlabInfo& info : manifest.slabs()) {
          copied += Deliver(info, at, target);
          at += info.bytes();
        }
        return copied;
      }
    }
    return StreamFrom(endpoint, request, manifest, target);
  }

  // A slab at a time, so that no second copy of the model is held.
  int64_t StreamFrom(const std::string& endpoint, const proto::ManifestRequest& request,
                     const proto::ManifestReply& manifest, const SlabIndex& target) {
    grpc::ClientContext context;
    Prepare(context, security, kFetchDeadline);
    auto reader = StubOf(endpoint).Stream(&context, request);
    proto::WeightChunk chunk;
    size_t at = 0;
    int64_t copied = 0;
    std::string bytes;
    bool more = true;
    for (const proto::SlabInfo& info : manifest.slabs()) {
      bytes.clear();
      bytes.reserve(static_cast<size_t>(info.bytes()));
      while (static_cast<int64_t>(bytes.size()) < info.bytes()) {
        if (at == chunk.data().size()) {
          more = reader->Read(&chunk);
          at = 0;
          if (!more) break;
        }
        size_t take =
            std::min(chunk.data().size() - at, static_cast<size_t>(info.bytes()) - bytes.size());
        bytes.append(chunk.data(), at, take);
        at += take;
      }
      if (!more) break;
      copied += Deliver(info, bytes.data(), target);
    }
    if (more) {
      while (reader->Read(&chunk)) {
      }
    }
    grpc::Status status = reader->Finish();
    Check<CommError>(status.ok() && more, "[weights] the stream of weights {} from {} broke: {}",
                     request.version(), endpoint,
                     status.ok() ? "it ended early" : status.error_message());
    return copied;
  }
};

WeightSync::WeightSync(Options options) : impl_(std::make_unique<Impl>()) {
  impl_->security = {options.secret, options.tls_certificate, options.tls_key, options.tls_ca};
  impl_->options = std::move(options);
}
WeightSync::~WeightSync() = default;

void WeightSync::Fetch(const WeightVersion& version, const SlabIndex& target) {
  int64_t wanted = 0, copied = 0;
  for (const SlabTensor& t : target) wanted += t.slab.size();
  for (const std::string& endpoint : version.endpoints) {
    copied += impl_->FetchFrom(endpoint, version.version, target);
  }
  Check<CommError>(copied == wanted,
                   "[weights] version {} gave {} of {} elements: its learner has "
                   "another model or layout",
                   version.version, copied, wanted);
  std::string digest = WeightDigest(target);
  Check<CommError>(digest == version.digest,
                   "[weights] version {} has digest {} here and {} at its "
                   "source: the bytes were changed on the way",
                   version.version, digest, version.digest);
}

}  // namespace hone::rl
