#include "parallel/expert_dispatcher.h"

#include <cstring>
#include <utility>

#include "runtime/error.h"

namespace hone::parallel {
namespace {

// Runs of consecutive rows that stay together under `order`: calls move(from, to, rows).
template <class Move>
void ForEachRun(const std::vector<int64_t>& order, const Move& move) {
  int64_t n = static_cast<int64_t>(order.size());
  for (int64_t begin = 0, end = 0; begin < n; begin = end) {
    for (end = begin + 1; end < n && order[end] == order[end - 1] + 1;) ++end;
    move(begin, order[begin], end - begin);
  }
}

Shape WithRows(const Tensor& tensor, int64_t rows) {
  Shape shape = tensor.shape();
  shape[0] = rows;
  return shape;
}

}  // namespace

ExpertDispatcher::ExpertDispatcher(GroupPtr ep, int64_t experts)
    : ep_(std::move(ep)), experts_(experts) {
  Check<ConfigError>(experts_ >= 1 && experts_ % ep_->size() == 0,
                     "[expert_dispatcher] {} experts do not split over ep = {}", experts_,
                     ep_->size());
}

int64_t ExpertDispatcher::local_experts() const { return experts_ / ep_->size(); }
int64_t ExpertDispatcher::first_expert() const { return ep_->rank() * local_experts(); }

ExpertDispatcher::Plan ExpertDispatcher::MakePlan(const std::vector<int64_t>& offset_E) {
  CheckShape(static_cast<int64_t>(offset_E.size()) == experts_ + 1,
             "[expert_dispatcher] {} offsets for {} experts", offset_E.size(), experts_);
  Plan plan;
  int ranks = ep_->size();
  int64_t local = local_experts(), first = first_expert();
  if (ranks == 1) {
    plan.received = offset_E[experts_];
    plan.send_rows = plan.recv_rows = {plan.received};
    plan.local_offset = offset_E;
    return plan;
  }
  // rows[s][e]: from rank s to local expert e.
  std::string mine(reinterpret_cast<const char*>(offset_E.data()),
                   offset_E.size() * sizeof(int64_t));
  std::vector<std::vector<int64_t>> rows(ranks, std::vector<int64_t>(local));
  std::vector<std::string> all = ep_->AllGatherBytes(mine);
  plan.recv_rows.resize(ranks);
  plan.local_offset.resize(local + 1);
  for (int s = 0; s < ranks; ++s) {
    Check<CommError>(all[s].size() == mine.size(),
                     "[expert_dispatcher] rank {} has another number of experts", s);
    std::vector<int64_t> offset(experts_ + 1);
    std::memcpy(offset.data(), all[s].data(), all[s].size());
    for (int64_t e = 0; e < local; ++e) {
      rows[s][e] = offset[first + e + 1] - offset[first + e];
      plan.recv_rows[s] += rows[s][e];
      plan.local_offset[e + 1] += rows[s][e];
    }
    plan.send_rows.push_back(offset_E[(s + 1) * local] - offset_E[s * local]);
  }
  for (int64_t e = 0; e < local; ++e) plan.local_offset[e + 1] += plan.local_offset[e];
  plan.received = plan.local_offset[local];
  std::vector<int64_t> next(plan.local_offset.begin(), plan.local_offset.end() - 1);
  std::vector<std::vector<int64_t>> begin(ranks, std::vector<int64_t>(local));
  for (int64_t e = 0; e < local; ++e) {
    for (int s = 0; s < ranks; ++s) begin[s][e] = std::exchange(next[e], next[e] + rows[s][e]);
  }
  for (int s = 0; s < ranks; ++s) {
    for (int64_t e = 0; e < local; ++e) {
      for (int64_t i = 0; i < rows[s][e]; ++i) plan.order.push_back(begin[s][e] + i);
    }
  }
  return plan;
}

Tensor ExpertDispatcher::Handle::Finish() { return finish_(); }

ExpertDispatcher::Handle ExpertDispatcher::Dispatch(Context& ctx, const Tensor& rows_RD,
                                                    const Plan& plan) {
  Handle handle;
  if (ep_->size() == 1) {
    handle.finish_ = [rows_RD] { return rows_RD; };
    return handle;
  }
  Tensor arrived =
      ctx.Empty(WithRows(rows_RD, plan.received), rows_RD.dtype(), MemoryCategory::kCommunication);
  WorkPtr work = ep_->AllToAll(rows_RD, plan.send_rows, arrived, plan.recv_rows);
  handle.finish_ = [&ctx, work, arrived, order = plan.order] {
    work->Wait();
    Tensor sorted = ctx.Empty(arrived.shape(), arrived.dtype());
    ForEachRun(order, [&](int64_t from, int64_t to, int64_t rows) {
      CopyTo(arrived.Slice(from, from + rows), sorted.Slice(to, to + rows), &ctx.stream());
    });
    return sorted;
  };
  return handle;
}

ExpertDispatcher::Handle ExpertDispatcher::Combine(Context& ctx, const Tensor& local_rows,
                                                   const Plan& plan) {
  Handle handle;
  if (ep_->size() == 1) {
    handle.finish_ = [local_rows] { return local_rows; };
    return handle;
  }
  CheckShape(local_rows.ndim() > 0 && local_rows.dim(0) == plan.received,
             "[expert_dispatcher] combine of {}, but {} rows were received",
             runtime::ShapeToString(local_rows.shape()), plan.received);
  Tensor by_source =
      ctx.Empty(local_rows.shape(), local_rows.dtype(), MemoryCategory::kCommunication);
  ForEachRun(plan.order, [&](int64_t from, int64_t to, int64_t rows) {
    CopyTo(local_rows.Slice(to, to + rows), by_source.Slice(from, from + rows), &ctx.stream());
  });
  int64_t sent = 0;
  for (int64_t rows : plan.send_rows) sent += rows;
  Tensor back = ctx.Empty(WithRows(local_rows, sent), local_rows.dtype());
  WorkPtr work = ep_->AllToAll(by_source, plan.recv_rows, back, plan.send_rows);
  handle.finish_ = [work, back, by_source] {
    work->Wait();
    return back;
  };
  return handle;
}

}  // namespace hone::parallel
