#include "tests/cuda_emulation/emulator.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "tests/cuda_emulation/fiber.h"

hone::cuda_emulation::Dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace hone::cuda_emulation {
namespace {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxSharedBytes = 227 * 1024;
constexpr unsigned char kUnwritten = 0xff;  // NaN in f32, f64 and bf16

Settings FromEnvironment() {
  Settings s;
  auto get = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string_view(value ? value : "");
  };
  std::string_view order = get("HONE_EMULATED_ORDER");
  if (order == "descending") s.order = Order::kDescending;
  if (order.substr(0, 7) == "random:") {
    s.order = Order::kRandom;
    s.seed = std::strtoull(order.data() + 7, nullptr, 10);
  }
  s.lazy_streams = get("HONE_EMULATED_STREAMS") == "lazy";
  if (std::string_view n = get("HONE_EMULATED_DEVICES"); !n.empty())
    s.devices = std::atoi(n.data());
  return s;
}

std::string At(const Where& where) {
  std::string_view file = where.file_name();
  return fmt::format("{}:{}", file.substr(file.rfind('/') + 1), where.line());
}

// Thrown through a kernel's frames when its launch has failed.
struct KernelFailed {};

// The lanes that exchange under one mask. They alternate between two sets of slots, so that a lane
// may arrive at the next exchange while others still read this one.
struct ExchangeGroup {
  unsigned mask = 0;
  unsigned arrived = 0;
  int set = 0;
  Where where;
  alignas(16) unsigned char slots[2][kWarpSize * kExchangeBytes];
};

struct Thread {
  enum class State { kReady, kAtBarrier, kInExchange, kEnded };
  State state = State::kReady;
  Where where;  // of the wait
  Dim3 index;
  Fiber fiber;
};

class Block {
 public:
  void Run(const LaunchShape& shape, const std::function<void()>& body);
  void Barrier(const Where& where);
  const unsigned char* Exchange(unsigned mask, const void* value, int bytes, const Where& where);
  [[noreturn]] void Fail(const std::string& message, const Where& where);
  void* shared() { return shared_; }
  const std::string& failure() const { return failure_; }
  std::mt19937_64& bits() { return bits_; }
  bool running() const { return current_ != nullptr; }

 private:
  static void Body(void* block);
  void Begin(const LaunchShape& shape);
  bool Round(std::vector<int>& order);
  void Resume(int thread);
  void Wait(Thread::State state, const Where& where);
  std::string WhoWaitsWhere() const;
  ExchangeGroup& Group(int warp, unsigned mask);
  void CheckBehindShared(const LaunchShape& shape);

  std::vector<std::unique_ptr<Thread>> threads_;                     // of the largest block so far
  std::vector<std::vector<std::unique_ptr<ExchangeGroup>>> groups_;  // by warp
  const std::function<void()>* body_ = nullptr;
  Thread* current_ = nullptr;
  int current_number_ = 0;
  int count_ = 0, at_barrier_ = 0, ended_ = 0;
  Where barrier_;
  std::unique_ptr<unsigned char[]> memory_;
  void* shared_ = nullptr;
  std::string failure_;
  std::mt19937_64 bits_;
};

Block block;  // one device operation runs at a time

void Block::Begin(const LaunchShape& shape) {
  count_ = static_cast<int>(shape.block.x * shape.block.y * shape.block.z);
  while (static_cast<int>(threads_.size()) < count_) threads_.push_back(std::make_unique<Thread>());
  groups_.resize((count_ + kWarpSize - 1) / kWarpSize);
  for (auto& groups : groups_) groups.clear();
  at_barrier_ = ended_ = 0;
  for (int i = 0; i < count_; ++i) {
    Thread& t = *threads_[i];
    auto n = static_cast<unsigned>(i);
    t.state = Thread::State::kReady;
    t.index = {n % shape.block.x, n / shape.block.x % shape.block.y,
               n / (shape.block.x * shape.block.y)};
    t.fiber.Start(&Block::Body, this);
  }
}

// Dynamic shared memory ends exactly where its allocation does, so that AddressSanitizer sees what
// goes beyond; without it a few bytes behind the end are looked at after the block.
constexpr int64_t kBehind = 64;

void Block::CheckBehindShared(const LaunchShape& shape) {
#if !defined(__SANITIZE_ADDRESS__)
  auto* end = static_cast<unsigned char*>(shared_) + shape.shared_bytes;
  if (std::any_of(end, end + kBehind, [](unsigned char c) { return c != kUnwritten; })) {
    failure_ = fmt::format("a thread wrote behind the {} bytes of dynamic shared memory",
                           shape.shared_bytes);
  }
#else
  (void)shape;
#endif
}

void Block::Run(const LaunchShape& shape, const std::function<void()>& body) {
  failure_.clear();
  body_ = &body;
  int64_t bytes = shape.shared_bytes;
#if !defined(__SANITIZE_ADDRESS__)
  bytes += kBehind;
#endif
  memory_ =
      std::make_unique_for_overwrite<unsigned char[]>(bytes);  // 16-byte aligned, as by malloc
  shared_ = memory_.get();
  std::fill_n(memory_.get(), bytes, kUnwritten);
  Begin(shape);
  std::vector<int> order(count_);
  for (int i = 0; i < count_; ++i) {
    order[i] = settings().order == Order::kDescending ? count_ - 1 - i : i;
  }
  while (ended_ < count_ && failure_.empty()) {
    if (!Round(order) && failure_.empty()) failure_ = WhoWaitsWhere();
  }
  if (failure_.empty()) CheckBehindShared(shape);
}

// Gives each thread that can go on its turn; false if none could.
bool Block::Round(std::vector<int>& order) {
  if (settings().order == Order::kRandom) std::shuffle(order.begin(), order.end(), bits_);
  bool any = false;
  for (int i : order) {
    if (threads_[i]->state != Thread::State::kReady) continue;
    any = true;
    Resume(i);
    if (!failure_.empty()) return false;
  }
  return any;
}

void Block::Resume(int thread) {
  current_ = threads_[thread].get();
  current_number_ = thread;
  threadIdx = current_->index;
  current_->fiber.Resume();
  current_ = nullptr;
}

void Block::Body(void* block) {
  auto* self = static_cast<Block*>(block);
  try {
    (*self->body_)();
  } catch (const KernelFailed&) {
  } catch (const std::exception& e) {
    self->failure_ = fmt::format("a thread threw: {}", e.what());
  }
  self->current_->state = Thread::State::kEnded;
  ++self->ended_;
  self->current_->fiber.Finish();
}

void Block::Wait(Thread::State state, const Where& where) {
  current_->state = state;
  current_->where = where;
  current_->fiber.Yield();
}

void Block::Fail(const std::string& message, const Where& where) {
  failure_ = fmt::format("{}: {} (thread {} of block {})", At(where), message, current_number_,
                         blockIdx.x);
  throw KernelFailed{};
}

void Block::Barrier(const Where& where) {
  if (at_barrier_ > 0 && barrier_.line() != where.line()) {
    Fail(fmt::format("__syncthreads while other threads wait at that of {}", At(barrier_)), where);
  }
  barrier_ = where;
  if (++at_barrier_ < count_) return Wait(Thread::State::kAtBarrier, where);
  at_barrier_ = 0;
  for (int i = 0; i < count_; ++i) {
    if (threads_[i]->state == Thread::State::kAtBarrier) {
      threads_[i]->state = Thread::State::kReady;
    }
  }
}

ExchangeGroup& Block::Group(int warp, unsigned mask) {
  for (auto& group : groups_[warp]) {
    if (group->mask == mask) return *group;
  }
  groups_[warp].push_back(std::make_unique<ExchangeGroup>());
  groups_[warp].back()->mask = mask;
  return *groups_[warp].back();
}

const unsigned char* Block::Exchange(unsigned mask, const void* value, int bytes,
                                     const Where& where) {
  int warp = current_number_ / kWarpSize, lane = current_number_ % kWarpSize;
  unsigned bit = 1u << lane;
  if (!(mask & bit)) Fail("a warp intrinsic whose mask has not the caller's own lane", where);
  ExchangeGroup& group = Group(warp, mask);
  if (group.arrived != 0 && group.where.line() != where.line()) {
    Fail(fmt::format("a warp intrinsic while other lanes wait at that of {}", At(group.where)),
         where);
  }
  group.where = where;
  unsigned char* slots = group.slots[group.set];
  std::memcpy(slots + lane * kExchangeBytes, value, bytes);
  group.arrived |= bit;
  if (group.arrived != mask) {
    Wait(Thread::State::kInExchange, where);
    return slots;
  }
  group.arrived = 0;
  group.set ^= 1;
  for (int l = 0; l < kWarpSize; ++l) {
    int thread = warp * kWarpSize + l;
    if (l != lane && (mask >> l & 1u)) threads_[thread]->state = Thread::State::kReady;
  }
  return slots;
}

std::string Block::WhoWaitsWhere() const {
  int waiting[2] = {0, 0};
  const Where* where[2] = {nullptr, nullptr};
  for (int i = 0; i < count_; ++i) {
    Thread::State state = threads_[i]->state;
    if (state == Thread::State::kEnded) continue;
    int kind = state == Thread::State::kInExchange;
    ++waiting[kind];
    where[kind] = &threads_[i]->where;
  }
  std::string message = "threads of a block do not meet:";
  if (where[0])
    message += fmt::format(" {} wait at __syncthreads ({}),", waiting[0], At(*where[0]));
  if (where[1]) message += fmt::format(" {} in a warp intrinsic ({}),", waiting[1], At(*where[1]));
  return fmt::format("{} {} of {} have ended", message, ended_, count_);
}

std::string failure;

bool FitsDevice(const LaunchShape& shape) {
  int64_t threads = int64_t{shape.block.x} * shape.block.y * shape.block.z;
  bool grid = shape.grid.x > 0 && shape.grid.y > 0 && shape.grid.z > 0 &&
              shape.grid.x <= 0x7fffffffu && shape.grid.y <= 65535 && shape.grid.z <= 65535;
  bool block = threads > 0 && threads <= kMaxThreads && threads % kWarpSize == 0;
  if (grid && block && shape.shared_bytes <= kMaxSharedBytes) return true;
  failure = fmt::format(
      "invalid launch: grid {}×{}×{}, {} threads a block (a multiple of 32 up to 1024), {} bytes "
      "of "
      "shared memory",
      shape.grid.x, shape.grid.y, shape.grid.z, threads, shape.shared_bytes);
  return false;
}

}  // namespace

Settings& settings() {
  static Settings s = FromEnvironment();
  return s;
}

std::string LastFailure() { return failure; }

bool RunGrid(const LaunchShape& shape, const std::function<void()>& thread) {
  if (!FitsDevice(shape)) return false;
  gridDim = shape.grid;
  blockDim = shape.block;
  block.bits().seed(settings().seed);
  int64_t blocks = int64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  std::vector<int64_t> order(blocks);
  for (int64_t b = 0; b < blocks; ++b) order[b] = b;
  if (settings().order == Order::kDescending) std::reverse(order.begin(), order.end());
  if (settings().order == Order::kRandom) std::shuffle(order.begin(), order.end(), block.bits());
  for (int64_t b : order) {
    blockIdx = {static_cast<unsigned>(b % shape.grid.x),
                static_cast<unsigned>(b / shape.grid.x % shape.grid.y),
                static_cast<unsigned>(b / (int64_t{shape.grid.x} * shape.grid.y))};
    block.Run(shape, thread);
    if (!block.failure().empty()) {
      failure = block.failure();
      return false;
    }
  }
  return true;
}

void Barrier(const Where& where) { block.Barrier(where); }
const unsigned char* ExchangeBytes(unsigned mask, const void* value, int bytes,
                                   const Where& where) {
  return block.Exchange(mask, value, bytes, where);
}
void Fail(const std::string& message, const Where& where) { block.Fail(message, where); }
void* DynamicSharedMemory() { return block.shared(); }

}  // namespace hone::cuda_emulation
