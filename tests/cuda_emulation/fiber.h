// A call stack of its own that runs until it gives way. All fibers are switched by one host thread
// at a time.
#pragma once

#include <cstddef>
#include <functional>

namespace hone::cuda_emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets what it was doing; the next `Resume` begins `body`, which must not throw and whose last
  // act is `Finish`.
  void Start(void (*body)(void*), void* argument);
  // From outside: runs the fiber until it yields or finishes.
  void Resume();
  // From inside: goes back to where `Resume` was called.
  void Yield();
  [[noreturn]] void Finish();

 private:
  static void Entry();

  char* stack_;          // lowest byte
  void* own_ = nullptr;  // stack pointers while not running
  void* caller_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  const void* caller_bottom_ = nullptr;
  size_t caller_size_ = 0;
};

}  // namespace hone::cuda_emulation
