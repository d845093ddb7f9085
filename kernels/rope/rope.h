// Rotary position embedding (Su et al., arXiv 2104.09864), with the frequency rules of Llama 3 and
// YaRN (Peng et al., arXiv 2309.00071), equal to transformers' `ROPE_INIT_FUNCTIONS`.
//
// A head dim of R is R/2 pairs. rotate-half pairs (i, i + R/2), as Hugging Face Llama does;
// interleaved pairs (2i, 2i + 1), as llama2.c and DeepSeek's own code do.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/context.h"

namespace hone::kernels {

enum class RopeForm { kRotateHalf, kInterleaved };

struct RopeConfig {
  enum class Scaling { kNone, kLinear, kLlama3, kYarn };
  int64_t dim = 0;  // R
  double theta = 10000.0;
  Scaling scaling = Scaling::kNone;
  double factor = 1.0;
  int64_t original_max_position = 0;
  double beta_fast = 32.0, beta_slow = 1.0;              // YaRN
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // Llama 3
  // YaRN's factor on cos and sin; ≤ 0 derives it from mscale and mscale_all_dim as transformers
  // does.
  double attention_factor = 0.0;
  double mscale = 0.0, mscale_all_dim = 0.0;
  bool truncate = true;  // YaRN: round the correction range outwards
};

// cos and sin for positions [0, positions), computed in double. f32 (or f64) whatever the model's
// dtype.
struct RopeTable {
  Tensor cos_PR, sin_PR;  // [positions, R/2]
};
RopeTable MakeRopeTable(Context& ctx, const RopeConfig& config, int64_t positions, DType dtype);
// The factor that YaRN puts on the softmax scale of MLA: mscale(factor, mscale_all_dim)², 1
// otherwise (DeepSeek-V3's modeling code).
double YarnSoftmaxFactor(const RopeConfig& config);

// Rotates every head of x in place by its token's position; x may be a view of the rotary columns
// of a wider tensor. `inverse` rotates back, keeping YaRN's factor: that is the backward pass.
void Rope(Context& ctx, const Tensor& x_THR, std::span<const int32_t> position_T,
          const RopeTable& table, RopeForm form, bool inverse = false);

}  // namespace hone::kernels
