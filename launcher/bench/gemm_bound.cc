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

// Numbers in [−1, 1) that use all bits of an f32, as a model's do: a matrix unit takes a quarter
// less time for operands with many zero bits.
std::vector<float> Bits24(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  uint64_t state = 1;
  for (float& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
    value = static_cast<float>(static_cast<int64_t>(state)) * 0x1p-63f;
  }
  return values;
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
    const std::vector<float> a = Bits24(s.m * s.k), b = Bits24(s.n * s.k);
    std::vector<float> c(static_cast<size_t>(s.m * s.n), 0.0f);
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
