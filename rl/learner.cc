#include "rl/learner.h"

#include "model/families/hugging_face.h"
#include "model/families/tensor_table.h"
#include "parallel/comm/process_group.h"
#include "runtime/philox.h"

namespace hone::rl {
Learner::Learner(Context& ctx, const parallel::Mesh& mesh, const RunConfig& config, FileSystem& fs)
    : ctx_(ctx), mesh_(mesh), config_(config), fs_(fs), chunks_(MakeChunks(config.model, true)) {
  // Background saves agree among themselves on a group of their own, so that they never stand
  // between two collectives of a training step.
  auto save_group = mesh.world()->Split(0, mesh.world()->rank(), "checkpoint");
  writer_ = std::make_unique<runtime::CheckpointWriter>(
      fs, parallel::MakeRendezvous(save_group),
      runtime::CheckpointWriter::Options{.asynchronous = config.train.asynchronous_checkpoints,
                                         .stream = &ctx.stream()});
}

Learner::~Learner() = default;

parallel::PipelineShape Learner::pipeline_shape() const {
  parallel::PipelineShape shape;
  shape.kind = config_.pipeline.schedule;
  shape.ranks = config_.mesh.pp;
  shape.chunks = config_.pipeline.chunks_per_rank();
  return shape;
}

std::vector<std::unique_ptr<model::TransformerStage>> Learner::MakeChunks(
    const model::ModelConfig& model, bool with_gradients) const {
  const parallel::PipelineShape shape = pipeline_shape();
  model::StageOptions base;
  base.dtype = config_.train.dtype;
  base.activation_checkpointing = config_.train.activation_checkpointing;
  base.with_gradients = with_gradients;
  auto split = model::SplitLayers(model, shape.stages(), base);
  std::vector<std::unique_ptr<model::TransformerStage>> chunks;
  for (int c = 0; c < shape.chunks; ++c) {
    chunks.push_back(std::make_unique<model::TransformerStage>(
        ctx_, model, split[shape.StageOf(mesh_.pp_index(), c)], mesh_.ep()));
  }
  return chunks;
}

std::vector<std::unique_ptr<model::TransformerStage>> Learner::MakeFrozenChunks() const {
  return MakeChunks(config_.model, false);
}

std::vector<std::unique_ptr<model::TransformerStage>> Learner::MakeFrozenChunks(
    const model::ModelConfig& model) const {
  return MakeChunks(model, false);
}

void Learner::BeginStage(const parallel::AdamWConfig& optimizer, Mtp mtp) {
  EndStage();  // frees the old optimizer state before the new is made
  const std::string predictor = fmt::format("model.layers.{}.", config_.model.num_hidden_layers);
  std::vector<parallel::PipelineStage*> stages;
  for (auto& chunk : chunks_) {
    stages.push_back(chunk.get());
    for (Parameter* p : chunk->Parameters()) {
      if (!p->spec.name.starts_with(predictor)) continue;
      p->spec.trainable = p->gradient.defined() && mtp == Mtp::kTrained;
    }
  }
  parallel::TrainEngine::Options options;
  options.pipeline = config_.pipeline;
  options.keep_fp8 = config_.train.keep_fp8;
  options.optimizer = optimizer;
  options.before_update = [this] { writer_->Hold(); };
  engine_ = std::make_unique<parallel::TrainEngine>(ctx_, mesh_, stages, options);
}

void Learner::Initialize() { Initialize(""); }

void Learner::Initialize(std::string_view prefix) {
  for (auto& chunk : chunks_) chunk->Initialize(config_.seed, ctx_.pool().threads(), prefix);
}

void Learner::SelfCheck() {
  engine_->SelfCheck(fmt::format("{:016x}", HashName(config_.resolved_yaml)));
}

SlabIndex Learner::StateOf(const std::vector<std::unique_ptr<model::TransformerStage>>& chunks,
                           const std::string& prefix) {
  SlabIndex all;
  for (auto& chunk : chunks) {
    for (SlabTensor s : chunk->State()) {
      s.slab.name = prefix + s.slab.name;
      all.push_back(std::move(s));
    }
  }
  return all;
}

SlabIndex Learner::Weights() { return StateOf(chunks_, ""); }

void Learner::LoadModel(const std::string& path, ValueHead value_head) {
  if (value_head == ValueHead::kFresh) Initialize(model::kValueHeadName);
  if (fs_.Exists(path + "/index.h5")) {
    SlabIndex wanted = StateOf(chunks_, model::kModelPrefix);
    if (value_head == ValueHead::kFresh) {
      std::erase_if(wanted, [](const SlabTensor& s) {
        return s.slab.name == model::kModelPrefix + std::string(model::kValueHeadName);
      });
    }
    runtime::CheckpointReader(fs_, path).Load(wanted);
  } else {
    Check<ConfigError>(fs_.Exists(path + "/config.json"),
                       "[learner] {} is neither a checkpoint (index.h5) nor a Hugging Face folder "
                       "(config.json)",
                       path);
    for (auto& chunk : chunks_) model::LoadHuggingFace(path, *chunk);
  }
}

void Learner::Save(const std::string& dir, const std::string& metadata,
                   std::function<void()> on_committed) {
  runtime::CheckpointContents contents;
  contents.slabs = StateOf(chunks_, model::kModelPrefix);
  if (engine_) {
    for (SlabTensor& s : engine_->optimizer().State()) contents.slabs.push_back(std::move(s));
  }
  contents.metadata = metadata;
  writer_->Save(dir, contents, std::move(on_committed));
}

void Learner::SaveSlabs(const std::string& dir, const SlabIndex& slabs) {
  writer_->Save(dir, {.slabs = slabs, .metadata = "{}"});
}

void Learner::LoadSlabs(const std::string& dir, const SlabIndex& slabs) const {
  runtime::CheckpointReader(fs_, dir).Load(slabs);
}

void Learner::EndStage() {
  writer_->Hold();
  if (engine_) engine_->RestoreGradients();
  engine_.reset();
}

void Learner::ReleaseMemory() {
  if (engine_) engine_->ReleaseGradients();
  ctx_.allocator()->ReleaseCached();
}

void Learner::WaitForSave() { writer_->Wait(); }

std::string Learner::Load(const std::string& dir) {
  runtime::CheckpointReader reader(fs_, dir);
  SlabIndex all = StateOf(chunks_, model::kModelPrefix);
  for (SlabTensor& s : engine_->optimizer().State()) all.push_back(std::move(s));
  reader.Load(all);
  engine_->optimizer().PublishMasters();
  return reader.metadata();
}

}  // namespace hone::rl
