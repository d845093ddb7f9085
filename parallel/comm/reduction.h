// Sums in rank order, and what every group asks of its arguments: shared by the thread and MPI
// groups, so that both give the same bits and the same errors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/comm/process_group.h"

namespace hone::parallel {

// out[i] = in[0][i] ∘ in[1][i] ∘ …, from left to right. bf16 is accumulated in f32 and rounded
// once; f32, f64, i32 and i64 in their own type; kMax of u8 too. An output may be one of the
// inputs; every output gets the same values.
void ReduceInRankOrder(ReduceOp op, DType dtype, const std::vector<const void*>& inputs,
                       const std::vector<void*>& outputs, int64_t n);

// "all_reduce sum f32[1024]": equal on every rank that calls the same operation.
std::string Signature(const std::string& op, const Tensor& tensor);

// Bytes of one row of dim 0.
int64_t RowBytes(const Tensor& tensor);

// ShapeError naming group, operation and shapes unless the tensors fit. They lie on the host or on
// the group's device.
void CheckContiguous(const ProcessGroup& group, const char* op, const Tensor& tensor);
void CheckReduceScatter(const ProcessGroup& group, const Tensor& input, const Tensor& output);
void CheckAllGather(const ProcessGroup& group, const Tensor& input, const Tensor& output);
void CheckAllToAll(const ProcessGroup& group, const Tensor& send,
                   const std::vector<int64_t>& send_rows, const Tensor& recv,
                   const std::vector<int64_t>& recv_rows);
void CheckPeer(const ProcessGroup& group, const char* op, int peer);
// A peer, and a tag in [0, tags).
void CheckMessage(const ProcessGroup& group, const char* op, const Tensor& tensor, int peer,
                  int tag, int tags);

}  // namespace hone::parallel
