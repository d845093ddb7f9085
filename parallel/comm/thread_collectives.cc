#include <cstring>

#include "parallel/comm/reduction.h"
#include "parallel/comm/thread_group_state.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

char* At(const Tensor& tensor, int64_t byte) { return static_cast<char*>(tensor.raw()) + byte; }

void CopyPart(char* to, const char* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, bytes);
}

}  // namespace

void RunAllReduce(ReduceOp op, Parts& parts) {
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (Part& part : parts) {
    inputs.push_back(part.in.raw());
    outputs.push_back(part.in.raw());
  }
  ReduceInRankOrder(op, parts[0].in.dtype(), inputs, outputs, parts[0].in.size());
}

void RunReduceScatter(Parts& parts) {
  for (size_t r = 0; r < parts.size(); ++r) {
    std::vector<const void*> inputs;
    for (Part& part : parts) inputs.push_back(At(part.in, parts[r].out.bytes() * r));
    ReduceInRankOrder(ReduceOp::kSum, parts[r].out.dtype(), inputs, {parts[r].out.raw()},
                      parts[r].out.size());
  }
}

void RunAllGather(Parts& parts) {
  for (Part& to : parts) {
    for (size_t r = 0; r < parts.size(); ++r) {
      int64_t bytes = parts[r].in.bytes();
      CopyPart(At(to.out, bytes * r), At(parts[r].in, 0), bytes);
    }
  }
}

void RunAllToAll(const std::string& where, Parts& parts) {
  std::vector<int64_t> sent(parts.size(), 0);  // rows already taken from each source
  for (size_t d = 0; d < parts.size(); ++d) {
    int64_t row = RowBytes(parts[d].out), received = 0;
    for (size_t s = 0; s < parts.size(); ++s) {
      int64_t rows = parts[s].send_rows[d];
      Check<CommError>(rows == parts[d].recv_rows[s] && RowBytes(parts[s].in) == row,
                       "{}: rank {} sends {} rows to rank {}, which expects {}", where, s, rows, d,
                       parts[d].recv_rows[s]);
      CopyPart(At(parts[d].out, received * row), At(parts[s].in, sent[s] * row), rows * row);
      received += rows;
      sent[s] += rows;
    }
  }
}

void RunBroadcast(int root, Parts& parts) {
  for (Part& part : parts) {
    CopyPart(At(part.in, 0), At(parts[root].in, 0), part.in.bytes());
  }
}

void RunGatherBytes(Parts& parts) {
  for (Part& to : parts) {
    for (Part& from : parts) to.gathered->push_back(from.bytes);
  }
}

}  // namespace hone::parallel
