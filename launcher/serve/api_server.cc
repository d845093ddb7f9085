#include "launcher/serve/api_server.h"

#include <httplib.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

namespace hone::launcher {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kLook = std::chrono::milliseconds(100);  // between looks whether a client is there

// Takes as long for a wrong key as for the right one.
bool SameSecret(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < b.size(); ++i) {
    difference |=
        static_cast<unsigned char>(i < a.size() ? a[i] : 0) ^ static_cast<unsigned char>(b[i]);
  }
  return difference == 0;
}

void SetError(httplib::Response& response, const ApiError& error) {
  response.status = error.status;
  response.set_content(error.ToJson(), "application/json");
}

// The library asks the system to keep five connections that are not accepted yet: a burst of
// clients would find the door shut.
class Server : public httplib::Server {
 public:
  void WidenBacklog() { ::listen(svr_sock_, SOMAXCONN); }
  bool stopping() const { return svr_sock_ == INVALID_SOCKET; }
};

}  // namespace

struct ApiServer::Impl {
  Impl(rl::LoadedModel& m, const ServeOptions& o)
      : model(m), options(o), engine(m, o.engine, o.max_waiting) {
    options.limits.model = o.model_name;
  }

  // One request between its admission and its last byte.
  struct Session {
    Session(ApiRequest r, const rl::LoadedModel& model, const std::string& name)
        : request(std::move(r)), response(request, model, name) {}
    ApiRequest request;
    ApiResponse response;
    std::shared_ptr<Channel> channel;
    Clock::time_point deadline;
  };

  void Route();
  bool Authorised(const httplib::Request& request, httplib::Response& response) const;
  void Complete(bool chat, const httplib::Request& request, httplib::Response& response);
  void AwaitFirst(const Session& session) const;
  bool Provide(Session& session, httplib::DataSink& sink);

  rl::LoadedModel& model;
  ServeOptions options;
  EngineThread engine;
  Server server;
  int port = 0;
  enum Phase { kIdle, kRunning, kEnded };
  std::atomic<int> phase = kIdle;
};

bool ApiServer::Impl::Authorised(const httplib::Request& request,
                                 httplib::Response& response) const {
  if (options.api_key.empty() || request.path == "/health") return true;
  if (SameSecret(request.get_header_value("Authorization"), "Bearer " + options.api_key)) {
    return true;
  }
  SetError(response, {401, "the API key is missing or wrong", "", "invalid_api_key"});
  return false;
}

// Until something is drawn, for the status goes out before anything else. ApiError when the engine
// failed instead.
void ApiServer::Impl::AwaitFirst(const Session& session) const {
  while (!session.channel->Wait(kLook)) {
    if (server.stopping() || Clock::now() > session.deadline) return;
  }
  const std::string error = session.channel->error();
  if (!error.empty()) throw ApiError{500, error, ""};
}

// Writes what is new; false once the client is gone, or to hang up: a whole response that the
// engine cannot finish must not look like one. Called again and again by the HTTP library.
bool ApiServer::Impl::Provide(Session& session, httplib::DataSink& sink) {
  ApiResponse& out = session.response;
  std::vector<Channel::Choice> news = session.channel->Take(kLook);
  out.SetFingerprint(session.channel->fingerprint());
  std::string events = out.Push(news);
  const std::string error = session.channel->error();
  if (!error.empty()) {
    if (!session.request.stream) return false;
    events = "data: " + ApiError{500, error, ""}.ToJson() + "\n\n";
    sink.write(events.data(), events.size());
    sink.done();
    return true;
  }
  if (!out.done() && Clock::now() > session.deadline) events += out.Cut();
  if (out.done()) events += session.request.stream ? out.End() : out.Whole();
  if (!sink.is_writable()) return false;
  if (!events.empty() && !sink.write(events.data(), events.size())) return false;
  if (out.done()) sink.done();
  return true;
}

void ApiServer::Impl::Complete(bool chat, const httplib::Request& request,
                               httplib::Response& response) {
  try {
    auto session = std::make_shared<Session>(
        ParseApiRequest(chat, request.body, model, options.limits), model, options.model_name);
    session->deadline = Clock::now() + std::chrono::seconds(options.timeout_seconds);
    session->channel = engine.Submit(session->request.generate, session->request.streams);
    if (!session->channel) {
      throw ApiError{
          429,
          fmt::format("{} sequences are under way already; try again later", options.max_waiting),
          ""};
    }
    AwaitFirst(*session);
    response.set_chunked_content_provider(
        session->request.stream ? "text/event-stream" : "application/json",
        [this, session](size_t, httplib::DataSink& sink) { return Provide(*session, sink); },
        [this, session](bool) { engine.Cancel(session->channel); });
  } catch (const ApiError& e) {
    SetError(response, e);
  }
}

void ApiServer::Impl::Route() {
  using httplib::Request;
  using httplib::Response;
  server.set_pre_routing_handler([this](const Request& request, Response& response) {
    return Authorised(request, response) ? httplib::Server::HandlerResponse::Unhandled
                                         : httplib::Server::HandlerResponse::Handled;
  });
  server.Post("/v1/chat/completions", [this](const Request& request, Response& response) {
    Complete(true, request, response);
  });
  server.Post("/v1/completions", [this](const Request& request, Response& response) {
    Complete(false, request, response);
  });
  server.Get("/v1/models", [this](const Request&, Response& response) {
    const nlohmann::ordered_json one = {{"id", options.model_name},
                                        {"object", "model"},
                                        {"created", 0},
                                        {"owned_by", "hone"},
                                        {"max_model_len", options.limits.context}};
    const nlohmann::ordered_json all = {{"object", "list"},
                                        {"data", nlohmann::ordered_json::array({one})}};
    response.set_content(all.dump(), "application/json");
  });
  server.Get("/health", [this](const Request&, Response& response) {
    const nlohmann::ordered_json state = {
        {"status", "ok"}, {"under_way", engine.under_way()}, {"tokens", engine.drawn()}};
    response.set_content(state.dump(), "application/json");
  });
  server.set_error_handler([](const Request& request, Response& response) {
    if (!response.body.empty()) return;
    SetError(response, {response.status,
                        fmt::format("{} {}: {}", request.method, request.path,
                                    response.status == 404   ? "there is no such endpoint"
                                    : response.status == 413 ? "the body is too large"
                                                             : "malformed request"),
                        ""});
  });
}

ApiServer::ApiServer(rl::LoadedModel& model, const ServeOptions& options)
    : impl_(std::make_unique<Impl>(model, options)) {
  Server& server = impl_->server;
  server.new_task_queue = [n = options.connections] {
    return new httplib::ThreadPool(static_cast<size_t>(n));
  };
  server.set_payload_max_length(static_cast<size_t>(options.max_body));
  server.set_read_timeout(options.io_seconds);
  server.set_write_timeout(options.io_seconds);
  server.set_keep_alive_max_count(1000);
  server.set_tcp_nodelay(true);
  impl_->Route();
  impl_->port = options.port;
  if (options.port == 0) {
    impl_->port = server.bind_to_any_port(options.host);
  } else if (!server.bind_to_port(options.host, options.port)) {
    impl_->port = -1;
  }
  Check<IoError>(impl_->port > 0, "[serve] cannot listen on {}:{}", options.host, options.port);
  server.WidenBacklog();
}

ApiServer::~ApiServer() = default;

int ApiServer::port() const { return impl_->port; }

void ApiServer::Run() {
  int idle = Impl::kIdle;
  if (!impl_->phase.compare_exchange_strong(idle, Impl::kRunning)) return;  // stopped already
  impl_->server.listen_after_bind();
  impl_->phase = Impl::kEnded;
}

// The library forgets a request to stop that comes before it listens.
void ApiServer::Stop() {
  int idle = Impl::kIdle;
  if (impl_->phase.compare_exchange_strong(idle, Impl::kEnded)) return;
  while (impl_->phase == Impl::kRunning && !impl_->server.is_running()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (impl_->phase == Impl::kRunning) impl_->server.stop();
}

bool ApiServer::Replace(std::function<void()> replace, const std::string& fingerprint) {
  return impl_->engine.Replace(std::move(replace), fingerprint);
}
int64_t ApiServer::under_way() const { return impl_->engine.under_way(); }
int64_t ApiServer::cancelled() const { return impl_->engine.cancelled(); }

}  // namespace hone::launcher
