#include "rl/policy_loss.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace hone::rl {
namespace {

// Per-token values of one batch in double, whatever the model's dtype.
struct Tokens {
  std::vector<double> logp, old, entropy;
};

Tokens ReadTokens(const TokenBatch& batch, const parallel::HeadOutput& out) {
  Tokens t;
  t.logp = runtime::ToDoubles(out.logp_T);
  t.old.assign(batch.old_logp_T.begin(), batch.old_logp_T.end());
  if (t.old.empty()) t.old = t.logp;
  if (out.entropy_T.defined()) t.entropy = runtime::ToDoubles(out.entropy_T);
  return t;
}

Tensor ToTensor(Context& ctx, const std::vector<double>& values, DType dtype) {
  Tensor host(const_cast<double*>(values.data()), {static_cast<int64_t>(values.size())},
              DType::kF64, Device::Cpu());
  if (dtype == DType::kF64) return ctx.Clone(host);
  std::vector<float> narrow(values.begin(), values.end());
  return ctx.Clone(Tensor(narrow.data(), host.shape(), DType::kF32, Device::Cpu()));
}

struct Surrogate {
  double loss;   // −min(ρ A, clip(ρ) A)
  double slope;  // its derivative with respect to log ρ
  bool clipped;
};

// Where the clipped branch is the smaller one it is constant in ρ.
Surrogate ClippedSurrogate(double ratio, double advantage, const PolicyLossConfig& c) {
  if (advantage == 0) return {0.0, 0.0, false};  // the ratio may be infinite
  double bounded = std::clamp(ratio, 1 - c.clip_low, 1 + c.clip_high);
  double plain = ratio * advantage, limited = bounded * advantage;
  if (limited < plain) return {-limited, 0.0, true};
  return {-plain, -plain, false};
}

// What the terms share of a batch.
struct Terms {
  const PolicyLossConfig& config;
  const TokenBatch& batch;
  const Tokens& tokens;
  std::vector<double>& dlogp;
  std::vector<double>& dentropy;
  parallel::LossFunction::Result& result;
  // Metrics, summed.
  double policy_loss = 0, kl = 0, entropy = 0, clip_fraction = 0, ratios = 0, corrections = 0,
         gap = 0, largest_gap = 0, counted = 0;

  double Correction(int64_t t) const {
    if (config.importance_cap <= 0) return 1.0;
    return std::min(config.importance_cap,
                    std::exp(tokens.old[t] - double{batch.sampled_logp_T[t]}));
  }

  void Count(int64_t t, double weight, const Surrogate& s, double ratio, double correction) {
    policy_loss += weight * s.loss * correction;
    clip_fraction += weight * (s.clipped ? 1 : 0);
    ratios += weight * ratio;
    corrections += weight * correction;
    const double apart = std::abs(tokens.logp[t] - double{batch.sampled_logp_T[t]});
    gap += apart;
    largest_gap = std::max(largest_gap, apart);
    ++counted;
  }

  void WriteMetrics() {
    result.metrics = {{"policy_loss", policy_loss},
                      {"clip_fraction", clip_fraction},
                      {"ratio", ratios},
                      {"importance_weight", corrections},
                      {"logprob_gap", gap},
                      {"largest_logprob_gap", largest_gap},
                      {"tokens", counted}};
    if (config.kl_coefficient > 0) result.metrics["kl"] = kl;
    if (!tokens.entropy.empty()) result.metrics["entropy"] = entropy;
  }

  // β · k3 and the entropy bonus: the same for every ratio.
  void AddRegularisers(int64_t t, double weight) {
    double loss = 0;
    if (config.kl_coefficient > 0) {
      double difference = double{batch.reference_logp_T[t]} - tokens.logp[t];
      double k3 = std::expm1(difference) - difference;
      loss += config.kl_coefficient * k3;
      dlogp[t] += weight * config.kl_coefficient * -std::expm1(difference);
      kl += weight * k3;
    }
    if (!tokens.entropy.empty()) {
      loss -= config.entropy_coefficient * tokens.entropy[t];
      dentropy[t] -= weight * config.entropy_coefficient;
      entropy += weight * tokens.entropy[t];
    }
    result.loss += weight * loss;
  }
};

void TokenTerms(Terms& terms) {
  const TokenBatch& batch = terms.batch;
  for (int64_t t = 0; t < batch.tokens(); ++t) {
    double weight = batch.loss_weight_T[t];
    if (weight == 0) continue;
    double ratio = std::exp(terms.tokens.logp[t] - terms.tokens.old[t]);
    double correction = terms.Correction(t);
    Surrogate s = ClippedSurrogate(ratio, batch.advantage_T[t], terms.config);
    terms.result.loss += weight * correction * s.loss;
    terms.dlogp[t] += weight * correction * s.slope;
    terms.Count(t, weight, s, ratio, correction);
    terms.AddRegularisers(t, weight);
  }
}

// GSPO: one ratio a sequence, the geometric mean of its tokens'; its loss is spread over them by
// weight.
void SequenceTerms(Terms& terms) {
  const TokenBatch& batch = terms.batch;
  for (int64_t seq = 0; seq < batch.sequences(); ++seq) {
    double sum = 0, count = 0, slope = 0;
    for (int64_t t = batch.cu_seqlens[seq]; t < batch.cu_seqlens[seq + 1]; ++t) {
      if (batch.loss_weight_T[t] == 0) continue;
      sum += terms.tokens.logp[t] - terms.tokens.old[t];
      ++count;
    }
    if (count == 0) continue;
    double ratio = std::exp(sum / count);
    for (int64_t t = batch.cu_seqlens[seq]; t < batch.cu_seqlens[seq + 1]; ++t) {
      double weight = batch.loss_weight_T[t];
      if (weight == 0) continue;
      double correction = terms.Correction(t);
      Surrogate s = ClippedSurrogate(ratio, batch.advantage_T[t], terms.config);
      terms.result.loss += weight * correction * s.loss;
      slope += weight * correction * s.slope;
      terms.Count(t, weight, s, ratio, correction);
      terms.AddRegularisers(t, weight);
    }
    // d log ρ / d logp_t = 1 / count for each token of the sequence.
    for (int64_t t = batch.cu_seqlens[seq]; t < batch.cu_seqlens[seq + 1]; ++t) {
      if (batch.loss_weight_T[t] != 0) terms.dlogp[t] += slope / count;
    }
  }
}

}  // namespace

bool PolicyLoss::needs_entropy() const { return true; }

parallel::LossFunction::Result PolicyLoss::Evaluate(Context& ctx, const TokenBatch& batch,
                                                    const parallel::HeadOutput& out) const {
  size_t n = static_cast<size_t>(batch.tokens());
  bool complete = (batch.old_logp_T.empty() || batch.old_logp_T.size() == n) &&
                  batch.sampled_logp_T.size() == n && batch.advantage_T.size() == n &&
                  (config_.kl_coefficient == 0 || batch.reference_logp_T.size() == n);
  CheckShape(complete,
             "[policy_loss] the batch lacks old, sampled or reference log-probabilities or "
             "advantages of its {} tokens",
             n);
  Result result;
  Tokens tokens = ReadTokens(batch, out);
  std::vector<double> dlogp(n, 0.0), dentropy(n, 0.0);
  Terms terms{config_, batch, tokens, dlogp, dentropy, result};
  if (config_.ratio == PolicyLossConfig::Ratio::kSequence) {
    SequenceTerms(terms);
  } else {
    TokenTerms(terms);
  }
  terms.WriteMetrics();
  result.gradient.dlogp_T = ToTensor(ctx, dlogp, out.logp_T.dtype());
  if (!tokens.entropy.empty() && config_.entropy_coefficient != 0) {
    result.gradient.dentropy_T = ToTensor(ctx, dentropy, out.logp_T.dtype());
  }
  return result;
}

parallel::LossFunction::Result CrossEntropyLoss::Evaluate(Context&, const TokenBatch& batch,
                                                          const parallel::HeadOutput& out) const {
  Result result;
  std::vector<double> logp = runtime::ToDoubles(out.logp_T);
  for (int64_t t = 0; t < batch.tokens(); ++t) {
    result.loss -= double{batch.loss_weight_T[t]} * logp[t];
  }
  return result;
}

}  // namespace hone::rl
