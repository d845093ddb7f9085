#include "tests/cuda_emulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

// Leaks are not looked for: MPI, gRPC and HDF5 keep memory to the end.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

// Saves the registers that a call keeps on the current stack, its address in *from, and goes on
// from `to`. System V calling convention of x86-64.
extern "C" void hone_switch_stack(void** from, void* to);
asm(R"(
  .text
  .globl hone_switch_stack
  .type hone_switch_stack, @function
hone_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size hone_switch_stack, .-hone_switch_stack
)");

namespace hone::cuda_emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // touched pages only cost memory
constexpr size_t kGuardBytes = 4096;

Fiber* starting = nullptr;  // handed to Entry, which has no arguments

}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuardBytes, PROT_NONE);
  stack_ = static_cast<char*>(memory) + kGuardBytes;
}

Fiber::~Fiber() { munmap(stack_ - kGuardBytes, kStackBytes + kGuardBytes); }

void Fiber::Start(void (*body)(void*), void* argument) {
  ASAN_UNPOISON_MEMORY_REGION(stack_, kStackBytes);
  body_ = body;
  argument_ = argument;
  fake_stack_ = nullptr;
  // What hone_switch_stack pops: six registers, then Entry as the address to return to. On entry of
  // a function the stack pointer is 8 below a multiple of 16.
  auto** top = reinterpret_cast<void**>(stack_ + kStackBytes - 56);
  top[0] = nullptr;
  top[-1] = reinterpret_cast<void*>(&Fiber::Entry);
  for (int i = 2; i <= 7; ++i) top[-i] = nullptr;
  own_ = top - 7;
}

void Fiber::Entry() {
  Fiber* self = starting;
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_bottom_, &self->caller_size_);
  self->body_(self->argument_);
  std::abort();  // body ends with Finish
}

void Fiber::Resume() {
  starting = this;
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
  hone_switch_stack(&caller_, own_);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void Fiber::Yield() {
  __sanitizer_start_switch_fiber(&fake_stack_, caller_bottom_, caller_size_);
  hone_switch_stack(&own_, caller_);
  __sanitizer_finish_switch_fiber(fake_stack_, &caller_bottom_, &caller_size_);
}

void Fiber::Finish() {
  __sanitizer_start_switch_fiber(nullptr, caller_bottom_, caller_size_);
  hone_switch_stack(&own_, caller_);
  std::abort();
}

}  // namespace hone::cuda_emulation
