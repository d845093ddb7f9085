// What the learner ranks of a layout and the rollout workers need of memory, from configs alone.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/memory_estimate.h"
#include "parallel/mesh.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/train_engine.h"
#include "rl/run_config.h"

namespace hone::rl {

// How a model is spread over learner ranks, and in which precision it is trained.
struct Layout {
  parallel::MeshConfig mesh;
  parallel::PipelineConfig pipeline;
  DType dtype = DType::kF32, moments = DType::kF32;
  bool offload = false;  // the optimizer's state to the host, where that is not the device itself
  bool activation_checkpointing = false;
  bool keep_fp8 = false;  // weights quantised beside the others while a step is taken
  int threads = 1;
  bool cpu = true;  // else devices whose kernels need no f32 copies of bf16 tensors

  // ConfigError where the model cannot be cut that way.
  void Validate(const model::ModelConfig& model) const;
  parallel::PipelineShape Shape(int64_t microbatches) const;
  std::vector<model::StageOptions> Stages(const model::ModelConfig& model) const;
  std::string ToString() const;
};
Layout LayoutOf(const RunConfig& config, bool cpu);

// One optimizer step, seen by one rank.
struct StepShape {
  int64_t tokens = 0;        // of a microbatch, at most
  int64_t sequences = 1;     // in it
  int64_t microbatches = 1;  // of a replica
  model::MicrobatchShape::Loss loss = model::MicrobatchShape::Loss::kCrossEntropy;
  int64_t frozen_models = 0;    // beside the one in training: the reference, reward models
  int64_t visiting_models = 0;  // from the host's memory, while nothing is trained: the reference
  int64_t idle_models = 0;      // with gradients: the policy while a reward model is trained
};

// Elements with a gradient that a pipeline rank holds.
struct ParameterCounts {
  int64_t data = 0, experts = 0;  // the same on all replicas; on those with one ep index
  int64_t replicated = 0;         // of those, held by another pipeline rank too
};

// Peaks of each category by itself, and of their sum, which is less: not all come at once.
struct RankMemory {
  std::array<int64_t, runtime::kMemoryCategoryCount> bytes{};
  int64_t total = 0;
  int64_t host_optimizer = 0, host_weights = 0;  // in the host's memory, where offloaded
  int64_t kept_fp8 = 0;  // of the weights: quantised ones, while microbatches run
  int in_flight = 0;     // microbatches (of a chunk) whose activations are held at once
  ParameterCounts parameters;
  int64_t& operator[](MemoryCategory c) { return bytes[static_cast<size_t>(c)]; }
  int64_t operator[](MemoryCategory c) const { return bytes[static_cast<size_t>(c)]; }
};

// One entry a pipeline rank. Its replicas hold the same, but for a row of the optimizer's state
// here and there, of which this is the most. Experts are taken to get equal numbers of tokens.
std::vector<RankMemory> EstimateMemory(const model::ModelConfig& model, const Layout& layout,
                                       const StepShape& step);

// A rollout worker: one rank with the whole model, and those that it reads samples with.
RankMemory EstimateWorkerMemory(const RunConfig& config);
// The same in the learner's turn, where turns are taken.
RankMemory EstimateWaitingWorkerMemory(const RunConfig& config);
// A learner rank's device that it shares with its part of the workers: the most of either's turn.
// In the workers' the learner keeps its weights and its optimizer's state.
RankMemory WithWorkersInTurns(const RankMemory& learner, const RunConfig& config);
// What learner ranks keep published, all together: versions of the policy, and models that workers
// read with.
int64_t EstimatePublishedBytes(const RunConfig& config);

}  // namespace hone::rl
