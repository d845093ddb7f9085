// One optimizer step over any layout: runs the schedule, reduces gradients, clips, updates.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/gradient_reducer.h"
#include "parallel/mesh.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/pipeline_stage.h"
#include "parallel/sharded_optimizer.h"

namespace hone::parallel {

struct PipelineConfig {
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int chunks = 1;  // stages a rank with `interleaved`
  void Read(ConfigReader& reader);
  int chunks_per_rank() const;  // 2 for DualPipe-V
};

class TrainEngine {
 public:
  struct Options {
    PipelineConfig pipeline;
    AdamWConfig optimizer;
    GradientReducer::Options reducer;
    std::function<void()> before_update;  // of parameters and optimizer state; may be null
    // With ctx.fp8: a weight, once quantised, stays so until the last microbatch of a Step or an
    // Evaluate is done, for recomputed forwards too. The same bits.
    bool keep_fp8 = true;
  };
  // `chunks` are this rank's stages, in chunk order. Not owned: context, mesh, chunks. Tied
  // parameters of two chunks of this rank are made to share the storage of the original.
  TrainEngine(Context& ctx, const Mesh& mesh, std::vector<PipelineStage*> chunks, Options options);
  ~TrainEngine();

  struct StepResult {
    double loss = 0;  // Σ w ℓ over the whole step, the same on every rank
    double gradient_norm = 0;
    bool skipped = false;  // a gradient was not finite, or too large (sharded_optimizer.h)
    MetricSums metrics;    // summed over the whole step, the same on every rank
  };
  // `microbatches`: this dp rank's; every dp rank passes the same number (empty batches are
  // allowed: a batch of zero tokens) and every pp rank of a pipeline the same batches.
  StepResult Step(const std::vector<TokenBatch>& microbatches, const LossFunction& loss, double lr);

  // Forward only, any number of microbatches (the same on every rank that shares a group). Outcomes
  // of this rank's microbatches, in order, on the rank with the last stage (empty elsewhere).
  std::vector<PipelineStage::Outcome> Evaluate(const std::vector<TokenBatch>& microbatches,
                                               const LossFunction& loss, bool keep_head_output);

  // Gives back the memory of gradients and of their sums, of which nothing is lost between steps.
  // It is there again with the next Step, or when the other is called, as before another engine is
  // made of the same chunks. Collective, both.
  void ReleaseGradients();
  void RestoreGradients();

  ShardedOptimizer& optimizer();
  std::vector<Parameter*> Parameters();

  // Proves at start-up, with known inputs, that gradients are summed over dp and that all ranks
  // hold the same weights and config digest; CommError names the first rank that differs.
  void SelfCheck(const std::string& config_digest);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Runs one rank's list of actions. Sends do not wait; receives are posted when an action needs
// them.
class PipelineExecutor {
 public:
  // `chunks`: this rank's stages, in chunk order; not owned.
  PipelineExecutor(const PipelineShape& shape, GroupPtr pp, std::vector<PipelineStage*> chunks);
  // Returns when every action has run and every message has left. With `on_gradient` set it is
  // called once for each parameter of the chunks, when nothing more is added to its gradient in
  // this run.
  void Run(Context& ctx, const std::vector<Action>& actions,
           const std::vector<TokenBatch>& microbatches, const LossFunction* loss, bool train,
           const PipelineStage::GradientListener& on_gradient = nullptr);

 private:
  PipelineShape shape_;
  GroupPtr pp_;
  std::vector<PipelineStage*> chunks_;
};

}  // namespace hone::parallel
