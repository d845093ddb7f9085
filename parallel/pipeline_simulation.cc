#include <algorithm>
#include <limits>

#include "parallel/pipeline_schedule.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr double kNotYet = std::numeric_limits<double>::infinity();

// When each (stage, microbatch) ended, for one kind of action.
class Times {
 public:
  Times(int stages, int microbatches)
      : microbatches_(microbatches), times_(static_cast<size_t>(stages) * microbatches, kNotYet) {}
  double& At(int stage, int microbatch) {
    return times_[static_cast<size_t>(stage) * microbatches_ + microbatch];
  }

 private:
  int microbatches_;
  std::vector<double> times_;
};

bool HasForward(const Action& a) {
  return a.kind == Action::Kind::kForward || a.kind == Action::Kind::kForwardBackward;
}
// Of the part that hands a gradient on.
bool HasBackward(const Action& a) {
  return a.kind != Action::Kind::kForward && a.kind != Action::Kind::kBackwardWeight;
}
bool ReleasesActivations(const Action& a) {
  return a.kind != Action::Kind::kForward && a.kind != Action::Kind::kBackwardInput;
}
int BackwardChunk(const Action& a) {
  return a.kind == Action::Kind::kForwardBackward ? a.pair_chunk : a.chunk;
}
int BackwardMicrobatch(const Action& a) {
  return a.kind == Action::Kind::kForwardBackward ? a.pair_microbatch : a.microbatch;
}

double CostOf(const Action& a, const ScheduleCosts& costs) {
  const double backward = costs.backward_input + costs.backward_weight;
  switch (a.kind) {
    case Action::Kind::kForward:
      return costs.forward;
    case Action::Kind::kBackward:
      return backward;
    case Action::Kind::kBackwardInput:
      return costs.backward_input;
    case Action::Kind::kBackwardWeight:
      return costs.backward_weight;
    case Action::Kind::kForwardBackward:
      return costs.overlapped_pair < 0 ? costs.forward + backward : costs.overlapped_pair;
  }
  return 0;
}

class Simulator {
 public:
  Simulator(const PipelineShape& shape, const std::vector<std::vector<Action>>& lists,
            const ScheduleCosts& costs)
      : shape_(shape),
        lists_(lists),
        costs_(costs),
        forward_end_(shape.stages(), shape.microbatches),
        backward_end_(shape.stages(), shape.microbatches),
        next_(shape.ranks, 0),
        clock_(shape.ranks, 0),
        held_(shape.ranks, 0) {
    result_.busy.assign(shape.ranks, 0);
    result_.peak_in_flight.assign(shape.ranks, 0);
  }

  ScheduleSimulation Run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < shape_.ranks; ++rank) {
        while (next_[rank] < lists_[rank].size() && TryNext(rank)) moved = true;
      }
    }
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      Check(next_[rank] == lists_[rank].size(),
            "[pipeline] {}: rank {} waits for ever at action {} of {}, {}",
            ScheduleName(shape_.kind), rank, next_[rank], lists_[rank].size(),
            next_[rank] < lists_[rank].size() ? lists_[rank][next_[rank]].ToString() : "");
    }
    result_.total = *std::max_element(clock_.begin(), clock_.end());
    for (double busy : result_.busy) result_.bubble.push_back(result_.total - busy);
    return std::move(result_);
  }

 private:
  // When what the action needs from other actions is there; kNotYet if one has not run.
  double ReadyAt(int rank, const Action& a) {
    double ready = 0;
    if (HasForward(a)) {
      const int stage = shape_.StageOf(rank, a.chunk);
      if (stage > 0) ready = forward_end_.At(stage - 1, a.microbatch);
    }
    if (a.kind == Action::Kind::kForward) return ready;
    const int stage = shape_.StageOf(rank, BackwardChunk(a)), microbatch = BackwardMicrobatch(a);
    Times& own = a.kind == Action::Kind::kBackwardWeight ? backward_end_ : forward_end_;
    Check(own.At(stage, microbatch) != kNotYet,
          "[pipeline] {}: rank {} runs {} before its own other half", ScheduleName(shape_.kind),
          rank, a.ToString());
    if (HasBackward(a) && stage + 1 < shape_.stages()) {
      ready = std::max(ready, backward_end_.At(stage + 1, microbatch));
    }
    return ready;
  }

  bool TryNext(int rank) {
    const Action& a = lists_[rank][next_[rank]];
    const double ready = ReadyAt(rank, a);
    if (ready == kNotYet) return false;
    const double cost = CostOf(a, costs_);
    const double end = std::max(clock_[rank], ready) + cost;
    clock_[rank] = end;
    result_.busy[rank] += cost;
    ++next_[rank];
    if (HasForward(a)) {
      forward_end_.At(shape_.StageOf(rank, a.chunk), a.microbatch) = end;
      result_.peak_in_flight[rank] = std::max(result_.peak_in_flight[rank], ++held_[rank]);
    }
    if (HasBackward(a)) {
      backward_end_.At(shape_.StageOf(rank, BackwardChunk(a)), BackwardMicrobatch(a)) = end;
    }
    if (ReleasesActivations(a)) --held_[rank];
    return true;
  }

  const PipelineShape& shape_;
  const std::vector<std::vector<Action>>& lists_;
  const ScheduleCosts& costs_;
  Times forward_end_, backward_end_;
  std::vector<size_t> next_;
  std::vector<double> clock_;
  std::vector<int> held_;
  ScheduleSimulation result_;
};

}  // namespace

ScheduleSimulation Simulate(const PipelineShape& shape,
                            const std::vector<std::vector<Action>>& schedule,
                            const ScheduleCosts& costs) {
  return Simulator(shape, schedule, costs).Run();
}

}  // namespace hone::parallel
