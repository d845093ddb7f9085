// Between the messages of rollout.proto and the types of sample.h; channels and credentials. For
// the .cc files of this folder only: it draws in gRPC.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "rl/reward/turn_environment.h"
#include "rl/rollout/sample.h"
#include "rollout.pb.h"
#include "runtime/device.h"

namespace hone::rl {

inline constexpr int kProtocolVersion = 5;

proto::Sample ToProto(const Sample& sample);
Sample FromProto(const proto::Sample& message);
proto::Environment ToProto(const EnvironmentConfig& environment);
EnvironmentConfig FromProto(const proto::Environment& message);

struct Security {
  std::string secret, certificate, key, ca;  // the last three are files, or PEM; empty: no TLS
  bool tls() const { return !certificate.empty(); }
  // Where one text is all three: the run's own certificate (own_certificate.h).
  bool own() const { return tls() && certificate == key && key == ca; }
  bool operator==(const Security&) const = default;
};
// Throws ConfigError when `listen` is beyond loopback without TLS.
std::shared_ptr<grpc::ServerCredentials> ServerCredentials(const Security& security,
                                                           const std::string& listen);
std::shared_ptr<grpc::Channel> Connect(const std::string& address, const Security& security);
// A client's call: secret attached, deadline set.
void Prepare(grpc::ClientContext& context, const Security& security,
             std::chrono::milliseconds deadline);
// The server's check of the secret, in time that does not depend on where it differs.
grpc::Status CheckSecret(const grpc::ServerContextBase& context, const std::string& secret);

// What decides the bits of a result: compiler and instruction set, or the kind of GPU.
std::string BuildId(Device device = {});
// "host" of HOST:PORT, and the address a client reaches a listener at.
std::string ReachableAddress(const std::string& listen, int port);
// A client's: `given`; its secret, unless that has one, is the file's first line, and without files
// for TLS the run's own certificate may stand behind it.
Security SecurityOf(const std::string& secret_file, Security given);
// Of a file that holds an address or a secret: its first line, "" while it is not there.
std::string FirstLine(const std::string& path);

}  // namespace hone::rl
