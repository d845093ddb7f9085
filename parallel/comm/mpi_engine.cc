#include "parallel/comm/mpi_engine.h"

// The C interface only.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <deque>
#include <future>
#include <thread>
#include <utility>

#include "parallel/comm/list_text.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int64_t kMaxMessage = int64_t{1} << 30;  // MPI counts are ints
constexpr microseconds kSpin(60);                  // after an event, while someone waits
constexpr microseconds kShortestSleep(50), kLongestSleep(1000);

std::string MpiErrorText(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, length);
}

void CheckMpi(int code, const std::string& place) {
  Check<CommError>(code == MPI_SUCCESS, "{}: {}", place, MpiErrorText(code));
}

// An operation, with the requests of its current round.
struct Active {
  std::shared_ptr<MpiOperation> operation;
  int round = 0;
  std::vector<MPI_Request> requests;
  std::vector<Transfer> pieces;  // one a request
  int pending = 0;
};

}  // namespace

// Payload has the 13 bits that tags promise as soon as six are left for groups, which are made once
// in a run.
TagBits ShareTagBits(int upper_bound) {
  const int bits =
      std::min(30, static_cast<int>(std::bit_width(static_cast<uint32_t>(upper_bound) + 1)) - 1);
  const int group = std::clamp(bits - 13, 6, 14);
  return {group, bits - group};
}

struct MpiEngine::Thread {
  std::thread thread;
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::shared_ptr<MpiOperation>> queue;
  bool kicked = false;  // someone began to wait
  bool stop = false, abandon = false;
  std::atomic<int> waiters{0};

  // The communication thread's own.
  MPI_Comm comm[2] = {MPI_COMM_NULL, MPI_COMM_NULL};  // by Channel
  std::vector<Active> active;
  Clock::time_point last_event, spin_until;
  std::chrono::milliseconds patience{};  // of the ending

  void Initialize(MpiEngine& engine);
  void Run();
  bool TakeRequests();
  bool Progress();
  bool Advance(Active& a);
  void CollectFinished(Active& a);
  void StartRound(Active& a);
  void PostTransfer(Active& a, const Transfer& transfer);
  void End(Active& a, std::exception_ptr error);
  void Rest();
  void Leave();
};

void MpiEngine::Thread::Initialize(MpiEngine& engine) {
  prctl(PR_SET_TIMERSLACK, 1000UL);  // ns: short sleeps shall be short
  int provided = 0;
  CheckMpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "[mpi] init");
  Check<CommError>(provided >= MPI_THREAD_FUNNELED,
                   "[mpi] init: this MPI cannot be called from a thread");
  for (MPI_Comm& c : comm) {
    CheckMpi(MPI_Comm_dup(MPI_COMM_WORLD, &c), "[mpi] init");
    CheckMpi(MPI_Comm_set_errhandler(c, MPI_ERRORS_RETURN), "[mpi] init");
  }
  CheckMpi(MPI_Comm_rank(comm[0], &engine.rank_), "[mpi] init");
  CheckMpi(MPI_Comm_size(comm[0], &engine.size_), "[mpi] init");
  int* upper_bound = nullptr;
  int found = 0;
  CheckMpi(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &upper_bound, &found), "[mpi] init");
  engine.bits_ = ShareTagBits(found != 0 ? *upper_bound : 32767);  // what the standard promises
}

void MpiEngine::Thread::Run() {
  last_event = spin_until = Clock::now();
  for (;;) {
    bool requests = TakeRequests();
    bool progress = Progress();
    if (requests || progress) last_event = Clock::now();
    {
      std::lock_guard lock(mutex);
      if (abandon || (stop && queue.empty() && active.empty())) break;
      if (stop && Clock::now() - last_event > patience) {
        abandon = true;
        break;
      }
    }
    if (!progress) Rest();
  }
  Leave();
}

bool MpiEngine::Thread::TakeRequests() {
  std::deque<std::shared_ptr<MpiOperation>> taken;
  {
    std::lock_guard lock(mutex);
    taken.swap(queue);
    if (kicked) spin_until = std::max(spin_until, Clock::now() + kSpin);
    kicked = false;
  }
  for (auto& operation : taken) {
    active.push_back({.operation = operation, .requests = {}, .pieces = {}});
    Active& a = active.back();
    try {
      StartRound(a);
    } catch (...) {
      End(a, std::current_exception());
    }
  }
  return !taken.empty();
}

bool MpiEngine::Thread::Progress() {
  bool any = false;
  for (Active& a : active) {
    try {
      any = Advance(a) || any;
    } catch (...) {
      End(a, std::current_exception());
      any = true;
    }
  }
  // A failed operation stays while MPI may still write into its buffers.
  std::erase_if(active, [](const Active& a) {
    if (!a.operation->done || a.pending > 0) return false;
    a.operation->next_round = nullptr;
    return true;
  });
  return any;
}

// True when something arrived or left.
bool MpiEngine::Thread::Advance(Active& a) {
  if (a.pending > 0) {
    int before = a.pending;
    CollectFinished(a);
    if (a.pending == before) return false;
  }
  while (a.pending == 0 && !a.operation->done) {
    ++a.round;
    StartRound(a);
  }
  return true;
}

void MpiEngine::Thread::CollectFinished(Active& a) {
  int count = 0;
  int n = static_cast<int>(a.requests.size());
  std::vector<int> indices(n);
  std::vector<MPI_Status> statuses(n);
  int code = MPI_Testsome(n, a.requests.data(), &count, indices.data(), statuses.data());
  if (code != MPI_ERR_IN_STATUS) CheckMpi(code, a.operation->place);
  if (count == MPI_UNDEFINED) count = 0;
  a.pending -= count;
  std::lock_guard lock(a.operation->mutex);
  for (int i = 0; i < count; ++i) {
    const Transfer& piece = a.pieces[indices[i]];
    std::string where = fmt::format("{}: {} rank {}", a.operation->place,
                                    piece.kind == Transfer::Kind::kSend ? "to" : "from",
                                    a.operation->group_rank(piece.peer));
    if (code == MPI_ERR_IN_STATUS) CheckMpi(statuses[i].MPI_ERROR, where);
    if (piece.kind == Transfer::Kind::kSend) continue;
    int bytes = 0;
    CheckMpi(MPI_Get_count(&statuses[i], MPI_BYTE, &bytes), where);
    Check<CommError>(bytes == piece.bytes, "{}: the message has {} bytes, the buffer {}", where,
                     bytes, piece.bytes);
    auto& awaited = a.operation->awaited;
    auto it = std::find(awaited.begin(), awaited.end(), piece.peer);
    if (it != awaited.end()) awaited.erase(it);
  }
}

void MpiEngine::Thread::StartRound(Active& a) {
  MpiOperation& operation = *a.operation;
  std::vector<Transfer> transfers;
  if (!operation.next_round(a.round, &transfers)) return End(a, nullptr);
  a.requests.clear();
  a.pieces.clear();
  int64_t bytes = 0;
  {
    std::lock_guard lock(operation.mutex);
    operation.awaited.clear();
  }
  // Receives first: a message that finds its buffer is not copied twice.
  for (auto kind : {Transfer::Kind::kReceive, Transfer::Kind::kSend}) {
    for (const Transfer& transfer : transfers) {
      if (transfer.kind == kind) PostTransfer(a, transfer);
      if (transfer.kind == kind) bytes += transfer.bytes;
    }
  }
  // At 1 byte a nanosecond the round could end before a sleep would.
  spin_until = std::max(spin_until, Clock::now() + kSpin + std::chrono::nanoseconds(bytes));
}

void MpiEngine::Thread::PostTransfer(Active& a, const Transfer& transfer) {
  MPI_Comm c = comm[static_cast<int>(a.operation->channel)];
  int tag = a.operation->tag(a.round);
  int64_t begin = 0;
  do {
    Transfer piece = transfer;
    piece.data = static_cast<char*>(transfer.data) + begin;
    piece.bytes = std::min(kMaxMessage, transfer.bytes - begin);
    int count = static_cast<int>(piece.bytes);
    MPI_Request request = MPI_REQUEST_NULL;
    if (piece.kind == Transfer::Kind::kSend) {
      CheckMpi(MPI_Isend(piece.data, count, MPI_BYTE, piece.peer, tag, c, &request),
               a.operation->place);
    } else {
      CheckMpi(MPI_Irecv(piece.data, count, MPI_BYTE, piece.peer, tag, c, &request),
               a.operation->place);
      std::lock_guard lock(a.operation->mutex);
      a.operation->awaited.push_back(piece.peer);
    }
    a.requests.push_back(request);
    a.pieces.push_back(piece);
    ++a.pending;
    begin += kMaxMessage;
  } while (begin < transfer.bytes);
}

void MpiEngine::Thread::End(Active& a, std::exception_ptr error) {
  MpiOperation& operation = *a.operation;
  std::lock_guard lock(operation.mutex);
  operation.error = error;
  operation.done = true;
  if (a.pending == 0) operation.next_round = nullptr;  // and with it the tensors
  operation.ended.notify_all();
}

void MpiEngine::Thread::Rest() {
  Clock::time_point now = Clock::now();
  if (waiters > 0 && now < spin_until) {
    sched_yield();
    return;
  }
  std::unique_lock lock(mutex);
  auto called = [&] { return !queue.empty() || kicked || stop; };
  if (active.empty()) {
    wake.wait(lock, called);
    return;
  }
  // The longer nothing came, the longer the sleep: it adds at most an eighth to any wait.
  auto idle = std::chrono::duration_cast<microseconds>(now - last_event);
  auto pause = std::clamp(idle / 8, kShortestSleep, kLongestSleep);
  if (stop) {
    lock.unlock();
    std::this_thread::sleep_for(pause);
  } else {
    wake.wait_for(lock, pause, called);
  }
}

void MpiEngine::Thread::Leave() {
  MPI_Request barrier = MPI_REQUEST_NULL;
  Clock::time_point begin = Clock::now();
  if (!abandon) MPI_Ibarrier(comm[0], &barrier);
  for (int arrived = 0; !abandon && arrived == 0;) {
    if (MPI_Test(&barrier, &arrived, MPI_STATUS_IGNORE) != MPI_SUCCESS) abandon = true;
    if (Clock::now() - begin > patience) abandon = true;
    if (arrived == 0) std::this_thread::sleep_for(kLongestSleep);
  }
  if (abandon) {
    // MPI may still touch the buffers of what is under way: they stay until the process ends.
    static std::vector<Active>* kept = nullptr;
    kept = new std::vector<Active>(std::move(active));
    for (Active& a : *kept) {
      End(a, std::make_exception_ptr(
                 CommError(a.operation->place + ": abandoned, its group has ended")));
    }
    return;
  }
  for (MPI_Comm& c : comm) MPI_Comm_free(&c);
  MPI_Finalize();
}

MpiEngine::MpiEngine(GroupOptions options)
    : options_(options), thread_(std::make_unique<Thread>()) {
  thread_->patience = options.deadline;
  std::promise<void> ready;
  thread_->thread = std::thread([&, thread = thread_.get()] {
    try {
      thread->Initialize(*this);
    } catch (...) {
      ready.set_exception(std::current_exception());
      return;
    }
    ready.set_value();
    thread->Run();
  });
  try {
    ready.get_future().get();
  } catch (...) {
    thread_->thread.join();
    throw;
  }
}

MpiEngine::~MpiEngine() {
  {
    std::lock_guard lock(thread_->mutex);
    thread_->stop = true;
    thread_->abandon = std::uncaught_exceptions() > 0;
  }
  thread_->wake.notify_all();
  thread_->thread.join();
}

void MpiEngine::Submit(std::shared_ptr<MpiOperation> operation) {
  {
    std::lock_guard lock(thread_->mutex);
    thread_->queue.push_back(std::move(operation));
  }
  thread_->wake.notify_one();
}

void MpiEngine::Wait(MpiOperation& operation) {
  std::unique_lock lock(operation.mutex);
  if (!operation.done) {
    lock.unlock();
    ++thread_->waiters;
    {
      std::lock_guard kick(thread_->mutex);
      thread_->kicked = true;
    }
    thread_->wake.notify_one();
    lock.lock();
    operation.ended.wait_for(lock, options_.deadline, [&] { return operation.done; });
    --thread_->waiters;
  }
  if (operation.done) {
    if (operation.error) std::rethrow_exception(operation.error);
    return;
  }
  std::vector<int> missing;
  for (int peer : operation.awaited) missing.push_back(operation.group_rank(peer));
  std::sort(missing.begin(), missing.end());
  missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
  throw TimeoutError(fmt::format("{}: waited {:.1f} s for rank {}", operation.place,
                                 std::chrono::duration<double>(options_.deadline).count(),
                                 missing.empty() ? "(all arrived)" : ListText(missing)));
}

}  // namespace hone::parallel
