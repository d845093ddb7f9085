// Pipeline schedules as pure functions: (kind, ranks, chunks, microbatches) → each rank's actions.
//
// A model is cut into `stages` = ranks × chunks consecutive chunks of layers. Rank r holds `chunks`
// of them: with interleaving stage c · ranks + r, with DualPipe-V stages r and 2 · ranks − 1 − r.
//   GPipe          all forwards, then all backwards                                [arXiv
//   1811.06965] 1F1B           PipeDream-flush [arXiv 2104.04473] interleaved    v chunks a rank;
//   needs ranks | microbatches                     [arXiv 2104.04473] ZB-H1          backward split
//   in input and weight gradient; microbatches ≥ ranks [arXiv 2401.10241] DualPipe-V     two chunks
//   a rank in a V, forward and backward overlapped;
//                  microbatches ≥ 2 · ranks       [arXiv 2412.19437 §3.2.1; Qi et al. 2025,
//                  "cut-in-half"]
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hone::parallel {

enum class ScheduleKind { kGPipe, k1F1B, kInterleaved, kZbH1, kDualPipeV };
const std::vector<std::string>& ScheduleNames();  // gpipe 1f1b interleaved zb_h1 dualpipe_v
const std::string& ScheduleName(ScheduleKind kind);

struct Action {
  enum class Kind {
    kForward,
    kBackward,  // input and weight gradient
    kBackwardInput,
    kBackwardWeight,
    kForwardBackward  // one atomic pair: forward of (chunk, microbatch), backward of the pair
                      // fields
  };
  Kind kind;
  int chunk = 0, microbatch = 0;              // chunk: 0 … chunks−1 of this rank
  int pair_chunk = -1, pair_microbatch = -1;  // the backward of a kForwardBackward
  bool operator==(const Action&) const = default;
  std::string ToString() const;  // "F0.3", "B…", "I…", "W…", "F0.5+B1.2": chunk.microbatch
};

struct PipelineShape {
  ScheduleKind kind = ScheduleKind::k1F1B;
  int ranks = 1;
  int chunks = 1;  // a rank; 2 for DualPipe-V, v for interleaved, else 1
  int microbatches = 1;
  // ConfigError naming the schedule and the condition that fails. ValidateLayout leaves the number
  // of microbatches out: a forward-only run takes any.
  void Validate() const;
  void ValidateLayout() const;
  // The smallest number of microbatches, from `wanted` up, that Validate takes.
  int64_t FittingMicrobatches(int64_t wanted) const;
  int stages() const { return ranks * chunks; }
  int StageOf(int rank, int chunk) const;
  int RankOf(int stage) const;
  int ChunkOf(int stage) const;
};

// One list a rank. Every chunk of every rank takes its microbatches in order, forward and backward.
std::vector<std::vector<Action>> BuildSchedule(const PipelineShape& shape);
// Forward only: evaluation, reference log-probabilities.
std::vector<std::vector<Action>> BuildForwardSchedule(const PipelineShape& shape);

// Costs of one microbatch on one stage, for simulation.
struct ScheduleCosts {
  double forward = 1, backward_input = 1, backward_weight = 1;
  double overlapped_pair = -1;  // of a kForwardBackward; < 0: forward + both backward parts
};
struct ScheduleSimulation {
  double total = 0;                  // until the last rank ends
  std::vector<double> busy, bubble;  // a rank: bubble = total − busy
  std::vector<int> peak_in_flight;   // most activations held at once, in chunk-microbatches
};
// Runs the lists with messages that take no time: an action starts when its rank is free and what
// it depends on has ended. Error naming rank and action when a rank waits for ever, and when a
// backward stands before what it needs on its own rank.
ScheduleSimulation Simulate(const PipelineShape& shape,
                            const std::vector<std::vector<Action>>& schedule,
                            const ScheduleCosts& costs);

}  // namespace hone::parallel
