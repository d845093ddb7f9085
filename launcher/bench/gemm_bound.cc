#include "launcher/bench/gemm_bound.h"

#include <algorithm>
#include <numeric>

#include "kernels/gemm.h"
#include "launcher/bench/bench.h"

namespace hone::launcher {
namespace {

// Matrices [out, in] that `rows` rows go through, and how many of them a layer has.
struct Product {
  int64_t out, in, rows;
  double count;
};

std::vector<Product> Products(const model::ModelConfig& c, int64_t rows) {
  const auto layers = static_cast<double>(c.num_hidden_layers);
  const int64_t d = c.hidden_size, heads = c.num_attention_heads * c.head_dim,
                groups = c.num_key_value_heads * c.head_dim;
  std::vector<Product> products = {{heads, d, rows, layers},
                                   {groups, d, rows, 2 * layers},
                                   {d, heads, rows, layers},
                                   {c.vocab_size, d, rows, 1}};
  if (c.is_moe()) {
    const int64_t f = c.moe_intermediate_size, experts = c.n_routed_experts;
    const int64_t each = std::max<int64_t>(1, rows * c.num_experts_per_tok / experts);
    const double count =
        static_cast<double>(std::min(experts, rows * c.num_experts_per_tok)) * layers;
    products.push_back({f, d, each, 2 * count});
    products.push_back({d, f, each, count});
    products.push_back({experts, d, rows, layers});
  } else {
    products.push_back({c.intermediate_size, d, rows, 2 * layers});
    products.push_back({d, c.intermediate_size, rows, layers});
  }
  return products;
}

}  // namespace

GemmCounts TrainingGemms(const model::ModelConfig& c, const std::vector<int64_t>& lengths) {
  GemmCounts counts;
  for (const Product& p : Products(c, std::reduce(lengths.begin(), lengths.end()))) {
    counts[{p.rows, p.out, p.in, false, true, false}] += p.count;
    counts[{p.rows, p.in, p.out, false, false, false}] += p.count;
    counts[{p.out, p.in, p.rows, true, false, true}] += p.count;
  }
  // Half of 2 · heads: a causal attention.
  const auto heads = static_cast<double>(c.num_hidden_layers * c.num_attention_heads);
  for (const int64_t n : lengths) {
    counts[{n, n, c.head_dim, false, true, false}] += heads;   // q kᵀ, dout vᵀ
    counts[{n, c.head_dim, n, false, false, false}] += heads;  // P v, dS k
    counts[{n, c.head_dim, n, true, false, true}] += heads;    // Pᵀ dout, dSᵀ q
  }
  return counts;
}

GemmCounts DecodingGemms(const model::ModelConfig& c, int64_t batch) {
  GemmCounts counts;
  for (const Product& p : Products(c, batch)) {
    counts[{p.rows, p.out, p.in, false, true, false}] += p.count;
  }
  return counts;
}

double Flops(const GemmCounts& counts) {
  double sum = 0;
  for (const auto& [shape, count] : counts) sum += shape.flops() * count;
  return sum;
}

void GemmTimer::Round() {
  for (const auto& [s, count] : counts_) {
    std::vector<float> a(static_cast<size_t>(s.m * s.k), 0.5f),
        b(static_cast<size_t>(s.n * s.k), 0.25f), c(static_cast<size_t>(s.m * s.n), 0.0f);
    const kernels::MatrixView<float> left{a.data(), s.a_transposed ? s.m : s.k, s.a_transposed},
        right{b.data(), s.b_transposed ? s.k : s.n, s.b_transposed};
    // The first call touches the memory; small products are too short for one reading of the clock.
    const int repeats = static_cast<int>(std::clamp(2e8 / s.flops(), 1.0, 100.0));
    for (int warm : {1, 0}) {
      const double seconds = SecondsOf([&] {
        for (int i = 0; i < (warm ? 1 : repeats); ++i) {
          kernels::Gemm<float>(ctx_, s.m, s.n, s.k, left, right, c.data(), s.n, s.accumulate);
        }
      });
      if (!warm) seconds_[s].push_back(seconds / repeats);
    }
  }
}

double GemmTimer::Fastest() const {
  double sum = 0;
  for (const auto& [s, seconds] : seconds_) sum += launcher::Fastest(seconds) * counts_.at(s);
  return sum;
}

double GemmTimer::Median() const {
  double sum = 0;
  for (const auto& [s, seconds] : seconds_) sum += launcher::Median(seconds) * counts_.at(s);
  return sum;
}

}  // namespace hone::launcher
