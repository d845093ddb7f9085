#include "model/memory_estimate.h"

#include <algorithm>
#include <charconv>

#include "kernels/dispatch.h"
#include "kernels/token_logprob/head_rows.h"
#include "model/memory_ledger.h"

namespace hone::model {
namespace {

bool Holds(const ModelConfig& config, const StageOptions& stage, const TensorInfo& tensor) {
  if (tensor.mtp) return stage.has_head;
  const int64_t layer = LayerOf(tensor.name);
  if (layer >= 0) return stage.first_layer <= layer && layer < stage.end_layer;
  if (tensor.name != kEmbeddingName) return stage.has_head;
  const bool head_reads_it = config.tie_word_embeddings || config.num_nextn_predict_layers > 0;
  return stage.has_embedding || (stage.has_head && head_reads_it);
}

// A stage's forward and backward, as TransformerStage and OutputHead run them.
class StageWalk {
 public:
  StageWalk(const ModelConfig& config, const StageOptions& stage, const MicrobatchShape& shape)
      : config_(config),
        stage_(stage),
        shape_(shape),
        layers_(config, shape.ep, shape.threads),
        ledger_(tape_, {shape.tokens, runtime::DTypeSize(stage.dtype),
                        runtime::DTypeSize(kernels::AccDType(stage.dtype)), shape.cpu}) {}

  ActivationBytes Run() {
    ActivationBytes bytes;
    bytes.handed_on = ledger_.Bytes(config_.hidden_size);
    Forward(&bytes);
    bytes.kept = tape_.live();
    Backward(false, &bytes.backward_at, &bytes.backward_before);
    Check(tape_.live() == 0, "[memory_estimate] layers [{}, {}): {} bytes are left after backward",
          stage_.first_layer, stage_.end_layer, tape_.live());
    // Again from what is kept, now leaving what the weight half needs.
    tape_.Take(bytes.kept);
    std::vector<int64_t> before;
    Backward(true, &bytes.input_half_at, &before);
    bytes.queued = tape_.live();
    const bool experts = config_.is_moe() && stage_.end_layer > config_.first_k_dense_replace;
    if (shape_.ep > 1 && experts) {
      bytes.exchange = 2 * ledger_.Bytes(config_.num_experts_per_tok * config_.hidden_size);
    }
    return bytes;
  }

 private:
  bool HasMtp() const {
    return config_.num_nextn_predict_layers > 0 &&
           shape_.loss == MicrobatchShape::Loss::kCrossEntropy;
  }
  bool Moe(int64_t layer) const { return config_.IsMoeLayer(layer); }

  void BlockForward(const Ledger& ledger, int64_t layer) const {
    if (stage_.activation_checkpointing) {
      layers_.CheckpointedForward(ledger, Moe(layer));
    } else {
      layers_.BlockForward(ledger, Moe(layer), true);
    }
  }
  void BlockBackward(const Ledger& ledger, int64_t layer, bool split) const {
    if (stage_.activation_checkpointing) {
      layers_.CheckpointedBackward(ledger, Moe(layer), split);
    } else {
      layers_.BlockBackward(ledger, Moe(layer), split);
    }
  }

  void Forward(ActivationBytes* bytes) {
    ledger_.Take(config_.hidden_size);
    for (int64_t layer = stage_.first_layer; layer < stage_.end_layer; ++layer) {
      BlockForward(ledger_, layer);
      bytes->forward_at.push_back(tape_.TakePeak());
      bytes->forward_after.push_back(tape_.live());
    }
    if (stage_.has_head) {
      HeadForward();
      int64_t& last = bytes->forward_at.back();
      last = std::max(last, tape_.TakePeak());
    } else {
      ledger_.Give(config_.hidden_size);  // handed on
    }
  }

  void Backward(bool split, std::vector<int64_t>* peaks, std::vector<int64_t>* before) {
    tape_.TakePeak();
    if (stage_.has_head) {
      HeadBackward(split);
    } else {
      ledger_.Take(config_.hidden_size);
    }
    for (int64_t layer = stage_.end_layer; layer-- > stage_.first_layer;) {
      before->push_back(tape_.live());
      BlockBackward(ledger_, layer, split);
      peaks->push_back(tape_.TakePeak());
    }
    ledger_.Give(config_.hidden_size);  // handed back, or added to the embedding's gradient
  }

  // A block of logits and the gradient of its rows.
  void Logits(const Ledger& l) const {
    const Device device = shape_.cpu ? Device::Cpu() : Device::Cuda(0);
    const int64_t rows =
        std::min(l.sizes().tokens, kernels::LogitBlockRows(device, config_.vocab_size));
    l.WithTokens(rows).Product(config_.vocab_size);
    l.WithTokens(rows).Product(config_.hidden_size);
    l.WithTokens(rows).Give(config_.vocab_size + config_.hidden_size);
  }

  void HeadForward() const {
    const Ledger& l = ledger_;
    const int64_t d = config_.hidden_size;
    l.Take(d);
    if (shape_.loss == MicrobatchShape::Loss::kCrossEntropy) {
      l.TakeWide(1);
      l.Take(d);
      Logits(l);
      l.GiveWide(1);
    } else if (shape_.loss != MicrobatchShape::Loss::kValues) {
      l.TakeWide(3);  // log-probability, entropy, log-sum
      Logits(l);
      l.TakeWide(2);  // gradients of the first two
    }
    if (HasMtp()) MtpForward();
  }

  void HeadBackward(bool split) const {
    const Ledger& l = ledger_;
    const int64_t d = config_.hidden_size;
    if (shape_.loss != MicrobatchShape::Loss::kCrossEntropy) {
      l.Take(d);
      if (shape_.loss != MicrobatchShape::Loss::kValues) {
        Logits(l);
        l.GiveWide(3 + 2);
      }
    }
    if (HasMtp()) MtpBackward(split);
    l.Take(d);
    l.Give(3 * d);  // the norm's input and output, and the gradient of the latter
  }

  // Rows that have a token two ahead.
  Ledger MtpLedger() const {
    return ledger_.WithTokens(std::max<int64_t>(0, shape_.tokens - shape_.sequences));
  }

  void MtpForward() const {
    const Ledger l = MtpLedger();
    const int64_t d = config_.hidden_size;
    l.Take(2 * d + 2 * d);  // embedded, the model's output, both normed and joined
    l.Pass(l.Bytes(d));
    l.Product(d);
    BlockForward(l, config_.num_hidden_layers);
    l.Take(d);
    l.TakeWide(1);
    l.Take(d);
    Logits(l);
    l.GiveWide(1);
    l.Give(d);
  }

  void MtpBackward(bool split) const {
    const Ledger l = MtpLedger();
    const int64_t d = config_.hidden_size;
    l.Take(d);
    BlockBackward(l, config_.num_hidden_layers, split);
    l.Product(2 * d);
    l.Take(2 * d);  // of the embedded rows, and of the model's output
    ledger_.Pass(ledger_.Bytes(d));
    l.Give(2 * d + 2 * d);
    l.Give(2 * d);                  // embedded, the model's output
    l.Give(2 * d);                  // input of the last norm, gradient of what it gave
    if (!split) l.Give(d + 2 * d);  // gradient of eh_proj's output, its input
  }

  const ModelConfig& config_;
  const StageOptions& stage_;
  const MicrobatchShape& shape_;
  LayerWalk layers_;
  Tape tape_;
  Ledger ledger_;
};

int64_t Highest(const std::vector<int64_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

}  // namespace

int64_t LayerOf(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  int64_t layer = -1;
  if (name.starts_with(kPrefix)) {
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  }
  return layer;
}

int64_t ActivationBytes::ForwardPeak() const { return Highest(forward_at); }
int64_t ActivationBytes::BackwardPeak() const { return Highest(backward_at); }
int64_t ActivationBytes::InputHalfPeak() const { return Highest(input_half_at); }

std::vector<TensorInfo> StageTensors(const ModelConfig& config,
                                     const std::vector<TensorInfo>& table,
                                     const StageOptions& stage, int ep) {
  std::vector<TensorInfo> tensors;
  for (const TensorInfo& tensor : table) {
    if (!Holds(config, stage, tensor)) continue;
    tensors.push_back(tensor);
    if (tensor.experts) tensors.back().shape[0] /= ep;
  }
  return tensors;
}

ActivationBytes EstimateActivations(const ModelConfig& config, const StageOptions& stage,
                                    const MicrobatchShape& shape) {
  return StageWalk(config, stage, shape).Run();
}

int64_t RopeTableBytes(const ModelConfig& config, DType dtype) {
  return config.max_position_embeddings * config.rope.dim *
         runtime::DTypeSize(kernels::AccDType(dtype));
}

}  // namespace hone::model
