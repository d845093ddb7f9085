// Moves token rows to the ranks that hold their experts, and back. No token is dropped.
//
// R = T · K rows in (expert, token) order, as kernels::MakePermutation gives them. Each rank of `ep`
// holds E / ep consecutive experts. At ep = 1 the same interface moves nothing.
// Received rows are ordered by (local expert, source rank, source order), so each expert's rows are
// contiguous. Row order cannot change a row's result: the kernels are batch invariant.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "parallel/comm/process_group.h"
#include "runtime/context.h"

namespace hone::parallel {

class ExpertDispatcher {
 public:
  ExpertDispatcher(GroupPtr ep, int64_t experts);  // ConfigError unless ep divides experts

  int64_t local_experts() const;
  int64_t first_expert() const;

  // What went where: made once a layer and microbatch, used by dispatch, combine and both backwards.
  struct Plan {
    std::vector<int64_t> send_rows, recv_rows;      // a rank of ep
    std::vector<int64_t> local_offset;              // local_experts + 1: rows of each expert here
    std::vector<int64_t> order;                     // received row i goes to sorted row order[i]
    int64_t received = 0;
  };
  // Exchanges counts (blocking). offset_E: E + 1.
  Plan MakePlan(const std::vector<int64_t>& offset_E);

  // An exchange under way. Finish waits and returns the rows, sorted.
  class Handle {
   public:
    Tensor Finish();

   private:
    friend class ExpertDispatcher;
    std::function<Tensor()> finish_;
  };
  // rows_RD (expert order) → rows of the local experts, sorted by expert. Also the backward of Combine.
  Handle Dispatch(Context& ctx, const Tensor& rows_RD, const Plan& plan);
  // The way back: local rows → this rank's R rows in (expert, token) order. Also the backward of Dispatch.
  Handle Combine(Context& ctx, const Tensor& local_rows, const Plan& plan);

 private:
  GroupPtr ep_;
  int64_t experts_;
};

}  // namespace hone::parallel
