// How fast a model could be if nothing but its matrix products took time: each product's shape is
// timed by itself with the kernels' own GEMM, as the context makes it.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "model/model_config.h"
#include "runtime/context.h"

namespace hone::launcher {

struct GemmShape {
  int64_t m, n, k;
  bool a_transposed = false, b_transposed = false, accumulate = false;
  auto operator<=>(const GemmShape&) const = default;
  double flops() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n * k); }
};

// How often each product happens; a causal attention's tile-wise products count as half of whole
// ones.
using GemmCounts = std::map<GemmShape, double>;
// Forward, input and weight gradients of a pack of sequences of these lengths. A token's experts
// are counted as if routing were even.
GemmCounts TrainingGemms(const model::ModelConfig& config, const std::vector<int64_t>& lengths);
// Forward of `batch` rows: projections, experts and head, without attention.
GemmCounts DecodingGemms(const model::ModelConfig& config, int64_t batch);
double Flops(const GemmCounts& counts);

class GemmTimer {
 public:
  GemmTimer(Context& ctx, const GemmCounts& counts) : ctx_(ctx), counts_(counts) {}
  void Round();            // times every shape once more
  double Fastest() const;  // seconds of all products, each at its fastest
  double Median() const;

 private:
  Context& ctx_;
  GemmCounts counts_;
  std::map<GemmShape, std::vector<double>> seconds_;
};

}  // namespace hone::launcher
