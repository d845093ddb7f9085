// What the pipeline runs, without knowing what is inside: model/ implements it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "parallel/parameter.h"
#include "runtime/context.h"
#include "runtime/token_batch.h"

namespace hone::parallel {

// What a stage hands to the next (or a gradient to the previous): named tensors, in a fixed order.
using StageIO = std::vector<std::pair<std::string, Tensor>>;

// Per-token outputs of a head. Host f64 copies would cost little, but losses also run on device: so
// tensors, f32 or f64, [T] each.
struct HeadOutput {
  Tensor logp_T;     // undefined when the loss reads values only
  Tensor entropy_T;  // undefined unless the loss asked for it
  Tensor value_T;    // undefined unless the model has a value head
};
struct HeadGradient {
  Tensor dlogp_T, dentropy_T, dvalue_T;  // undefined = zero
};
// Named sums over tokens, added over microbatches and ranks, so that a mean is a ratio of two; under
// a name that begins with "largest_" a value ≥ 0, of which the largest is kept instead.
using MetricSums = std::map<std::string, double>;

// A loss: a pure function of a batch and the head's outputs, already weighted (Σ w_t ℓ_t).
class LossFunction {
 public:
  virtual ~LossFunction() = default;
  // True: the loss is Σ w_t · (−logp_t), and the head may use its one-pass cross-entropy. Then
  // Evaluate is called for its value and metrics only.
  virtual bool is_cross_entropy() const { return false; }
  virtual bool needs_entropy() const { return false; }
  // True: only value_T is read, and the head spares itself the logits.
  virtual bool values_only() const { return false; }
  virtual double temperature() const { return 1.0; }
  struct Result {
    double loss = 0;
    HeadGradient gradient;  // unset when is_cross_entropy
    MetricSums metrics;
  };
  virtual Result Evaluate(Context& ctx, const TokenBatch& batch, const HeadOutput& out) const = 0;
};

// One chunk of a model on one rank. Records of microbatches in flight are kept inside, by
// microbatch.
class PipelineStage {
 public:
  virtual ~PipelineStage() = default;
  virtual std::vector<Parameter*> Parameters() = 0;

  // The names, shapes and dtypes of what Forward(microbatch) will take: so a receiver can post
  // buffers.
  virtual StageIO InputBuffers(Context& ctx, const TokenBatch& batch) = 0;

  // `loss` is used by the chunk that holds the head; null in forward-only runs without a loss. With
  // `train` false nothing is saved. Returns what the next stage takes; empty from the last.
  virtual StageIO Forward(Context& ctx, int microbatch, const TokenBatch& batch, StageIO in,
                          const LossFunction* loss, bool train) = 0;
  // Takes the gradient of what Forward returned (empty for the last stage) and returns that of its
  // input. With ctx.weight_gradients set, weight gradients are queued there.
  virtual StageIO Backward(Context& ctx, int microbatch, StageIO doutput) = 0;
  // Forward of this chunk and backward of `backward_stage`, a chunk of the same rank (DualPipe-V's
  // pairs: another one), at once, so that one's communication runs under the other's compute. The
  // default runs the forward, then the backward. A stage that really overlaps them says so; for
  // others the executor runs the two by themselves, so that no result waits for the other half.
  virtual bool overlaps_forward_backward() const { return false; }
  virtual std::pair<StageIO, StageIO> Overlap(Context& ctx, int forward_microbatch,
                                              const TokenBatch& batch, StageIO in,
                                              const LossFunction* loss,
                                              PipelineStage& backward_stage,
                                              int backward_microbatch, StageIO doutput);

  // Of the head, after Forward(…, train = false or true) on the last stage: loss, metrics, outputs.
  struct Outcome {
    double loss = 0;
    MetricSums metrics;
    HeadOutput head;  // kept only when `keep_head_output` was set
  };
  virtual Outcome TakeOutcome(int microbatch) = 0;
  // Losses of inner layers (a balance loss), of the forwards in training since the last call: any
  // stage may have some, and they are part of the step's loss.
  virtual Outcome TakeAuxiliary() { return {}; }
  virtual bool is_last() const = 0;

  // Called before a step's first action and after its gradients are reduced and applied.
  virtual void BeginStep(bool keep_head_output) = 0;
  // Rules that change buffers (router bias) from what the step counted; `sum` adds a vector over
  // all replicas of this stage. Not called when the update was skipped.
  virtual void EndStep(Context& ctx, const std::function<void(std::vector<double>&)>& sum) = 0;

  // Lets reduction start while the backward still runs. The executor sets a listener for the action
  // that completes this chunk's gradients of the step, and afterwards reports by itself every
  // parameter that the stage did not.
  using GradientListener = std::function<void(const Parameter&)>;
  void set_gradient_listener(GradientListener listener) { listener_ = std::move(listener); }

 protected:
  // Optional, for implementations: this microbatch adds nothing more to these gradients, apart from
  // what is queued in ctx.weight_gradients; call it after a layer's backward. Tied parameters only
  // after the last of their uses.
  void GradientsDone(Context& ctx, const std::vector<Parameter*>& parameters);

 private:
  GradientListener listener_;
};

}  // namespace hone::parallel
