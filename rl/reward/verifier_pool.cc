// One thread owns all helpers: it starts them, hands each a request at a time, and waits in poll()
// for replies, deaths, the nearest deadline, and new requests (an eventfd).
#include "rl/reward/verifier_pool.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <thread>

#include "rl/reward/helper_process.h"
#include "rl/reward/turn_environment.h"
#include "rl/reward/verifier_wire.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

using Clock = std::chrono::steady_clock;

RewardReply Failure(Outcome outcome, std::string detail) {
  RewardReply reply;
  reply.outcome = outcome;
  reply.detail = std::move(detail);
  return reply;
}

struct Helper {
  HelperProcess process;
  bool busy = false;
  uint64_t id = 0;  // of the request it works on
  Clock::time_point deadline;
  std::string outgoing, incoming;
};

}  // namespace

struct VerifierPool::Impl {
  explicit Impl(Options o)
      : options(std::move(o)),
        wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        helpers(static_cast<size_t>(options.helpers)) {
    Check<IoError>(wake >= 0, "[verifier] no eventfd: {}", strerror(errno));
  }
  ~Impl() { close(wake); }

  struct Request {
    uint64_t id;
    std::string frame;
  };

  void Run(std::promise<void> started) {
    try {
      for (Helper& h : helpers) h.process.Start(options.program);
      started.set_value();
    } catch (const Error&) {
      helpers.clear();
      started.set_exception(std::current_exception());
      return;
    }
    while (Assign()) {
      std::vector<pollfd> watched = Watched();
      if (poll(watched.data(), watched.size(), MillisecondsToDeadline()) < 0) continue;  // EINTR
      uint64_t count;
      if (watched[0].revents != 0 && read(wake, &count, sizeof count) < 0) continue;
      for (Helper& h : helpers) Attend(h);
    }
    helpers.clear();  // here: the kernel ties their lives to this thread
  }

  // Gives waiting requests to free helpers; false once the pool ends.
  bool Assign() {
    for (Helper& h : helpers) {
      if (h.busy) continue;
      {
        std::lock_guard lock(mutex);
        if (stop) return false;
        if (queue.empty()) break;
        h.id = queue.front().id;
        h.outgoing = std::move(queue.front().frame);
        queue.pop_front();
      }
      h.busy = true;
      h.deadline = Clock::now() + options.deadline;
      try {
        if (!h.process.running()) h.process.Start(options.program);
      } catch (const IoError& e) {
        Finish(h, Failure(Outcome::kCrashed, e.what()));
        continue;
      }
      h.process.Write(&h.outgoing);  // that it is gone shows in poll()
    }
    std::lock_guard lock(mutex);
    return !stop;
  }

  std::vector<pollfd> Watched() const {
    std::vector<pollfd> watched = {{wake, POLLIN, 0}};
    for (const Helper& h : helpers) {
      if (!h.process.running()) continue;
      short events = h.outgoing.empty() ? POLLIN : POLLIN | POLLOUT;
      watched.push_back({h.process.fd(), events, 0});
    }
    return watched;
  }

  int MillisecondsToDeadline() const {
    auto nearest = Clock::time_point::max();
    for (const Helper& h : helpers) {
      if (h.busy) nearest = std::min(nearest, h.deadline);
    }
    if (nearest == Clock::time_point::max()) return -1;
    auto left = std::chrono::ceil<std::chrono::milliseconds>(nearest - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, 60'000));
  }

  void Attend(Helper& h) {
    if (!h.process.running()) return;
    bool alive = h.process.Read(&h.incoming) && h.process.Write(&h.outgoing);
    try {
      std::string payload;
      if (TakeFrame(&h.incoming, &payload)) {
        RewardReply reply = DecodeReply(payload);
        Check<DataError>(h.busy && h.incoming.empty(), "[verifier] a reply that nobody asked for");
        Finish(h, std::move(reply));
      }
    } catch (const DataError& e) {
      return Replace(h, Outcome::kCrashed, e.what());
    }
    if (!alive) return Replace(h, Outcome::kCrashed, "the verifier's process died");
    if (h.busy && Clock::now() >= h.deadline) {
      Replace(h, Outcome::kTimeout,
              fmt::format("no verdict after {} ms", options.deadline.count()));
    }
  }

  // Ends a helper; the next request that comes to it starts another.
  void Replace(Helper& h, Outcome outcome, std::string why) {
    h.process.Kill();
    h.incoming.clear();
    if (h.busy) Finish(h, Failure(outcome, std::move(why)));
  }

  void Finish(Helper& h, RewardReply reply) {
    h.busy = false;
    h.outgoing.clear();
    std::lock_guard lock(mutex);
    done.push_back({h.id, std::move(reply)});
    scored.notify_all();
  }

  void Wake() {
    uint64_t one = 1;
    // Fails only when the counter is full, and then the thread is about to wake anyway.
    [[maybe_unused]] ssize_t n = write(wake, &one, sizeof one);
  }

  const Options options;
  const int wake;
  std::vector<Helper> helpers;  // the thread's alone
  mutable std::mutex mutex;
  std::condition_variable scored;
  std::deque<Request> queue;
  std::vector<Scored> done;
  int64_t pending = 0;
  bool stop = false;
  std::thread thread;
};

VerifierPool::VerifierPool(Options options) {
  Check<ConfigError>(options.helpers >= 1, "[verifier] {} helpers; at least one is needed",
                     options.helpers);
  Check<ConfigError>(options.deadline.count() > 0, "[verifier] a deadline of {} ms",
                     options.deadline.count());
  impl_ = std::make_unique<Impl>(std::move(options));
  std::promise<void> started;
  std::future<void> running = started.get_future();
  impl_->thread = std::thread(
      [impl = impl_.get(), p = std::move(started)]() mutable { impl->Run(std::move(p)); });
  try {
    running.get();
  } catch (...) {
    impl_->thread.join();
    throw;
  }
}

VerifierPool::~VerifierPool() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->Wake();
  impl_->thread.join();
}

void VerifierPool::Submit(uint64_t id, const RewardRequest& request) {
  std::string payload = EncodeRequest(request);
  std::lock_guard lock(impl_->mutex);
  ++impl_->pending;
  if (payload.size() > kMaxFrameBytes) {
    impl_->done.push_back({id, Failure(Outcome::kRefused, "the completion is too long to judge")});
    impl_->scored.notify_all();
    return;
  }
  impl_->queue.push_back({id, Frame(payload)});
  impl_->Wake();
}

std::vector<VerifierPool::Scored> VerifierPool::Poll(std::chrono::milliseconds wait) {
  std::unique_lock lock(impl_->mutex);
  impl_->scored.wait_for(lock, wait, [&] { return !impl_->done.empty(); });
  impl_->pending -= static_cast<int64_t>(impl_->done.size());
  return std::exchange(impl_->done, {});
}

int64_t VerifierPool::pending() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->pending;
}

namespace {

// False at end of file.
bool ReadSome(std::string* buffer) {
  char chunk[1 << 16];
  ssize_t n;
  do {
    n = read(STDIN_FILENO, chunk, sizeof chunk);
  } while (n < 0 && errno == EINTR);
  if (n > 0) buffer->append(chunk, static_cast<size_t>(n));
  return n > 0;
}

bool WriteAll(const std::string& bytes) {
  for (size_t sent = 0; sent < bytes.size();) {
    ssize_t n = write(STDOUT_FILENO, bytes.data() + sent, bytes.size() - sent);
    if (n < 0 && errno != EINTR) return false;
    if (n > 0) sent += static_cast<size_t>(n);
  }
  return true;
}

// It lives exactly as long as its pool: killed with the pool's thread however that ends, and deaf
// to the Ctrl-C that lets the parent finish what it has begun.
void TieToParent() {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGINT, SIG_IGN);
  signal(SIGTERM, SIG_IGN);
  rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
}

}  // namespace

int VerifyHelperLoop(const std::function<RewardReply(const RewardRequest&)>& score) {
  TieToParent();
  std::string buffer, payload;
  while (ReadSome(&buffer)) {
    try {
      while (TakeFrame(&buffer, &payload)) {
        RewardRequest request = DecodeRequest(payload);
        RewardReply reply;
        try {
          reply = score(request);
        } catch (const Error& e) {
          reply = Failure(Outcome::kRefused, e.what());
        }
        if (!WriteAll(Frame(EncodeReply(reply)))) return 0;
      }
    } catch (const DataError& e) {
      fmt::print(stderr, "hone verify-helper: {}\n", e.what());
      return 1;
    }
  }
  return 0;
}

int VerifyHelperMain() {
  return VerifyHelperLoop([](const RewardRequest& request) {
    if (request.environment.empty()) return ScoreCompletion(request);
    return RewardReply{Outcome::kCorrect, {}, AnswerCall(request.environment, request.completion)};
  });
}

}  // namespace hone::rl
