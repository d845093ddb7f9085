// A fixed set of threads for data-parallel loops inside one rank.
//
// Work must not depend on how it is split: each index writes its own output, so that one thread and
// many give the same bits. Idle threads sleep.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace hone::runtime {

class ThreadPool {
 public:
  // `threads` counts the caller: 1 starts no thread.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  // Calls fn(begin, end) over disjoint ranges that cover [0, n), none shorter than `grain` except the
  // last; returns when all are done; rethrows the first exception. Not reentrant: a nested call runs
  // serially on the calling thread.
  void ParallelFor(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& fn);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::runtime

namespace hone {
using runtime::ThreadPool;
}  // namespace hone
