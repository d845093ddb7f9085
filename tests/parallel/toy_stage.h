// A small model in f64 for pipeline tests, written with plain loops so that it shares no code with
// what it tests.
//
//   x = embedding[token];  L times: x += tanh(x·W + b), s += Σ_d x_d · g_d;
//   logp = log softmax(head · x)[target] + s
// Each layer adds kToyAuxiliary a token to the loss. Every stage hands on two tensors, x [T, D] and
// s [T]. T tokens, D width, V vocabulary.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/pipeline_schedule.h"
#include "parallel/pipeline_stage.h"
#include "runtime/philox.h"

namespace hone::parallel::testing {

inline constexpr int kToyLayers = 8, kToyWidth = 5, kToyVocab = 7;
inline constexpr double kToyAuxiliary = 1e-3;

inline double ToyInitial(const std::string& name, int64_t i) {
  return 0.4 * RandomStream({7, HashName(name)}).Normal(static_cast<uint64_t>(i));
}

// Σ w_t · (−logp_t), and the number of tokens and the sum and the largest of logp² as metrics.
class ToyLoss : public LossFunction {
 public:
  Result Evaluate(Context& ctx, const TokenBatch& batch, const HeadOutput& out) const override {
    Result result;
    result.gradient.dlogp_T = ctx.Zeros({batch.tokens()}, DType::kF64);
    double squares = 0, largest = 0;
    for (int64_t t = 0; t < batch.tokens(); ++t) {
      const double logp = out.logp_T.data<double>()[t], weight = batch.loss_weight_T[t];
      result.loss -= weight * logp;
      result.gradient.dlogp_T.data<double>()[t] = -weight;
      squares += logp * logp;
      largest = std::max(largest, logp * logp);
    }
    result.metrics = {{"tokens", static_cast<double>(batch.tokens())},
                      {"squares", squares},
                      {"largest_square", largest}};
    return result;
  }
};

class ToyStage : public PipelineStage {
 public:
  // Layers [first, end) of kToyLayers. `report`: tells which gradients are final, layer by layer.
  // `tied`: the head is the embedding, of which a last stage without it has a replica.
  ToyStage(Context& ctx, int first, int end, bool report = true, bool tied = false)
      : first_(first), end_(end), report_(report) {
    if (first == 0) embedding_ = Make(ctx, "embedding", {kToyVocab, kToyWidth});
    for (int l = first; l < end; ++l) {
      const std::string at = "layers." + std::to_string(l);
      layers_.push_back({Make(ctx, at + ".weight", {kToyWidth, kToyWidth}),
                         Make(ctx, at + ".bias", {kToyWidth}),
                         Make(ctx, at + ".skip", {kToyWidth})});
    }
    if (is_last() && tied && embedding_ != nullptr) {
      head_ = embedding_;
    } else if (is_last()) {
      head_ = Make(ctx, "head", {kToyVocab, kToyWidth}, tied ? "embedding" : "");
    }
    counter_ = Make(ctx, "layers." + std::to_string(first) + ".counter", {1});
    counter_->spec.buffer = true;
    counter_->spec.trainable = false;
    counter_->gradient = Tensor();
    counter_->value.data<double>()[0] = 0;
  }

  std::vector<Parameter*> Parameters() override {
    std::vector<Parameter*> all;
    for (const auto& p : parameters_) all.push_back(p.get());
    return all;
  }
  StageIO InputBuffers(Context& ctx, const TokenBatch& batch) override {
    return {{"x", ctx.Empty({batch.tokens(), kToyWidth}, DType::kF64)},
            {"s", ctx.Empty({batch.tokens()}, DType::kF64)}};
  }

  StageIO Forward(Context& ctx, int microbatch, const TokenBatch& batch, StageIO in,
                  const LossFunction* loss, bool train) override {
    if (forward_throws_on == microbatch) throw Error("[toy] forward gave up");
    const int64_t T = batch.tokens();
    Saved saved;
    saved.batch = batch;
    Tensor x = first_ == 0 ? Embed(ctx, batch) : ctx.Clone(in.at(0).second);
    Tensor s = first_ == 0 ? ctx.Zeros({T}, DType::kF64) : ctx.Clone(in.at(1).second);
    for (const Layer& layer : layers_) {
      Tensor h = ctx.Empty({T, kToyWidth}, DType::kF64);
      saved.x.push_back(x);
      x = ForwardLayer(ctx, layer, x, s, h);
      saved.h.push_back(h);
    }
    saved.last_x = x;
    counted_ += static_cast<double>(T);
    if (is_last()) Head(ctx, microbatch, batch, x, s, loss, saved);
    if (train) auxiliary_ += kToyAuxiliary * static_cast<double>(T) * (end_ - first_);
    if (train) {
      records_[microbatch] = std::move(saved);
      peak_records = std::max(peak_records, records_.size());
    }
    if (is_last()) return {};
    return {{"x", x}, {"s", s}};
  }

  StageIO Backward(Context& ctx, int microbatch, StageIO doutput) override {
    auto node = records_.extract(microbatch);
    Check(!node.empty(), "[toy] no record of microbatch {}", microbatch);
    auto saved = std::make_shared<Saved>(std::move(node.mapped()));
    const int64_t T = saved->batch.tokens();
    Tensor dx, ds;
    if (is_last()) {
      std::tie(dx, ds) = HeadBackward(ctx, saved);
    } else {
      dx = ctx.Clone(doutput.at(0).second);
      ds = ctx.Clone(doutput.at(1).second);
    }
    for (size_t l = layers_.size(); l-- > 0;) {
      BackwardLayer(ctx, layers_[l], saved, l, dx, ds);
      if (report_) {
        GradientsDone(ctx, {layers_[l].weight, layers_[l].bias, layers_[l].skip});
      }
    }
    if (first_ != 0) return {{"x", dx}, {"s", ds}};
    for (int64_t t = 0; t < T; ++t) {
      for (int d = 0; d < kToyWidth; ++d) {
        Gradient(embedding_, saved->batch.token_T[t] * kToyWidth + d) += At(dx, t, d);
      }
    }
    return {};
  }

  Outcome TakeOutcome(int microbatch) override {
    auto node = outcomes_.extract(microbatch);
    Check(!node.empty(), "[toy] no outcome of microbatch {}", microbatch);
    return std::move(node.mapped());
  }
  Outcome TakeAuxiliary() override {
    const double loss = std::exchange(auxiliary_, 0.0);
    return {loss, {{"auxiliary", loss}}, {}};
  }
  bool is_last() const override { return end_ == kToyLayers; }
  void BeginStep(bool keep_head_output) override {
    records_.clear();
    outcomes_.clear();
    counted_ = 0;
    keep_ = keep_head_output;
  }
  void EndStep(Context&, const std::function<void(std::vector<double>&)>& sum) override {
    std::vector<double> counted = {counted_};
    sum(counted);
    counter_->value.data<double>()[0] += counted[0];
  }

  int forward_throws_on = -1;
  size_t peak_records = 0;
  size_t records() const { return records_.size(); }

 private:
  struct Layer {
    Parameter *weight, *bias, *skip;
  };
  struct Saved {
    TokenBatch batch;
    std::vector<Tensor> x, h;  // each layer's input and its tanh
    Tensor last_x, softmax_TV, dlogp_T;
  };

  static double& At(const Tensor& x, int64_t t, int d) { return x.row<double>(t)[d]; }
  static double& Gradient(Parameter* p, int64_t i) { return p->gradient.data<double>()[i]; }

  Parameter* Make(Context& ctx, const std::string& name, Shape shape,
                  const std::string& tied_to = "") {
    auto p = std::make_unique<Parameter>();
    p->spec.name = name;
    p->spec.tied_to = tied_to;
    p->spec.slab = Slab::Whole(name, shape);
    p->spec.storage = p->spec.gradient = p->spec.master = DType::kF64;
    p->value = ctx.Zeros(shape, DType::kF64, MemoryCategory::kWeights);
    p->gradient = ctx.Zeros(shape, DType::kF64, MemoryCategory::kGradients);
    for (int64_t i = 0; i < p->value.size(); ++i)
      p->value.data<double>()[i] = ToyInitial(tied_to.empty() ? name : tied_to, i);
    parameters_.push_back(std::move(p));
    return parameters_.back().get();
  }

  Tensor Embed(Context& ctx, const TokenBatch& batch) {
    Tensor x = ctx.Empty({batch.tokens(), kToyWidth}, DType::kF64);
    for (int64_t t = 0; t < batch.tokens(); ++t) {
      for (int d = 0; d < kToyWidth; ++d) At(x, t, d) = At(embedding_->value, batch.token_T[t], d);
    }
    return x;
  }

  static Tensor ForwardLayer(Context& ctx, const Layer& layer, const Tensor& x, const Tensor& s,
                             const Tensor& h) {
    Tensor y = ctx.EmptyLike(x);
    for (int64_t t = 0; t < x.dim(0); ++t) {
      for (int j = 0; j < kToyWidth; ++j) {
        double a = layer.bias->value.data<double>()[j];
        for (int i = 0; i < kToyWidth; ++i) a += At(x, t, i) * At(layer.weight->value, i, j);
        At(h, t, j) = std::tanh(a);
        At(y, t, j) = At(x, t, j) + At(h, t, j);
        s.data<double>()[t] += At(y, t, j) * layer.skip->value.data<double>()[j];
      }
    }
    return y;
  }

  void BackwardLayer(Context& ctx, const Layer& layer, const std::shared_ptr<Saved>& saved,
                     size_t l, Tensor& dx, const Tensor& ds) {
    const Tensor x = saved->x[l], h = saved->h[l];
    Tensor da = ctx.EmptyLike(x), dinput = ctx.EmptyLike(x);
    for (int64_t t = 0; t < x.dim(0); ++t) {
      for (int j = 0; j < kToyWidth; ++j) {
        const double skip = layer.skip->value.data<double>()[j], d = ds.data<double>()[t];
        Gradient(layer.skip, j) += d * (At(x, t, j) + At(h, t, j));
        At(dx, t, j) += d * skip;
        At(da, t, j) = At(dx, t, j) * (1 - At(h, t, j) * At(h, t, j));
        Gradient(layer.bias, j) += At(da, t, j);
      }
      for (int i = 0; i < kToyWidth; ++i) {
        double sum = At(dx, t, i);
        for (int j = 0; j < kToyWidth; ++j) sum += At(da, t, j) * At(layer.weight->value, i, j);
        At(dinput, t, i) = sum;
      }
    }
    dx = dinput;
    auto weight_half = [weight = layer.weight, x, da] {
      for (int64_t t = 0; t < x.dim(0); ++t) {
        for (int i = 0; i < kToyWidth; ++i) {
          for (int j = 0; j < kToyWidth; ++j) {
            Gradient(weight, i * kToyWidth + j) += At(x, t, i) * At(da, t, j);
          }
        }
      }
    };
    if (ctx.weight_gradients != nullptr) {
      ctx.weight_gradients->push_back(weight_half);
    } else {
      weight_half();
    }
  }

  void Head(Context& ctx, int microbatch, const TokenBatch& batch, const Tensor& x, const Tensor& s,
            const LossFunction* loss, Saved& saved) {
    const int64_t T = batch.tokens();
    HeadOutput out;
    out.logp_T = ctx.Empty({T}, DType::kF64);
    saved.softmax_TV = ctx.Empty({T, kToyVocab}, DType::kF64);
    for (int64_t t = 0; t < T; ++t) {
      double total = 0;
      for (int v = 0; v < kToyVocab; ++v) {
        double logit = 0;
        for (int d = 0; d < kToyWidth; ++d) logit += At(x, t, d) * At(head_->value, v, d);
        total += At(saved.softmax_TV, t, v) = std::exp(logit);
      }
      for (int v = 0; v < kToyVocab; ++v) At(saved.softmax_TV, t, v) /= total;
      out.logp_T.data<double>()[t] =
          std::log(At(saved.softmax_TV, t, batch.target_T[t])) + s.data<double>()[t];
    }
    Outcome& outcome = outcomes_[microbatch];
    if (loss != nullptr) {
      auto result = loss->Evaluate(ctx, batch, out);
      outcome.loss = result.loss;
      outcome.metrics = result.metrics;
      saved.dlogp_T = result.gradient.dlogp_T;
    }
    if (keep_) outcome.head = out;
  }

  std::pair<Tensor, Tensor> HeadBackward(Context& ctx, const std::shared_ptr<Saved>& saved) {
    const int64_t T = saved->batch.tokens();
    Tensor dx = ctx.Zeros({T, kToyWidth}, DType::kF64), ds = ctx.Clone(saved->dlogp_T);
    for (int64_t t = 0; t < T; ++t) {
      for (int v = 0; v < kToyVocab; ++v) {
        const double onehot = v == saved->batch.target_T[t] ? 1 : 0;
        const double dlogit = ds.data<double>()[t] * (onehot - At(saved->softmax_TV, t, v));
        for (int d = 0; d < kToyWidth; ++d) {
          At(dx, t, d) += dlogit * At(head_->value, v, d);
          Gradient(head_, v * kToyWidth + d) += dlogit * At(saved->last_x, t, d);
        }
      }
    }
    return {dx, ds};
  }

  int first_, end_;
  bool report_, keep_ = false;
  double counted_ = 0, auxiliary_ = 0;
  std::vector<std::unique_ptr<Parameter>> parameters_;
  Parameter *embedding_ = nullptr, *head_ = nullptr, *counter_ = nullptr;
  std::vector<Layer> layers_;
  std::map<int, Saved> records_;
  std::map<int, Outcome> outcomes_;
};

// This rank's chunks of the toy model.
inline std::vector<std::unique_ptr<ToyStage>> ToyChunks(Context& ctx, const PipelineShape& shape,
                                                        int rank, bool report = true,
                                                        bool tied = false) {
  std::vector<std::unique_ptr<ToyStage>> chunks;
  for (int chunk = 0; chunk < shape.chunks; ++chunk) {
    const int stage = shape.StageOf(rank, chunk), n = shape.stages();
    chunks.push_back(std::make_unique<ToyStage>(ctx, stage * kToyLayers / n,
                                                (stage + 1) * kToyLayers / n, report, tied));
  }
  return chunks;
}
inline std::vector<PipelineStage*> Pointers(const std::vector<std::unique_ptr<ToyStage>>& chunks) {
  std::vector<PipelineStage*> pointers;
  for (const auto& chunk : chunks) pointers.push_back(chunk.get());
  return pointers;
}

// Batch `index` of step `step`: a few tokens, none at all when index % 5 == 3.
inline TokenBatch ToyBatch(int step, int index) {
  RandomStream random({11, static_cast<uint64_t>(step), static_cast<uint64_t>(index)});
  TokenBatch batch;
  const int tokens = index % 5 == 3 ? 0 : 1 + static_cast<int>(random.Below(4, 0));
  for (int t = 0; t < tokens; ++t) {
    batch.token_T.push_back(static_cast<int32_t>(random.Below(kToyVocab, 10 + t)));
    batch.target_T.push_back(static_cast<int32_t>(random.Below(kToyVocab, 20 + t)));
    batch.position_T.push_back(t);
    batch.loss_weight_T.push_back(static_cast<float>(0.05 + 0.1 * random.Uniform(30 + t)));
  }
  batch.cu_seqlens = tokens > 0 ? std::vector<int32_t>{0, tokens} : std::vector<int32_t>{0};
  return batch;
}

}  // namespace hone::parallel::testing
