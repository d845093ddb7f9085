#include "rl/rollout/worker_model.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "rl/rollout/worker_config.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

const std::string kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

WorkerModel::WorkerModel(const std::string& text, int threads, Device device)
    : config_(ReadWorkerConfig(text)), threads_(threads) {
  const WorkerConfig& config = config_;
  tokenizer_ = data::LoadTokenizer(config.tokenizer, config.special_tokens);
  digest_ = ModelDigest(config.model, tokenizer_->Digest());
  ctx_ = std::make_unique<Context>(device, threads);
  ctx_->numerics = config.numerics;
  model::StageOptions options;
  options.end_layer = config.model.num_hidden_layers;
  options.dtype = config.dtype;
  options.with_gradients = false;
  options.mla_decode = config.engine.mla_decode;
  model_ = std::make_unique<model::TransformerStage>(*ctx_, config.model, options);
  engine_ = std::make_unique<InferenceEngine>(
      *ctx_, *model_, config.engine, [tokenizer = tokenizer_.get()](int32_t id) {
        return id < tokenizer->vocab_size() ? tokenizer->TokenBytes(id) : kReplacement;
      });
  think_ = tokenizer_->SpecialId("<think>");
  think_end_ = tokenizer_->SpecialId("</think>");
}

WorkerModel::~WorkerModel() = default;

SequenceReader& WorkerModel::Reader(LeaseKind kind) {
  auto& reader = readers_[kind];
  if (!reader) {
    reader = std::make_unique<SequenceReader>(kind, config_.model, config_.dtype, threads_,
                                              ctx_->device(), config_.numerics);
  }
  return *reader;
}

void WorkerModel::ReleaseMemory() {
  engine_->ReleaseCache();
  readers_.clear();
  ctx_->allocator()->ReleaseCached();
}

std::string WorkerModel::Spell(const std::vector<int32_t>& ids) const {
  std::string text;
  std::vector<int32_t> spelled;
  auto flush = [&] {
    text += tokenizer_->Decode(spelled);
    spelled.clear();
  };
  for (int32_t id : ids) {
    if (id < tokenizer_->vocab_size()) {
      spelled.push_back(id);
    } else {
      flush();
      text += kReplacement;
    }
  }
  flush();
  return text;
}

std::string WorkerModel::LastTurn(const Sample& sample) const {
  size_t begin = sample.tokens.size();
  while (begin > 0 && sample.tokens[begin - 1].source == TokenSource::kModel) --begin;
  std::vector<int32_t> ids;
  for (size_t i = begin; i < sample.tokens.size(); ++i) ids.push_back(sample.tokens[i].id);
  return Spell(ids);
}

void WorkerModel::Describe(Sample* sample, const std::vector<int32_t>& stop_ids) const {
  std::vector<int32_t> completion;
  for (const SampleToken& t : sample->tokens) {
    if (t.source != TokenSource::kPrompt) completion.push_back(t.id);
  }
  bool ended = !completion.empty() &&
               std::find(stop_ids.begin(), stop_ids.end(), completion.back()) != stop_ids.end();
  if (ended) completion.pop_back();
  sample->text = Spell(completion);
  int64_t thinking = 0;
  bool inside = false;
  for (int32_t id : completion) {
    if (id == think_end_) break;
    thinking += inside;
    inside = inside || id == think_;
  }
  sample->rewards["thinking_tokens"] = static_cast<double>(thinking);
}

}  // namespace hone::rl
