// The stream of a weight version (WeightServer.Stream of rollout.proto) without protobuf's copies
// of its bytes: sent from the snapshot where it lies, and received to where the caller wants them.
// On the wire it is the same stream. For the .cc files of this folder only: it draws in gRPC.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <vector>

#include "rl/rollout/weight_snapshot.h"
#include "rollout.pb.h"

namespace hone::rl {

// The server's side of a call: streams `snapshot`, which lives until its last byte was sent; or,
// where there is none, ends with `status`. Owned by the call.
grpc::ServerWriteReactor<grpc::ByteBuffer>* SendSnapshot(
    std::shared_ptr<const WeightSnapshot> snapshot, const grpc::Status& status);

// The client's side. Blocks; the context's deadline ends every wait. Not thread safe.
class SnapshotReader {
 public:
  // `context` outlives the reader.
  SnapshotReader(std::shared_ptr<grpc::Channel> channel, grpc::ClientContext& context,
                 const proto::ManifestRequest& request);
  ~SnapshotReader();
  SnapshotReader(const SnapshotReader&) = delete;
  SnapshotReader& operator=(const SnapshotReader&) = delete;

  // The next n bytes; false when the stream ended before them.
  bool Read(char* to, int64_t n);
  // Once, after the last Read: what the call ended with. Reads on to its end.
  grpc::Status Finish();

 private:
  bool Done();         // waits for the operation under way; false: it failed
  bool NextMessage();  // false: there is none
  bool ParseHeader();  // of the message in slices_: a WeightChunk with nothing but data

  grpc::ClientContext& context_;
  grpc::GenericStub stub_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  bool open_ = false;  // more may come
  std::vector<grpc::Slice> slices_;
  size_t slice_ = 0, at_ = 0;  // where in them the next byte lies
};

}  // namespace hone::rl
