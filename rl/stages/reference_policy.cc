#include "rl/stages/reference_policy.h"

#include <algorithm>
#include <map>
#include <set>

#include "model/families/hugging_face.h"
#include "rl/stages/logprobs.h"
#include "rl/stages/sample_pool.h"

namespace hone::rl {
namespace {

constexpr char kSuffix[] = "-reference";
constexpr char kRemoved[] = ".removed.tmp";

// Renamed first: a folder half removed must not have a final name.
void Remove(FileSystem& fs, const std::string& folder, const std::vector<int64_t>& steps) {
  for (int64_t step : steps) {
    const std::string path = folder + "/" + runtime::CheckpointStepName(step);
    fs.Rename(path, path + kRemoved);
  }
  for (const std::string& name : fs.List(folder)) {
    if (name.ends_with(kRemoved)) fs.RemoveAll(folder + "/" + name);
  }
}

SlabIndex Prefixed(SlabIndex slabs) {
  for (SlabTensor& s : slabs) s.slab.name = "model/" + s.slab.name;
  return slabs;
}

// Slabs like these in pinned host memory.
SlabIndex MakeHostSlabs(SlabIndex slabs) {
  for (SlabTensor& s : slabs) {
    std::shared_ptr<void> memory = runtime::MakePinned(s.tensor.bytes());
    s.tensor = Tensor(memory.get(), s.tensor.shape(), s.tensor.dtype(), Device::Cpu(), memory);
  }
  return slabs;
}

}  // namespace

// Frozen chunks of the learner's layout, and forward passes over them.
class ReferencePolicy::Chunks {
 public:
  explicit Chunks(Learner& learner) : learner_(learner), chunks_(learner.MakeFrozenChunks()) {
    std::vector<parallel::PipelineStage*> stages;
    for (auto& chunk : chunks_) stages.push_back(chunk.get());
    parallel::TrainEngine::Options options;
    options.pipeline = learner.config().pipeline;
    options.keep_fp8 = learner.config().train.keep_fp8;
    engine_ =
        std::make_unique<parallel::TrainEngine>(learner.ctx(), learner.mesh(), stages, options);
  }
  // From a checkpoint or a Hugging Face folder; "": the run's random start.
  void Load(FileSystem& fs, const std::string& path) {
    if (path.empty()) {
      const int threads = learner_.ctx().pool().threads();
      for (auto& chunk : chunks_) chunk->Initialize(learner_.config().seed, threads);
    } else if (fs.Exists(path + "/index.h5")) {
      learner_.LoadSlabs(path, Prefixed(State()));
    } else {
      for (auto& chunk : chunks_) model::LoadHuggingFace(path, *chunk);
    }
  }
  SlabIndex State() const { return Learner::StateOf(chunks_, ""); }
  parallel::TrainEngine& engine() { return *engine_; }

 private:
  Learner& learner_;
  std::vector<std::unique_ptr<model::TransformerStage>> chunks_;
  std::unique_ptr<parallel::TrainEngine> engine_;
};

ReferencePolicy::ReferencePolicy(Environment& env, const StageConfig& stage)
    : env_(env), stage_(stage) {
  if (stage.grpo.reference == GrpoConfig::Place::kLearner) {
    chunks_ = std::make_unique<Chunks>(env.learner);
  }
}

ReferencePolicy::~ReferencePolicy() {
  if (in_pool()) env_.pool->Release(kName);
}

void ReferencePolicy::Put(const SlabIndex& weights) {
  if (in_pool()) {
    pinned_ = env_.pool->Pin(kName, weights);
    return;
  }
  if (host_.empty()) host_ = MakeHostSlabs(weights);
  runtime::CopySlabs(weights, host_);
}

SlabIndex ReferencePolicy::Weights() const {
  if (chunks_) return chunks_->State();
  return in_pool() ? env_.pool->Pinned(kName) : host_;
}

void ReferencePolicy::Refresh(int64_t step) {
  step_ = step;
  if (chunks_) {
    runtime::CopySlabs(env_.learner.Weights(), chunks_->State());
  } else {
    Put(env_.learner.Weights());
  }
}

void ReferencePolicy::Restore(int64_t step, const std::string& start) {
  step_ = saved_step_ = step;
  const std::string path = step == 0 ? start : Path(step);
  FileSystem& fs = env_.directory.fs();
  Check<CheckpointError>(path.empty() || fs.Exists(path),
                         "{}: stage '{}' has its reference policy in {}, which is gone: put it "
                         "back, or begin the stage anew by removing {}",
                         stage_.where, stage_.name, path, env_.directory.checkpoints(stage_.name));
  if (chunks_) return chunks_->Load(fs, path);
  Chunks loaded(env_.learner);  // only until it is where it belongs
  loaded.Load(fs, path);
  Put(loaded.State());
}

std::string ReferencePolicy::Path(int64_t step) const {
  return env_.directory.checkpoints(stage_.name) + kSuffix + "/" +
         runtime::CheckpointStepName(step);
}

void ReferencePolicy::Save() {
  if (step_ == saved_step_) return;
  env_.learner.SaveSlabs(Path(step_), Prefixed(Weights()));
  saved_step_ = step_;
}

// A checkpoint of step s needs the newest reference of a step up to s. Those beyond the newest
// checkpoint are for the next.
void ReferencePolicy::Prune(FileSystem& fs, const std::string& checkpoints) {
  const std::string folder = checkpoints + kSuffix;
  if (!fs.Exists(folder)) return;
  const std::vector<int64_t> references = runtime::ListCheckpointSteps(fs, folder);
  const std::vector<int64_t> steps = runtime::ListCheckpointSteps(fs, checkpoints);
  std::set<int64_t> needed;
  for (int64_t step : steps) {
    auto after = std::upper_bound(references.begin(), references.end(), step);
    if (after != references.begin()) needed.insert(*std::prev(after));
  }
  std::vector<int64_t> old;
  for (int64_t reference : references) {
    bool ahead = steps.empty() || reference > steps.back();
    if (!ahead && needed.count(reference) == 0) old.push_back(reference);
  }
  Remove(fs, folder, old);
}

void ReferencePolicy::DropAhead(FileSystem& fs, const std::string& checkpoints) {
  const std::string folder = checkpoints + kSuffix;
  if (!fs.Exists(folder)) return;
  const std::vector<int64_t> steps = runtime::ListCheckpointSteps(fs, checkpoints);
  std::vector<int64_t> ahead;
  for (int64_t reference : runtime::ListCheckpointSteps(fs, folder)) {
    if (steps.empty() || reference > steps.back()) ahead.push_back(reference);
  }
  Remove(fs, folder, ahead);
}

std::vector<std::vector<float>> ReferencePolicy::Logprobs(const RolloutBatch& batch,
                                                          int64_t rollout) {
  if (in_pool()) return ReadInPool(batch, rollout);
  StageConfig stage = stage_;
  stage.grpo.replay_routing = false;  // it chooses its own experts: the recorded are the policy's
  if (chunks_) return LearnerLogprobs(env_, stage, batch, chunks_->engine());
  Chunks visiting(env_.learner);
  runtime::CopySlabs(host_, visiting.State());
  return LearnerLogprobs(env_, stage, batch, visiting.engine());
}

std::vector<std::vector<float>> ReferencePolicy::ReadInPool(const RolloutBatch& batch,
                                                            int64_t rollout) {
  SamplePool::Reading reading;
  reading.kind = LeaseKind::kLogprob;
  reading.stage = stage_.name + "/reference";
  reading.rollout = rollout;
  reading.weights = pinned_;
  reading.temperature = stage_.grpo.loss.temperature;
  std::map<SampleKey, std::vector<float>> read;
  for (const Sample& sample : env_.pool->Read(reading, batch.samples)) {
    std::vector<float>& logp = read[{stage_.name, rollout, sample.key.prompt, sample.key.sample}];
    for (size_t i = static_cast<size_t>(sample.prompt_tokens()); i < sample.tokens.size(); ++i) {
      logp.push_back(sample.tokens[i].logp);
    }
  }
  std::vector<std::vector<float>> logp;
  for (const Sample& sample : batch.samples) {
    logp.push_back(read.at({stage_.name, rollout, sample.key.prompt, sample.key.sample}));
  }
  return logp;
}

}  // namespace hone::rl
