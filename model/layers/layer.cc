#include "model/layers/layer.h"

#include <utility>

#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/fp8/fp8.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/rms_norm.h"

namespace hone::model {
namespace {

bool IsFrozen(const std::string& name, const std::vector<std::string>& prefixes) {
  for (const std::string& prefix : prefixes) {
    if (name.starts_with(prefix)) {
      return true;
    }
  }
  return false;
}

// A place for a gradient that a kernel makes but nobody wants.
Tensor GradientOrScratch(Context& ctx, const Parameter& p) {
  return p.gradient.defined() ? p.gradient
                              : ctx.Zeros(p.value.shape(), kernels::AccDType(p.value.dtype()));
}

}  // namespace

Parameter* ParameterBuilder::Add(const std::string& name, Shape shape, Init init, bool decay) {
  return AddSlab(Slab::Whole(name, std::move(shape)), init, decay);
}

Parameter* ParameterBuilder::AddExperts(const std::string& name, Shape global_shape, int64_t begin,
                                        int64_t count, Init init) {
  Slab slab = Slab::Whole(name, std::move(global_shape));
  CheckShape(begin >= 0 && begin + count <= slab.global_shape[0],
             "[parameter] {}: experts [{}, {}) of {}", name, begin, begin + count,
             slab.global_shape[0]);
  slab.offset[0] = begin;
  slab.extent[0] = count;
  Parameter* p = AddSlab(std::move(slab), init, true);
  p->spec.reduce = parallel::ReduceGroup::kExpert;
  return p;
}

Parameter* ParameterBuilder::AddSlab(Slab slab, Init init, bool decay) {
  auto p = std::make_unique<Parameter>();
  const DType accumulated = kernels::AccDType(options_.dtype);
  p->spec.name = slab.name;
  p->spec.storage = options_.dtype;
  p->spec.gradient = accumulated;
  p->spec.master = accumulated;
  p->spec.trainable = options_.with_gradients && !IsFrozen(slab.name, options_.frozen);
  p->spec.decay = decay;
  p->value = ctx_.Zeros(slab.extent, options_.dtype, MemoryCategory::kWeights);
  if (p->spec.trainable) {
    p->gradient = ctx_.Zeros(slab.extent, accumulated, MemoryCategory::kGradients);
  }
  p->spec.slab = std::move(slab);
  entries_.push_back({std::move(p), init});
  return entries_.back().parameter.get();
}

Parameter* ParameterBuilder::AddBuffer(const std::string& name, Shape shape) {
  auto p = std::make_unique<Parameter>();
  const DType dtype = kernels::AccDType(options_.dtype);
  p->spec.name = name;
  p->spec.slab = Slab::Whole(name, std::move(shape));
  p->spec.storage = p->spec.gradient = p->spec.master = dtype;
  p->spec.trainable = false;
  p->spec.decay = false;
  p->spec.buffer = true;
  p->value = ctx_.Zeros(p->spec.slab.extent, dtype, MemoryCategory::kWeights);
  entries_.push_back({std::move(p), Init::kZeros});
  return entries_.back().parameter.get();
}

Linear::Linear(ParameterBuilder& builder, const std::string& name, int64_t in, int64_t out,
               bool bias, ParameterBuilder::Init init)
    : weight_(builder.Add(name + ".weight", {out, in}, init)), may_fp8_(!bias) {
  if (bias) {
    bias_ = builder.Add(name + ".bias", {out}, ParameterBuilder::Init::kZeros, false);
  }
}

Tensor Linear::Forward(Context& ctx, const Tensor& x_TI) const {
  if (Fp8(ctx)) return kernels::Fp8Linear(ctx, x_TI, weight_->value);
  return kernels::Linear(ctx, x_TI, weight_->value, bias_ ? &bias_->value : nullptr);
}

std::vector<Tensor> Linear::ForwardEach(Context& ctx, const Tensor& x_TI,
                                        const std::vector<const Linear*>& layers) {
  std::vector<Tensor> y_TO;
  std::vector<kernels::LinearWeight> weights;
  for (const Linear* layer : layers) {
    if (ctx.fp8) y_TO.push_back(layer->Forward(ctx, x_TI));
    weights.push_back({layer->weight_->value, layer->bias_ ? &layer->bias_->value : nullptr});
  }
  return ctx.fp8 ? y_TO : kernels::LinearEach(ctx, x_TI, weights);
}

void Linear::AddWeightGradients(Context& ctx, const std::vector<Output>& outputs,
                                const Tensor& x_TI) {
  std::vector<Output> training;
  for (const Output& output : outputs) {
    const Linear& layer = *output.layer;
    if (layer.weight_->gradient.defined() || layer.BiasTrains()) training.push_back(output);
  }
  if (training.empty()) return;
  auto work = [&ctx, training = std::move(training), x_TI, fp8 = ctx.fp8] {
    std::vector<kernels::LinearGradient> together;
    for (const auto& [layer, dy_TO] : training) {
      Tensor dw_OI = GradientOrScratch(ctx, *layer->weight_);
      if (fp8 && layer->may_fp8_) {
        kernels::Fp8LinearWeightGradient(ctx, dy_TO, x_TI, dw_OI);
      } else {
        together.push_back({dy_TO, dw_OI, layer->BiasTrains() ? &layer->bias_->gradient : nullptr});
      }
    }
    kernels::LinearWeightGradientEach(ctx, x_TI, together);
  };
  if (ctx.weight_gradients) {
    ctx.weight_gradients->push_back(std::move(work));
  } else {
    work();
  }
}

Tensor Linear::InputGradientSum(Context& ctx, const std::vector<Output>& outputs) {
  Tensor dx_TI;
  auto add = [&](const Tensor& more_TI) {
    if (dx_TI.defined()) return kernels::AddInPlace(ctx, dx_TI, more_TI);
    dx_TI = more_TI;
  };
  std::vector<kernels::LinearOutput> together;
  for (const auto& [layer, dy_TO] : outputs) {
    if (layer->Fp8(ctx)) {
      add(kernels::Fp8LinearInputGradient(ctx, dy_TO, layer->weight_->value));
    } else {
      together.push_back({dy_TO, layer->weight_->value});
    }
  }
  if (!together.empty()) add(kernels::LinearInputGradientSum(ctx, together));
  return dx_TI;
}

RmsNorm::RmsNorm(ParameterBuilder& builder, const std::string& name, int64_t dim, double eps)
    : weight_(builder.Add(name + ".weight", {dim}, ParameterBuilder::Init::kOnes, false)),
      eps_(eps) {}

Tensor RmsNorm::Forward(Context& ctx, const Tensor& x_TD) const {
  return kernels::RmsNorm(ctx, x_TD, weight_->value, eps_);
}

Tensor RmsNorm::ForwardSum(Context& ctx, const Tensor& x_TD, const Tensor& more_TD) const {
  return kernels::RmsNormOfSum(ctx, x_TD, more_TD, weight_->value, eps_);
}

Tensor RmsNorm::Backward(Context& ctx, const Tensor& dy_TD, const Tensor& x_TD,
                         const Tensor* more_TD) const {
  return kernels::RmsNormBackward(ctx, dy_TD, x_TD, weight_->value,
                                  GradientOrScratch(ctx, *weight_), eps_, more_TD);
}

}  // namespace hone::model
