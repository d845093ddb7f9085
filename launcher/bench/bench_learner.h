// One rank that trains a benchmark's model: alone, or one of the replicas that mpirun started.
#pragma once

#include <memory>
#include <vector>

#include "launcher/bench/bench.h"
#include "model/transformer_stage.h"
#include "parallel/mesh.h"
#include "parallel/train_engine.h"

namespace hone::launcher {

class BenchLearner {
 public:
  BenchLearner(const BenchModel& model, int threads, bool activation_checkpointing = false);
  void Step(const std::vector<TokenBatch>& packs);
  Context& ctx() { return ctx_; }
  parallel::ProcessGroup& world() { return *mesh_.world(); }
  SlabIndex State();  // weights and optimizer

 private:
  Context ctx_;
  parallel::Mesh mesh_;
  std::unique_ptr<model::TransformerStage> stage_;
  std::unique_ptr<parallel::TrainEngine> engine_;
};

// The group of the processes that mpirun started, or of this one alone.
parallel::GroupPtr BenchWorld();

}  // namespace hone::launcher
