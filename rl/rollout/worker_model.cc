#include "rl/rollout/worker_model.h"

#include <nlohmann/json.hpp>

#include "rl/rollout/worker_config.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

const std::string kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

WorkerModel::WorkerModel(const std::string& text, int threads) {
  WorkerConfig config = ReadWorkerConfig(text);
  tokenizer_ = data::LoadTokenizer(config.tokenizer, config.special_tokens);
  digest_ = ModelDigest(config.model, tokenizer_->Digest());
  ctx_ = std::make_unique<Context>(Device::Cpu(), threads);
  model::StageOptions options;
  options.end_layer = config.model.num_hidden_layers;
  options.dtype = config.dtype;
  options.with_gradients = false;
  options.mla_decode = config.engine.mla_decode;
  model_ = std::make_unique<model::TransformerStage>(*ctx_, config.model, options);
  engine_config_ = config.engine;
  engine_ = std::make_unique<InferenceEngine>(
      *ctx_, *model_, engine_config_, [tokenizer = tokenizer_.get()](int32_t id) {
        return id < tokenizer->vocab_size() ? tokenizer->TokenBytes(id) : kReplacement;
      });
  think_ = tokenizer_->SpecialId("<think>");
  think_end_ = tokenizer_->SpecialId("</think>");
}

WorkerModel::~WorkerModel() = default;

void WorkerModel::Describe(Sample* sample) const {
  std::vector<int32_t> completion;
  for (const SampleToken& t : sample->tokens) {
    if (t.source != TokenSource::kPrompt) completion.push_back(t.id);
  }
  bool ended = !completion.empty() && completion.back() == tokenizer_->eos_id();
  if (ended) completion.pop_back();
  // A model's vocabulary may be padded beyond its tokenizer's: such a token is drawn, but spells
  // nothing.
  std::vector<int32_t> spelled;
  auto flush = [&] {
    sample->text += tokenizer_->Decode(spelled);
    spelled.clear();
  };
  sample->text.clear();
  for (int32_t id : completion) {
    if (id < tokenizer_->vocab_size()) {
      spelled.push_back(id);
    } else {
      flush();
      sample->text += kReplacement;
    }
  }
  flush();
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
