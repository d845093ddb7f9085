#include "launcher/bench/bench_learner.h"

#include "rl/policy_loss.h"

namespace hone::launcher {
namespace {

constexpr double kLearningRate = 1e-4;

model::StageOptions WholeModel(const model::ModelConfig& config, bool activation_checkpointing) {
  model::StageOptions options;
  options.end_layer = config.num_hidden_layers;
  options.activation_checkpointing = activation_checkpointing;
  return options;
}

}  // namespace

parallel::GroupPtr BenchWorld() {
  static const parallel::GroupPtr world =
      parallel::StartedByMpi() ? parallel::MakeMpiGroup() : parallel::MakeSingleGroup();
  return world;
}

BenchLearner::BenchLearner(const BenchModel& model, int threads, bool activation_checkpointing)
    : ctx_(Device::Cpu(), threads),
      mesh_({.pp = 1, .dp = BenchWorld()->size(), .ep = 1}, BenchWorld()),
      stage_(std::make_unique<model::TransformerStage>(
          ctx_, model.config, WholeModel(model.config, activation_checkpointing))) {
  stage_->Initialize(1);
  engine_ = std::make_unique<parallel::TrainEngine>(
      ctx_, mesh_, std::vector<parallel::PipelineStage*>{stage_.get()},
      parallel::TrainEngine::Options{});
}

void BenchLearner::Step(const std::vector<TokenBatch>& packs) {
  engine_->Step(packs, rl::CrossEntropyLoss(), kLearningRate);
}

SlabIndex BenchLearner::State() {
  SlabIndex all = stage_->State();
  for (SlabTensor& s : all) s.slab.name = "model/" + s.slab.name;
  for (SlabTensor& s : engine_->optimizer().State()) all.push_back(std::move(s));
  return all;
}

}  // namespace hone::launcher
