#include <cmath>

#include "kernels/dispatch.h"
#include "model/transformer_stage_impl.h"
#include "runtime/philox.h"

namespace hone::model {
namespace {

// Where row `row` of a slab, along the last dim, begins in the global tensor.
int64_t GlobalIndex(const Slab& slab, int64_t row) {
  int64_t global = slab.offset.back(), stride = slab.global_shape.back();
  for (auto d = static_cast<int64_t>(slab.extent.size()) - 2; d >= 0; --d) {
    global += (slab.offset[d] + row % slab.extent[d]) * stride;
    row /= slab.extent[d];
    stride *= slab.global_shape[d];
  }
  return global;
}

template <class T>
T FromDouble(double value) {
  if constexpr (std::is_same_v<T, BF16>) {
    return BF16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

template <class T>
void FillNormal(Context& ctx, const Slab& slab, const Tensor& value, double std, uint64_t seed) {
  const RandomStream stream{seed, HashName(slab.name)};
  T* out = value.data<T>();
  const int64_t cols = slab.extent.back(), rows = slab.size() / std::max<int64_t>(cols, 1);
  ctx.pool().ParallelFor(rows, kernels::RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto global = static_cast<uint64_t>(GlobalIndex(slab, row));
      for (int64_t i = 0; i < cols; ++i) {
        out[row * cols + i] = FromDouble<T>(std * stream.Normal(global + static_cast<uint64_t>(i)));
      }
    }
  });
}

template <class T>
void FillConstant(const Tensor& value, double constant) {
  std::fill_n(value.data<T>(), value.size(), FromDouble<T>(constant));
}

}  // namespace

void TransformerStage::Initialize(uint64_t seed, int threads, std::string_view prefix) {
  using Init = ParameterBuilder::Init;
  Context ctx(Device::Cpu(), threads);  // fills on the host
  const double depth = std::sqrt(2.0 * static_cast<double>(config().num_hidden_layers));
  for (const auto& [parameter, init] : impl_->builder.entries()) {
    if (!parameter->spec.name.starts_with(prefix)) continue;
    const Tensor& value = parameter->value;
    Tensor host = value.device().is_cpu() ? value : ctx.Empty(value.shape(), value.dtype());
    kernels::SwitchFloat("initialize", value.dtype(), [&](auto zero) {
      using T = decltype(zero);
      if (init == Init::kOnes || init == Init::kZeros) {
        FillConstant<T>(host, init == Init::kOnes ? 1.0 : 0.0);
      } else {
        const double std =
            config().initializer_range / (init == Init::kNormalScaledByDepth ? depth : 1.0);
        FillNormal<T>(ctx, parameter->spec.slab, host, std, seed);
      }
    });
    if (host.raw() != value.raw()) CopyTo(host, value);
  }
}

}  // namespace hone::model
