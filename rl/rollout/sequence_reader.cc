#include "rl/rollout/sequence_reader.h"

#include "data/packing.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

// No loss at all: only what the head says is wanted.
class HeadOnly : public parallel::LossFunction {
 public:
  HeadOnly(bool values, double temperature) : values_(values), temperature_(temperature) {}
  bool values_only() const override { return values_; }
  double temperature() const override { return temperature_; }
  Result Evaluate(Context&, const TokenBatch&, const parallel::HeadOutput&) const override {
    return {};
  }

 private:
  bool values_;
  double temperature_;
};

TokenBatch BatchOf(const std::vector<Sample>& samples) {
  std::vector<data::TokenSequence> sequences;
  for (const Sample& sample : samples) {
    CheckShape(sample.tokens.size() > 1, "[reader] a sequence of {} tokens has nothing to read",
               sample.tokens.size());
    data::TokenSequence& sequence = sequences.emplace_back();
    for (const SampleToken& t : sample.tokens) sequence.tokens.push_back(t.id);
    sequence.weight.assign(sequence.tokens.size(), 0.0f);
  }
  std::vector<const data::TokenSequence*> pointers;
  for (const data::TokenSequence& s : sequences) pointers.push_back(&s);
  return data::MakeBatch(pointers);
}

}  // namespace

SequenceReader::SequenceReader(LeaseKind kind, model::ModelConfig model, DType dtype, int threads,
                               Device device, Numerics numerics)
    : kind_(kind), ctx_(std::make_unique<Context>(device, threads)) {
  ctx_->numerics = numerics;
  model.value_head = kind == LeaseKind::kScore;
  model::StageOptions options;
  options.end_layer = model.num_hidden_layers;
  options.dtype = dtype;
  options.with_gradients = false;
  stage_ = std::make_unique<model::TransformerStage>(*ctx_, model, options);
}

SequenceReader::~SequenceReader() = default;

void SequenceReader::set_version(int64_t version, const std::string& digest) {
  version_ = version;
  digest_ = digest;
}

void SequenceReader::Read(double temperature, std::vector<Sample>* samples) {
  const bool values = kind_ == LeaseKind::kScore;
  TokenBatch batch = BatchOf(*samples);
  batch.Validate(stage_->config().vocab_size, stage_->config().max_position_embeddings, "reader");
  HeadOnly head(values, temperature);
  stage_->BeginStep(/*keep_head_output=*/true);
  stage_->Forward(*ctx_, 0, batch, {}, &head, /*train=*/false);
  const parallel::HeadOutput out = stage_->TakeOutcome(0).head;
  const std::vector<double> of_token = runtime::ToDoubles(values ? out.value_T : out.logp_T);
  for (size_t s = 0; s < samples->size(); ++s) {
    Sample& sample = (*samples)[s];
    const auto begin = static_cast<size_t>(batch.cu_seqlens[s]);
    if (values) {
      sample.rewards["value"] = of_token[static_cast<size_t>(batch.cu_seqlens[s + 1]) - 1];
      continue;
    }
    for (size_t i = 1; i < sample.tokens.size(); ++i) {
      SampleToken& token = sample.tokens[i];
      if (token.source != TokenSource::kModel) continue;
      token.logp = static_cast<float>(of_token[begin + i - 1]);
      token.weight_version = version_;
    }
  }
}

}  // namespace hone::rl
