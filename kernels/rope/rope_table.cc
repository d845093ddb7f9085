// Frequencies: pair i of a head of dim R turns by θ^(−2i/R) a position; the scalings slow some of
// them.
#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/rope/rope.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "rope";
using Scaling = RopeConfig::Scaling;

// arXiv 2309.00071, eq. 22 with DeepSeek-V2's weight m.
double YarnMscale(double factor, double m) {
  return factor <= 1.0 ? 1.0 : 0.1 * m * std::log(factor) + 1.0;
}

void CheckConfig(const RopeConfig& c) {
  Check<ConfigError>(c.dim > 0 && c.dim % 2 == 0, "[{}] dim {} is not a positive even number", kOp,
                     c.dim);
  Check<ConfigError>(c.theta > 1.0, "[{}] theta {} must be greater than 1", kOp, c.theta);
  if (c.scaling == Scaling::kNone) return;
  Check<ConfigError>(c.factor > 0.0, "[{}] scaling factor {} must be positive", kOp, c.factor);
  if (c.scaling == Scaling::kLinear) return;
  Check<ConfigError>(c.original_max_position > 0,
                     "[{}] original_max_position {} must be positive for llama3 and yarn scaling",
                     kOp, c.original_max_position);
  if (c.scaling == Scaling::kLlama3) {
    Check<ConfigError>(c.high_freq_factor > c.low_freq_factor && c.low_freq_factor > 0.0,
                       "[{}] low_freq_factor {} must be positive and below high_freq_factor {}",
                       kOp, c.low_freq_factor, c.high_freq_factor);
  } else {
    Check<ConfigError>(c.beta_fast > 0.0 && c.beta_slow > 0.0,
                       "[{}] beta_fast {} and beta_slow {} must be positive", kOp, c.beta_fast,
                       c.beta_slow);
  }
}

// Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between interpolated.
void ScaleLlama3(const RopeConfig& c, std::vector<double>& frequency) {
  double original = static_cast<double>(c.original_max_position);
  for (double& f : frequency) {
    double wavelength = 2 * std::numbers::pi / f;
    if (wavelength > original / c.low_freq_factor) {
      f /= c.factor;
    } else if (wavelength >= original / c.high_freq_factor) {
      double smooth =
          (original / wavelength - c.low_freq_factor) / (c.high_freq_factor - c.low_freq_factor);
      f = (1 - smooth) * f / c.factor + smooth * f;
    }
  }
}

// YaRN §3.2: pairs that turn more than beta_fast times in the original context are kept, fewer than
// beta_slow times slowed by `factor`, with a ramp over the pairs between.
void ScaleYarn(const RopeConfig& c, std::vector<double>& frequency) {
  auto pair_turning = [&](double turns) {
    double dim = static_cast<double>(c.dim),
           original = static_cast<double>(c.original_max_position);
    return dim * std::log(original / (turns * 2 * std::numbers::pi)) / (2 * std::log(c.theta));
  };
  double low = pair_turning(c.beta_fast), high = pair_turning(c.beta_slow);
  if (c.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(c.dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequency.size(); ++i) {
    double slowed = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequency[i] = frequency[i] / c.factor * slowed + frequency[i] * (1 - slowed);
  }
}

std::vector<double> Frequencies(const RopeConfig& c) {
  std::vector<double> frequency(c.dim / 2);
  for (size_t i = 0; i < frequency.size(); ++i) {
    frequency[i] = std::pow(c.theta, -2.0 * static_cast<double>(i) / static_cast<double>(c.dim));
  }
  if (c.scaling == Scaling::kLinear) {
    for (double& f : frequency) f /= c.factor;
  } else if (c.scaling == Scaling::kLlama3) {
    ScaleLlama3(c, frequency);
  } else if (c.scaling == Scaling::kYarn) {
    ScaleYarn(c, frequency);
  }
  return frequency;
}

double AttentionFactor(const RopeConfig& c) {
  if (c.scaling != Scaling::kYarn) return 1.0;
  if (c.attention_factor > 0.0) return c.attention_factor;
  if (c.mscale != 0.0 && c.mscale_all_dim != 0.0) {
    return YarnMscale(c.factor, c.mscale) / YarnMscale(c.factor, c.mscale_all_dim);
  }
  return YarnMscale(c.factor, 1.0);
}

}  // namespace

RopeTable MakeRopeTable(Context& ctx, const RopeConfig& config, int64_t positions, DType dtype) {
  CheckConfig(config);
  Check<ConfigError>(positions >= 0, "[{}] {} positions", kOp, positions);
  std::vector<double> frequency = Frequencies(config);
  double factor = AttentionFactor(config);
  int64_t pairs = config.dim / 2;
  Context host;
  auto fill = [&](auto trig) {
    Tensor wide = host.Empty({positions, pairs}, DType::kF64);
    for (int64_t p = 0; p < positions; ++p) {
      double* row = wide.row<double>(p);
      for (int64_t i = 0; i < pairs; ++i)
        row[i] = trig(static_cast<double>(p) * frequency[i]) * factor;
    }
    Tensor narrow = host.Empty(wide.shape(), AccDType(dtype));
    CopyTo(wide, narrow);
    Tensor out = ctx.Empty(wide.shape(), narrow.dtype(), MemoryCategory::kOther);
    CopyTo(narrow, out, &ctx.stream());
    ctx.stream().Synchronize();
    return out;
  };
  return {fill([](double a) { return std::cos(a); }), fill([](double a) { return std::sin(a); })};
}

double YarnSoftmaxFactor(const RopeConfig& config) {
  if (config.scaling != Scaling::kYarn || config.mscale_all_dim == 0.0) return 1.0;
  double m = YarnMscale(config.factor, config.mscale_all_dim);
  return m * m;
}

}  // namespace hone::kernels
