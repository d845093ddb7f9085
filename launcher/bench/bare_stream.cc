#include "launcher/bench/bare_stream.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <memory>

#include "launcher/bench/bench.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"

namespace hone::launcher {
namespace {

constexpr int64_t kChunk = 4 << 20;  // as large as those of weights
constexpr int kMaxMessage = 64 << 20;

// Streams as many bytes as the request's version says, all zero.
class Source final : public rl::proto::WeightServer::Service {
  grpc::Status Stream(grpc::ServerContext*, const rl::proto::ManifestRequest* request,
                      grpc::ServerWriter<rl::proto::WeightChunk>* writer) override {
    rl::proto::WeightChunk chunk;
    for (int64_t left = request->version(); left > 0; left -= kChunk) {
      chunk.mutable_data()->resize(static_cast<size_t>(std::min(kChunk, left)));
      if (!writer->Write(chunk)) return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
  }
};

}  // namespace

double SecondsOfBareStream(int64_t bytes) {
  Source source;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&source);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  Check<CommError>(server != nullptr, "[bench] cannot listen on loopback");
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessage);
  const auto stub = rl::proto::WeightServer::NewStub(grpc::CreateCustomChannel(
      "127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), arguments));
  int64_t received = 0;
  const double seconds = SecondsOf([&] {
    grpc::ClientContext context;
    rl::proto::ManifestRequest request;
    request.set_version(bytes);
    const auto reader = stub->Stream(&context, request);
    rl::proto::WeightChunk chunk;
    while (reader->Read(&chunk)) received += static_cast<int64_t>(chunk.data().size());
    reader->Finish();
  });
  Check<CommError>(received == bytes, "[bench] {} of {} bytes came", received, bytes);
  return seconds;
}

}  // namespace hone::launcher
