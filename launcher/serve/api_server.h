// The HTTP side of `hone serve`: one thread a connection, all of them in front of one engine.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "launcher/serve/api.h"

namespace hone::launcher {

struct ServeOptions {
  std::string host = "127.0.0.1";
  int port = 8000;         // 0: any free one
  std::string model_name;  // as clients see it
  std::string api_key;     // "": none is asked for
  rl::EngineConfig engine;
  ApiLimits limits;
  int64_t max_waiting = 1024;   // sequences under way or waiting; more are refused with 429
  int connections = 256;        // served at once
  int64_t max_body = 16 << 20;  // bytes of a request
  int timeout_seconds = 600;    // then a request ends with what it has, as if at its length
  int io_seconds = 30;          // a client that neither sends nor takes for so long is let go
};

class ApiServer {
 public:
  // Listens when this returns; IoError when it cannot. `model` outlives this.
  ApiServer(rl::LoadedModel& model, const ServeOptions& options);
  ~ApiServer();
  int port() const;
  void Run();   // serves until Stop
  void Stop();  // from any thread
  // New weights between requests, as EngineThread::Replace.
  bool Replace(std::function<void()> replace, const std::string& fingerprint);
  int64_t under_way() const;  // sequences
  int64_t cancelled() const;  // sequences whose client left before their end

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::launcher
