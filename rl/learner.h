// One learner rank: its stages of the model, the engine that trains them, and their checkpoints.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/transformer_stage.h"
#include "parallel/mesh.h"
#include "parallel/train_engine.h"
#include "rl/run_config.h"
#include "runtime/checkpoint/checkpoint.h"

namespace hone::rl {

class Learner {
 public:
  // Collective over the mesh. Parameters are allocated, not set: that is for Initialize, LoadModel
  // or Load.
  Learner(Context& ctx, const parallel::Mesh& mesh, const RunConfig& config, FileSystem& fs);
  ~Learner();

  // Fresh optimizer state under a stage's settings; weights stay. Multi-token prediction has a loss
  // of its own under cross-entropy only: in stages with another loss it is to be kFrozen, or weight
  // decay would wear it down.
  enum class Mtp { kTrained, kFrozen };
  void BeginStage(const parallel::AdamWConfig& optimizer, Mtp mtp = Mtp::kTrained);
  bool in_stage() const { return engine_ != nullptr; }
  parallel::TrainEngine& engine() { return *engine_; }  // in a stage
  Context& ctx() { return ctx_; }
  const parallel::Mesh& mesh() const { return mesh_; }
  const RunConfig& config() const { return config_; }
  // Of this run, its number of microbatches left open.
  parallel::PipelineShape pipeline_shape() const;

  void Initialize();  // to the run's random start
  // Model weights from a checkpoint folder or a Hugging Face folder. kFresh: a value head, which
  // policies have none of, has its random start.
  enum class ValueHead { kLoad, kFresh };
  void LoadModel(const std::string& path, ValueHead value_head = ValueHead::kLoad);
  // Proves that gradients are summed over the replicas, and that all ranks have the same config and
  // hold the same weights; CommError names the first rank that differs. Collective, in a stage.
  void SelfCheck();
  // Names and slabs of this rank's weights and buffers, as published to workers.
  SlabIndex Weights();

  // Weights, optimizer and `metadata` (JSON, rank 0's counts). Asynchronous if configured.
  void Save(const std::string& dir, const std::string& metadata,
            std::function<void()> on_committed = nullptr);
  void WaitForSave();
  // Tensors by themselves, without optimizer: the reference policy.
  void SaveSlabs(const std::string& dir, const SlabIndex& slabs);
  void LoadSlabs(const std::string& dir, const SlabIndex& slabs) const;
  // Everything that Save wrote; returns the metadata.
  std::string Load(const std::string& dir);

  // Frees the optimizer state, when another model is to be trained beside this one.
  void EndStage();
  // Gives what it can of its device's memory to others: gradients, and what allocators keep.
  // Weights and, unless they are offloaded, optimizer states stay. The rest comes back by itself
  // when it is needed. Collective.
  void ReleaseMemory();

  // The chunks of a frozen model of the same layout: the reference policy; with a value head, a
  // reward model.
  std::vector<std::unique_ptr<model::TransformerStage>> MakeFrozenChunks() const;
  std::vector<std::unique_ptr<model::TransformerStage>> MakeFrozenChunks(
      const model::ModelConfig& model) const;
  static SlabIndex StateOf(const std::vector<std::unique_ptr<model::TransformerStage>>& chunks,
                           const std::string& prefix);
  const std::vector<std::unique_ptr<model::TransformerStage>>& chunks() const { return chunks_; }

 private:
  void Initialize(std::string_view prefix);
  std::vector<std::unique_ptr<model::TransformerStage>> MakeChunks(const model::ModelConfig& model,
                                                                   bool with_gradients) const;

  Context& ctx_;
  const parallel::Mesh& mesh_;
  const RunConfig& config_;
  FileSystem& fs_;
  std::vector<std::unique_ptr<model::TransformerStage>> chunks_;
  std::unique_ptr<parallel::TrainEngine> engine_;
  std::unique_ptr<runtime::CheckpointWriter> writer_;
};

}  // namespace hone::rl
