#include "parallel/comm/reduction.h"

#include <algorithm>
#include <cstring>

#include "parallel/comm/list_text.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr int64_t kBlock = 1024;

// Blocks keep the running sums in cache, and let an output be an input: a block is read from every
// rank before it is written anywhere.
template <class T>
void ReduceTyped(ReduceOp op, const std::vector<const void*>& inputs,
                 const std::vector<void*>& outputs, int64_t n) {
  Acc<T> acc[kBlock];
  T rounded[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    int64_t count = std::min(kBlock, n - begin);
    const T* first = static_cast<const T*>(inputs[0]) + begin;
    for (int64_t i = 0; i < count; ++i) acc[i] = static_cast<Acc<T>>(first[i]);
    for (size_t r = 1; r < inputs.size(); ++r) {
      const T* in = static_cast<const T*>(inputs[r]) + begin;
      if (op == ReduceOp::kSum) {
        for (int64_t i = 0; i < count; ++i) acc[i] += static_cast<Acc<T>>(in[i]);
      } else {
        for (int64_t i = 0; i < count; ++i) acc[i] = std::max(acc[i], static_cast<Acc<T>>(in[i]));
      }
    }
    for (int64_t i = 0; i < count; ++i) rounded[i] = static_cast<T>(acc[i]);
    for (void* out : outputs) std::memcpy(static_cast<T*>(out) + begin, rounded, count * sizeof(T));
  }
}

std::string Place(const ProcessGroup& group) {
  return fmt::format("group {}, rank {} of {}", group.name(), group.rank(), group.size());
}

}  // namespace

void ReduceInRankOrder(ReduceOp op, DType dtype, const std::vector<const void*>& inputs,
                       const std::vector<void*>& outputs, int64_t n) {
  switch (dtype) {
    case DType::kF32:
      return ReduceTyped<float>(op, inputs, outputs, n);
    case DType::kF64:
      return ReduceTyped<double>(op, inputs, outputs, n);
    case DType::kBF16:
      return ReduceTyped<BF16>(op, inputs, outputs, n);
    case DType::kI32:
      return ReduceTyped<int32_t>(op, inputs, outputs, n);
    case DType::kI64:
      return ReduceTyped<int64_t>(op, inputs, outputs, n);
    case DType::kU8:
      return ReduceTyped<uint8_t>(op, inputs, outputs, n);
    default:
      throw ShapeError(fmt::format("[reduce] {} cannot be reduced", runtime::DTypeName(dtype)));
  }
}

std::string Signature(const std::string& op, const Tensor& tensor) {
  return fmt::format("{} {}[{}]", op, runtime::DTypeName(tensor.dtype()), tensor.size());
}

int64_t RowBytes(const Tensor& tensor) {
  int64_t elements = 1;
  for (int i = 1; i < tensor.ndim(); ++i) elements *= tensor.dim(i);
  return elements * runtime::DTypeSize(tensor.dtype());
}

void CheckContiguous(const ProcessGroup& group, const char* op, const Tensor& tensor) {
  CheckShape(tensor.defined() || tensor.size() == 0, "[{}] {}: undefined tensor", op, Place(group));
  CheckShape(tensor.contiguous(), "[{}] {}: a strided tensor of shape {}", op, Place(group),
             runtime::ShapeToString(tensor.shape()));
  CheckShape(tensor.device().is_cpu() || tensor.device() == group.device(),
             "[{}] {}: a tensor on {}; this group moves those of {}", op, Place(group),
             tensor.device().ToString(), group.device().ToString());
}

void CheckReduceScatter(const ProcessGroup& group, const Tensor& input, const Tensor& output) {
  CheckContiguous(group, "reduce_scatter", input);
  CheckContiguous(group, "reduce_scatter", output);
  CheckShape(input.size() == output.size() * group.size() && input.dtype() == output.dtype(),
             "[reduce_scatter] {}: {} elements of {} into {} of {}", Place(group), input.size(),
             runtime::DTypeName(input.dtype()), output.size(), runtime::DTypeName(output.dtype()));
}

void CheckAllGather(const ProcessGroup& group, const Tensor& input, const Tensor& output) {
  CheckContiguous(group, "all_gather", input);
  CheckContiguous(group, "all_gather", output);
  CheckShape(input.size() * group.size() == output.size() && input.dtype() == output.dtype(),
             "[all_gather] {}: {} elements of {} into {} of {}", Place(group), input.size(),
             runtime::DTypeName(input.dtype()), output.size(), runtime::DTypeName(output.dtype()));
}

void CheckAllToAll(const ProcessGroup& group, const Tensor& send,
                   const std::vector<int64_t>& send_rows, const Tensor& recv,
                   const std::vector<int64_t>& recv_rows) {
  CheckContiguous(group, "all_to_all", send);
  CheckContiguous(group, "all_to_all", recv);
  auto fits = [&](const Tensor& tensor, const std::vector<int64_t>& rows) {
    int64_t total = 0;
    for (int64_t r : rows) total += r;
    return static_cast<int>(rows.size()) == group.size() && tensor.ndim() > 0 &&
           tensor.dim(0) == total &&
           std::all_of(rows.begin(), rows.end(), [](int64_t r) { return r >= 0; });
  };
  CheckShape(fits(send, send_rows) && fits(recv, recv_rows) && send.dtype() == recv.dtype() &&
                 RowBytes(send) == RowBytes(recv),
             "[all_to_all] {}: rows [{}] of {} {} out, rows [{}] of {} {} in", Place(group),
             ListText(send_rows), runtime::DTypeName(send.dtype()),
             runtime::ShapeToString(send.shape()), ListText(recv_rows),
             runtime::DTypeName(recv.dtype()), runtime::ShapeToString(recv.shape()));
}

void CheckPeer(const ProcessGroup& group, const char* op, int peer) {
  Check<CommError>(peer >= 0 && peer < group.size(), "[{}] {}: there is no rank {}", op,
                   Place(group), peer);
}

void CheckMessage(const ProcessGroup& group, const char* op, const Tensor& tensor, int peer,
                  int tag, int tags) {
  CheckContiguous(group, op, tensor);
  CheckPeer(group, op, peer);
  Check<CommError>(tag >= 0 && tag < tags, "[{}] {}: tag {} is not in [0, {})", op, Place(group),
                   tag, tags);
}

}  // namespace hone::parallel
