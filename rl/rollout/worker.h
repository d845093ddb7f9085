// A rollout worker: registers with a coordinator, then leases, samples, scores and submits until
// told to end.
#pragma once

#include <atomic>
#include <string>

#include "runtime/device.h"

namespace hone::rl {

struct WorkerOptions {
  std::string coordinator;  // HOST:PORT
  // Or a file that holds it, read again at each attempt to connect: a restarted run has another
  // port.
  std::string coordinator_file;
  std::string secret;  // or read from secret_file
  std::string secret_file;
  std::string tls_certificate, tls_key, tls_ca;
  std::string name;  // for logs; "" = host:pid
  int threads = 1;
  Device device;  // of the model, its keys and values
  int verifier_helpers = 1;
  // Seconds without a coordinator before giving up (it may be restarting).
  int patience_seconds = 60;
};

// Returns the exit code: 0 when the coordinator ended the run, 1 with a message when refused.
// `stop` asks it to give its leases back and leave. Start verifier helpers (VerifierPool) before
// calling anything of gRPC.
int RunWorker(const WorkerOptions& options, const std::atomic<bool>& stop);

}  // namespace hone::rl
