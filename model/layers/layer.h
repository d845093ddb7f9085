// What every layer is made of: parameters from a builder, explicit Forward and Backward, typed
// records.
//
// T tokens, D model dim. Forward(ctx, x, saved): `saved` null means inference, nothing is kept.
// Backward takes the record by value (so it is freed as it is used), returns the input gradient (=)
// and adds (+=) to the parameters' gradients. A record belongs to one microbatch; a layer itself
// has no such state.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/rope/rope.h"
#include "model/kv_cache.h"
#include "model/model_config.h"
#include "parallel/parameter.h"
#include "runtime/context.h"
#include "runtime/token_batch.h"

namespace hone::model {

enum class MlaDecode { kExpand, kAbsorb };

// Makes and owns a stage's parameters.
class ParameterBuilder {
 public:
  struct Options {
    DType dtype = DType::kF32;
    bool with_gradients = true;
    std::vector<std::string> frozen;  // name prefixes
  };
  ParameterBuilder(Context& ctx, Options options) : ctx_(ctx), options_(std::move(options)) {}

  enum class Init { kNormal, kOnes, kZeros, kNormalScaledByDepth };
  // A whole tensor.
  Parameter* Add(const std::string& name, Shape shape, Init init, bool decay = true);
  // Rows [begin, begin + count) of dim 0: the experts that live here.
  Parameter* AddExperts(const std::string& name, Shape global_shape, int64_t begin, int64_t count,
                        Init init);
  // f32 (f64 in f64), no gradient, changed by rule.
  Parameter* AddBuffer(const std::string& name, Shape shape);

  struct Entry {
    std::unique_ptr<Parameter> parameter;
    Init init;
  };
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  Parameter* AddSlab(Slab slab, Init init, bool decay);

  Context& ctx_;
  Options options_;
  std::vector<Entry> entries_;
};

// y = x · wᵀ + b. The only layer besides GroupedExperts that pushes into ctx.weight_gradients.
class Linear {
 public:
  Linear(ParameterBuilder& builder, const std::string& name, int64_t in, int64_t out, bool bias,
         ParameterBuilder::Init init = ParameterBuilder::Init::kNormal);
  Tensor Forward(Context& ctx, const Tensor& x_TI) const;
  Tensor Backward(Context& ctx, const Tensor& dy_TO, const Tensor& x_TI) const {
    return BackwardSum(ctx, {{this, dy_TO}}, x_TI);
  }
  // Its two halves, for who has x only after the input's gradient.
  void AddWeightGradient(Context& ctx, const Tensor& dy_TO, const Tensor& x_TI) const {
    AddWeightGradients(ctx, {{this, dy_TO}}, x_TI);
  }
  Tensor InputGradient(Context& ctx, const Tensor& dy_TO) const {
    return InputGradientSum(ctx, {{this, dy_TO}});
  }

  // Several layers of the same x, whose products share what is done to it; backward gives the sum
  // of their input gradients.
  struct Output {
    const Linear* layer;
    Tensor dy_TO;
  };
  static std::vector<Tensor> ForwardEach(Context& ctx, const Tensor& x_TI,
                                         const std::vector<const Linear*>& layers);
  static Tensor BackwardSum(Context& ctx, const std::vector<Output>& outputs, const Tensor& x_TI) {
    AddWeightGradients(ctx, outputs, x_TI);
    return InputGradientSum(ctx, outputs);
  }

  const Parameter& weight() const { return *weight_; }
  // Whatever Context::fp8 says.
  void KeepModelDtype() { may_fp8_ = false; }

 private:
  static void AddWeightGradients(Context& ctx, const std::vector<Output>& outputs,
                                 const Tensor& x_TI);
  static Tensor InputGradientSum(Context& ctx, const std::vector<Output>& outputs);
  bool BiasTrains() const { return bias_ && bias_->gradient.defined(); }
  bool Fp8(const Context& ctx) const { return ctx.fp8 && may_fp8_; }

  Parameter* weight_;
  Parameter* bias_ = nullptr;
  bool may_fp8_;  // a layer with a bias keeps the model's dtype: V3, whose scheme fp8 follows, has
                  // none
};

class RmsNorm {
 public:
  RmsNorm(ParameterBuilder& builder, const std::string& name, int64_t dim, double eps);
  Tensor Forward(Context& ctx, const Tensor& x_TD) const;
  // Of x += more: a residual stream's next layer.
  Tensor ForwardSum(Context& ctx, const Tensor& x_TD, const Tensor& more_TD) const;
  // With `more`, the gradient that reaches x past the norm, their sum.
  Tensor Backward(Context& ctx, const Tensor& dy_TD, const Tensor& x_TD,
                  const Tensor* more_TD = nullptr) const;

 private:
  Parameter* weight_;
  double eps_;
};

// A record of some layer.
struct Record {
  virtual ~Record() = default;
};
using RecordPtr = std::unique_ptr<Record>;

// What attention needs to know of a packed batch.
struct PackView {
  std::span<const int32_t> position_T, cu_seqlens;
};
// …and of a decode step: new tokens of each sequence, and the pages of its past and new tokens.
struct DecodeView {
  std::span<const int32_t> position_T, cu_seqlens;
  const std::vector<std::vector<int32_t>>& pages_S;
  std::span<const int32_t> length_S;  // tokens of each sequence, new ones included
  KvCache& cache;
  int64_t layer;  // index in the cache
};

// GroupedQueryAttention or MultiHeadLatentAttention.
class AttentionLayer {
 public:
  virtual ~AttentionLayer() = default;
  virtual Tensor Forward(Context& ctx, const Tensor& x_TD, const PackView& pack,
                         RecordPtr* saved) const = 0;
  virtual Tensor Backward(Context& ctx, const Tensor& dy_TD, const PackView& pack,
                          RecordPtr saved) const = 0;
  virtual Tensor Decode(Context& ctx, const Tensor& x_TD, const DecodeView& decode) const = 0;
};
std::unique_ptr<AttentionLayer> MakeGroupedQueryAttention(ParameterBuilder& builder,
                                                          const std::string& prefix,
                                                          const ModelConfig& config,
                                                          const kernels::RopeTable& rope);
std::unique_ptr<AttentionLayer> MakeMultiHeadLatentAttention(ParameterBuilder& builder,
                                                             const std::string& prefix,
                                                             const ModelConfig& config,
                                                             const kernels::RopeTable& rope,
                                                             MlaDecode decode);

// The feed-forward half of a block: SwiGluMlp or MoeBlock. MoE works in phases so that a schedule
// can run one block's exchange under another's compute; a dense one does everything in Experts.
class FeedForward {
 public:
  struct MoeInput {
    std::span<const int32_t> replay_TK;          // experts to use instead of routing; empty: route
    std::span<const int32_t> cu_seqlens;         // for the balance loss
    std::span<const float> loss_weight_T;        // its share of the step
    std::vector<int32_t>* routing_TK = nullptr;  // where choices are recorded
    // Whether this forward adds to the expert counts and the balance loss: once a step for each
    // token. With activation checkpointing the first forward counts, the recomputation (saved !=
    // null) not.
    enum class Count { kIfSaved, kYes, kNo };
    Count count = Count::kIfSaved;
  };
  struct State {  // between the phases of one direction
    virtual ~State() = default;
  };
  using StatePtr = std::unique_ptr<State>;

  virtual ~FeedForward() = default;
  // Phase 1: route and start sending rows. Phase 2: wait, run the experts, start sending back.
  // Phase 3: wait, combine, add what needs no exchange.
  virtual StatePtr ForwardDispatch(Context& ctx, const Tensor& x_TD, const MoeInput& input,
                                   RecordPtr* saved) = 0;
  virtual void ForwardExperts(Context& ctx, State& state) = 0;
  virtual Tensor ForwardCombine(Context& ctx, StatePtr state) = 0;
  virtual StatePtr BackwardDispatch(Context& ctx, const Tensor& dy_TD, RecordPtr saved) = 0;
  virtual void BackwardExperts(Context& ctx, State& state) = 0;
  virtual Tensor BackwardCombine(Context& ctx, StatePtr state) = 0;

  Tensor Forward(Context& ctx, const Tensor& x_TD, const MoeInput& input, RecordPtr* saved) {
    StatePtr state = ForwardDispatch(ctx, x_TD, input, saved);
    ForwardExperts(ctx, *state);
    return ForwardCombine(ctx, std::move(state));
  }
  Tensor Backward(Context& ctx, const Tensor& dy_TD, RecordPtr saved) {
    StatePtr state = BackwardDispatch(ctx, dy_TD, std::move(saved));
    BackwardExperts(ctx, *state);
    return BackwardCombine(ctx, std::move(state));
  }
  // Forgets what a step that was skipped has counted.
  virtual void BeginStep() {}
  // The balance loss of forwards since the last call; 0 for dense.
  virtual double TakeAuxiliaryLoss() { return 0; }
  // V3's bias rule after a step; `sum` adds over replicas. Nothing for dense.
  virtual void UpdateBalance(const std::function<void(std::vector<double>&)>& sum) { (void)sum; }
};
std::unique_ptr<FeedForward> MakeSwiGluMlp(ParameterBuilder& builder, const std::string& prefix,
                                           int64_t hidden, int64_t intermediate);

}  // namespace hone::model
