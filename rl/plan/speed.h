// How long a step takes on a machine that is described by a few numbers: for comparing layouts, not
// for promising.
//
// A microbatch on a stage costs its products (2 FLOPs a weight and token forward, twice that
// backward, forward again with activation checkpointing) and its attention, at `flops ·
// efficiency`, and its expert exchanges. The schedule's simulation (parallel/pipeline_schedule.h)
// makes a step of them; what DualPipe-V overlaps is overlapped. To it come the part of the
// gradients' reduction that the last backward does not cover, the gather of the new weights, and
// the optimizer's passes over its state. Messages between pipeline ranks are taken to be hidden.
#pragma once

#include <cstdint>
#include <string>

#include "rl/plan/memory.h"

namespace hone::rl {

struct MachineModel {
  double flops = 989e12;              // of products, a rank; H100 SXM: dense bf16
  double efficiency = 0.4;            // the share of it that whole layers reach
  double memory_bandwidth = 3.35e12;  // bytes/s
  double node_bandwidth = 450e9;      // bytes/s that a rank sends to others of its node
  double network_bandwidth = 50e9;    // … to other nodes
  double host_bandwidth = 64e9;       // … to the host and, at the same time, from it
  double bandwidth_efficiency = 0.8;  // of the four
  int node_ranks = 8;

  // One core of a server's CPU a thread, as docs/benchmarks.md measured it; one node.
  static MachineModel Cpu(int threads);
  std::string ToString() const;
  double SecondsOfFlops(double count) const { return count / (flops * efficiency); }
  // A collective in which each rank sends `bytes` in all, evenly to the others of a group of
  // neighbours.
  double SecondsToExchange(double bytes, int group) const;
};

// Bytes a step that the rank with most of them sends.
struct StepTraffic {
  double gradients = 0;  // reduce-scatter over replicas
  double weights = 0;    // all-gather of what the optimizer updated
  double pipeline = 0;   // activations forward, gradients back
  double experts = 0;    // rows to experts and back, both directions
  double tied = 0;       // gradients of tables that two pipeline ranks hold
  double total() const { return gradients + weights + pipeline + experts + tied; }
};

struct StepEstimate {
  StepTraffic traffic;
  double bubble_seconds = 0;  // of the rank that idles longest
  double bubble = 0;          // that over the schedule's time
  double schedule_seconds = 0, reduce_seconds = 0, gather_seconds = 0, optimizer_seconds = 0;
  double seconds = 0;
  double tokens_per_second = 0;
};

// `memory`: EstimateMemory's, of the same step.
StepEstimate EstimateStep(const model::ModelConfig& model, const Layout& layout,
                          const StepShape& step, const std::vector<RankMemory>& memory,
                          const MachineModel& machine);

}  // namespace hone::rl
