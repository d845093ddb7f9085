#include "rl/rollout/weight_stream.h"

#include <algorithm>
#include <cstring>

#include "runtime/error.h"

namespace hone::rl {
namespace {

constexpr int64_t kChunk = 4 << 20;
constexpr char kMethod[] = "/hone.rl.proto.WeightServer/Stream";
// A WeightChunk as protobuf writes it: this byte (field 1, a length and as many bytes), the length
// in groups of seven bits, the lowest first, each but the last with the eighth bit set; the data.
constexpr uint8_t kDataTag = 0x0A;
constexpr int kMaxLengthBytes = 10;

grpc::Slice HeaderOf(int64_t bytes) {
  std::string header(1, static_cast<char>(kDataTag));
  uint64_t left = static_cast<uint64_t>(bytes);
  for (; left >= 0x80; left >>= 7) header.push_back(static_cast<char>(left | 0x80));
  header.push_back(static_cast<char>(left));
  return grpc::Slice(header);
}

using Held = std::shared_ptr<const WeightSnapshot>;

// A view that keeps its snapshot alive; of one on a device, a copy.
grpc::Slice SliceOf(const Held& snapshot, int64_t at, int64_t bytes) {
  if (!snapshot->place().is_cpu()) {
    auto* copy = new std::vector<char>(static_cast<size_t>(bytes));
    snapshot->Read(at, bytes, copy->data());
    return grpc::Slice(
        copy->data(), copy->size(), [](void* c) { delete static_cast<std::vector<char>*>(c); },
        copy);
  }
  return grpc::Slice(
      const_cast<char*>(snapshot->bytes()) + at, static_cast<size_t>(bytes),
      [](void* held) { delete static_cast<Held*>(held); }, new Held(snapshot));
}

class Sender final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  Sender(Held snapshot, const grpc::Status& status) : snapshot_(std::move(snapshot)) {
    snapshot_ ? SendNext() : Finish(status);
  }

 private:
  void SendNext() {
    const int64_t bytes = std::min(kChunk, snapshot_->size() - at_);
    if (bytes == 0) return Finish(grpc::Status::OK);
    try {
      const grpc::Slice parts[] = {HeaderOf(bytes), SliceOf(snapshot_, at_, bytes)};
      message_ = grpc::ByteBuffer(parts, 2);
    } catch (const Error& e) {  // of the device
      return Finish({grpc::StatusCode::INTERNAL, e.what()});
    }
    at_ += bytes;
    StartWrite(&message_);
  }
  void OnWriteDone(bool ok) override { ok ? SendNext() : Finish(grpc::Status::CANCELLED); }
  void OnDone() override { delete this; }

  Held snapshot_;
  int64_t at_ = 0;
  grpc::ByteBuffer message_;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* SendSnapshot(Held snapshot,
                                                         const grpc::Status& status) {
  return new Sender(std::move(snapshot), status);
}

SnapshotReader::SnapshotReader(std::shared_ptr<grpc::Channel> channel, grpc::ClientContext& context,
                               const proto::ManifestRequest& request)
    : context_(context), stub_(std::move(channel)) {
  call_ = stub_.PrepareCall(&context_, kMethod, &queue_);
  call_->StartCall(nullptr);
  open_ = Done();
  const grpc::Slice bytes(request.SerializeAsString());
  if (open_) {
    call_->WriteLast(grpc::ByteBuffer(&bytes, 1), grpc::WriteOptions(), nullptr);
    open_ = Done();
  }
}

SnapshotReader::~SnapshotReader() {
  context_.TryCancel();
  queue_.Shutdown();
  void* tag;
  for (bool ok; queue_.Next(&tag, &ok);) {
  }
}

bool SnapshotReader::Done() {
  void* tag;
  bool ok = false;
  return queue_.Next(&tag, &ok) && ok;
}

bool SnapshotReader::NextMessage() {
  if (!open_) return false;
  grpc::ByteBuffer message;
  call_->Read(&message, nullptr);
  open_ = Done();
  slices_.clear();
  slice_ = at_ = 0;
  if (!open_) return false;
  Check<CommError>(message.Dump(&slices_).ok() && ParseHeader(),
                   "[weights] a message of the stream is no chunk of weights");
  return true;
}

bool SnapshotReader::ParseHeader() {
  uint64_t bytes = 0, length = 0;
  for (const grpc::Slice& s : slices_) bytes += s.size();
  for (int i = 0; i <= kMaxLengthBytes; ++i) {
    while (slice_ < slices_.size() && at_ == slices_[slice_].size()) ++slice_, at_ = 0;
    if (slice_ == slices_.size()) return false;
    const uint8_t byte = slices_[slice_].begin()[at_++];
    if (i == 0 && byte != kDataTag) return false;
    if (i == 0) continue;
    length |= static_cast<uint64_t>(byte & 0x7F) << (7 * (i - 1));
    if (byte < 0x80) return length + 1 + static_cast<uint64_t>(i) == bytes;
  }
  return false;
}

bool SnapshotReader::Read(char* to, int64_t n) {
  while (n > 0) {
    if (slice_ == slices_.size()) {
      if (!NextMessage()) return false;
      continue;
    }
    const grpc::Slice& from = slices_[slice_];
    const size_t take = std::min(from.size() - at_, static_cast<size_t>(n));
    std::memcpy(to, from.begin() + at_, take);
    to += take;
    n -= static_cast<int64_t>(take);
    at_ += take;
    if (at_ == from.size()) ++slice_, at_ = 0;
  }
  return true;
}

grpc::Status SnapshotReader::Finish() {
  while (NextMessage()) {
  }
  grpc::Status status;
  call_->Finish(&status, nullptr);
  Done();
  return status;
}

}  // namespace hone::rl
