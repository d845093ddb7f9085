// What an operation needs to run: device, stream, allocator, threads. Passed to every kernel and
// layer; one per rank (or per thread of control), never shared between threads.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/allocator.h"
#include "runtime/device.h"
#include "runtime/tensor.h"
#include "runtime/thread_pool.h"

namespace hone::runtime {

// Work that a pipeline schedule may run later: the weight-gradient half of a backward pass. Entries
// own what they read. Only Linear and GroupedExperts push.
using WeightGradientQueue = std::deque<std::function<void()>>;

// What a row's result may depend on, where a device leaves the choice.
enum class Numerics : uint8_t {
  // On the row alone. GPUs: our own attention kernel, pinned GEMM algorithms; CPUs: one chain of
  // multiply-adds an element, the same on every processor.
  kBatchInvariant,
  // On the shape of the batch too. GPUs: cuDNN's attention, cuBLASLt's own choice; CPUs: large
  // products in the matrix unit where there is one (kernels/amx_gemm.h).
  kFast,
  // As kFast, but on CPUs large products of f32 are made of numbers of 24 bits whose point is fixed
  // for each row and column.
  kFixedPoint,
};
// "batch_invariant", "fast", "fixed_point", in their order.
const std::vector<std::string>& NumericsNames();
std::string_view NumericsName(Numerics numerics);
// Throws ConfigError where there is no such name.
Numerics NumericsFromName(std::string_view name);

class PackedWeights;

class Context {
 public:
  // `threads` counts the calling thread. The allocator may be shared between contexts.
  explicit Context(Device device = Device::Cpu(), int threads = 1,
                   std::shared_ptr<Allocator> allocator = nullptr);

  Device device() const { return device_; }
  Stream& stream() { return *stream_; }
  ThreadPool& pool() { return *pool_; }
  const std::shared_ptr<Allocator>& allocator() const { return allocator_; }

  Tensor Empty(Shape shape, DType dtype, MemoryCategory category = MemoryCategory::kActivations);
  Tensor Zeros(Shape shape, DType dtype, MemoryCategory category = MemoryCategory::kActivations);
  Tensor EmptyLike(const Tensor& t) { return Empty(t.shape(), t.dtype()); }
  Tensor ZerosLike(const Tensor& t) { return Zeros(t.shape(), t.dtype()); }
  Tensor Clone(const Tensor& t, MemoryCategory category = MemoryCategory::kActivations);

  // When set, layers push weight-gradient work here instead of doing it at once.
  WeightGradientQueue* weight_gradients = nullptr;
  Numerics numerics = Numerics::kBatchInvariant;
  // Linear layers and experts multiply in fp8 (kernels/fp8); for f32 and bf16 models.
  bool fp8 = false;
  // When set, products may keep weights here in the form that they read fastest.
  PackedWeights* packed_weights = nullptr;

 private:
  Device device_;
  std::shared_ptr<Allocator> allocator_;
  std::shared_ptr<Stream> stream_;
  std::shared_ptr<ThreadPool> pool_;
};

}  // namespace hone::runtime

namespace hone {
using runtime::Context;
using runtime::Numerics;
using runtime::WeightGradientQueue;
}  // namespace hone
