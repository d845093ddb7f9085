#include "runtime/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hone::runtime {
namespace {

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

// One loop at a time. Ranges are claimed from a counter, so a slow thread takes fewer.
struct ThreadPool::Impl {
  explicit Impl(int threads) : count(threads) {
    for (int i = 1; i < threads; ++i) workers.emplace_back([this] { Serve(); });
  }

  ~Impl() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    for (auto& worker : workers) worker.join();
  }

  // A kernel's loops follow each other within microseconds, and a sleeping thread takes longer than
  // that to wake: whoever waits looks again for a moment before it sleeps, at a pace that leaves the
  // core to its other hardware thread.
  template <class Condition>
  static void Spin(Condition&& holds) {
    auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
    while (!holds() && std::chrono::steady_clock::now() < until) Pause();
  }

  void Serve() {
    uint64_t seen = 0;
    for (;;) {
      Spin([&] { return generation != seen; });
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stopping || generation != seen; });
        if (stopping) return;
        seen = generation;
      }
      Drain();
      std::lock_guard lock(mutex);
      if (--active == 0) done.notify_one();
    }
  }

  void Drain() {
    inside = true;
    for (;;) {
      int64_t begin = next.fetch_add(step);
      if (begin >= n) break;
      try {
        (*fn)(begin, std::min(begin + step, n));
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next = n;
      }
    }
    inside = false;
  }

  static thread_local bool inside;

  const int count;
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake, done;
  bool stopping = false;
  std::atomic<uint64_t> generation = 0;
  std::atomic<int> active = 0;

  const std::function<void(int64_t, int64_t)>* fn = nullptr;
  int64_t n = 0, step = 1;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
};

thread_local bool ThreadPool::Impl::inside = false;

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>(std::max(1, threads))) {}
ThreadPool::~ThreadPool() = default;

int ThreadPool::threads() const { return impl_->count; }

void ThreadPool::ParallelFor(int64_t n, int64_t grain,
                             const std::function<void(int64_t, int64_t)>& fn) {
  if (n <= 0) return;
  grain = std::max<int64_t>(1, grain);
  if (impl_->count == 1 || n <= grain || Impl::inside) {
    fn(0, n);
    return;
  }
  {
    std::lock_guard lock(impl_->mutex);
    impl_->fn = &fn;
    impl_->n = n;
    impl_->step = std::max(grain, (n + impl_->count * 4 - 1) / (impl_->count * 4));
    impl_->next = 0;
    impl_->error = nullptr;
    impl_->active = impl_->count - 1;
    ++impl_->generation;
  }
  impl_->wake.notify_all();
  impl_->Drain();
  Impl::Spin([&] { return impl_->active == 0; });
  std::unique_lock lock(impl_->mutex);
  impl_->done.wait(lock, [&] { return impl_->active == 0; });
  if (impl_->error) std::rethrow_exception(impl_->error);
}

}  // namespace hone::runtime
