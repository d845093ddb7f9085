// The walks of LayerWalk: line by line what the layers of the same names do. D hidden, Q and K
// widths of queries and keys, F intermediate, E experts, X experts a token.
#include "kernels/attention/attention.h"
#include "kernels/gemm.h"
#include "model/memory_ledger.h"
#include "model/model_config.h"

namespace hone::model {
namespace {

constexpr int64_t kAttentionBlockRows = 112;  // of the CPU's attention

struct LatentWidths {
  int64_t query_latent, query, kv_a, latent, rope, expanded, value, heads;
  explicit LatentWidths(const ModelConfig& c)
      : query_latent(c.q_lora_rank),
        query(c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)),
        kv_a(c.kv_lora_rank + c.qk_rope_head_dim),
        latent(c.kv_lora_rank),
        rope(c.qk_rope_head_dim),
        expanded(c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)),
        value(c.num_attention_heads * c.v_head_dim),
        heads(c.num_attention_heads) {}
};

}  // namespace

int64_t LayerWalk::AttentionWorkspace(const Ledger& l) const {
  if (!l.sizes().f32_copies) return 0;
  const ModelConfig& c = config_;
  const int64_t dim = c.head_dim, value = c.is_mla() ? c.v_head_dim : c.head_dim;
  const int64_t share = c.is_mla() ? 1 : c.num_attention_heads / c.num_key_value_heads;
  const int64_t rows = std::max<int64_t>(1, kAttentionBlockRows / share) * share;
  const int64_t elements = kernels::PackedLeftSize(rows, dim) +
                           kernels::PackedLeftSize(rows, kernels::kKeyTile) +
                           kernels::kKeyTile * (dim + value) + rows * (value + 4);
  return threads_ * elements * l.sizes().accumulator;
}

// Gradients of queries, keys and values, which stay taken.
void LayerWalk::AttentionGradients(const Ledger& l, int64_t q, int64_t k, int64_t v,
                                   int64_t out) const {
  if (!l.copies()) return l.Take(q + k + v);
  const int64_t wide = 2 * (q + k + v) + 2 * out;  // sums; copies of q, k, v, out and its gradient
  l.TakeWide(wide);
  l.Take(q + k + v);
  l.GiveWide(wide);
}

void LayerWalk::AttentionForward(const Ledger& l, bool saved) const {
  if (config_.is_mla()) return LatentForward(l, saved);
  const int64_t heads = config_.num_attention_heads, q = heads * config_.head_dim;
  const int64_t k = config_.num_key_value_heads * config_.head_dim;
  l.Product(q + 2 * k);
  const int64_t normed = config_.qk_norm ? q + k : 0;
  l.Take(normed);
  l.Take(q);  // attention's output
  l.TakeWide(heads);
  l.Pass(AttentionWorkspace(l));
  l.Product(config_.hidden_size);
  if (saved) return;
  l.Give(2 * q + 2 * k + normed);
  l.GiveWide(heads);
}

void LayerWalk::AttentionBackward(const Ledger& l, bool split) const {
  if (config_.is_mla()) return LatentBackward(l, split);
  const int64_t heads = config_.num_attention_heads, d = config_.hidden_size;
  const int64_t q = heads * config_.head_dim, k = config_.num_key_value_heads * config_.head_dim;
  l.Product(q);  // gradient of attention's output
  AttentionGradients(l, q, k, k, q);
  if (config_.qk_norm) {
    l.Take(q);
    l.Give(q);
  }
  l.SumOfProducts(d);
  l.Give(q);
  const int64_t normed = config_.qk_norm ? q + k : 0;
  l.Give(q + 2 * k + normed);  // the record but for attention's output
  l.GiveWide(heads);
  if (!split) l.Give(q + q + 2 * k);  // that output, and the gradients
}

void LayerWalk::LatentForward(const Ledger& l, bool saved) const {
  const LatentWidths w(config_);
  if (w.query_latent > 0) {
    l.Product(w.query_latent + w.kv_a);
    l.Take(w.query_latent);
    l.Product(w.query);
    l.Give(w.query_latent);
  } else {
    l.Product(w.query + w.kv_a);
  }
  l.Take(w.latent);
  l.Product(w.expanded);
  l.Take(w.query + w.value);
  l.Give(w.expanded);
  l.Take(w.value);
  l.TakeWide(w.heads);
  l.Pass(AttentionWorkspace(l));
  l.Product(config_.hidden_size);
  l.Give(w.latent);
  if (saved) return;
  l.Give(w.query_latent + w.kv_a + 2 * w.query + 2 * w.value);
  l.GiveWide(w.heads);
}

void LayerWalk::LatentQueryBackward(const Ledger& l, bool split) const {
  const LatentWidths w(config_);
  if (w.query_latent > 0) {
    l.Take(w.query_latent);
    l.Product(w.query_latent);
    l.Take(w.query_latent);
  }
  l.Give(split ? w.query_latent : 2 * w.query_latent);
}

void LayerWalk::LatentBackward(const Ledger& l, bool split) const {
  const LatentWidths w(config_);
  l.Product(w.value);  // gradient of attention's output
  AttentionGradients(l, w.query, w.query, w.value, w.value);
  l.Give(2 * w.query + w.value);
  l.GiveWide(w.heads);
  l.Take(w.latent);
  l.Take(w.expanded);
  l.Product(w.latent);
  if (!split) l.Give(w.expanded);
  l.Take(w.kv_a);
  l.Take(w.latent);
  l.Give(w.latent);
  l.TakeWide(w.rope);
  LatentQueryBackward(l, split);
  l.SumOfProducts(config_.hidden_size);
  l.GiveWide(w.rope);
  l.Give(w.value + w.query + w.value + w.latent);  // dout, dk, dv, dc
  l.Give(w.query_latent + w.kv_a);                 // of the record
  // Queued: attention's output, dq, the gradient of the queries' latent, dkv_a, the normed latent.
  if (!split) l.Give(w.value + w.query + w.query_latent + w.kv_a + w.latent);
}

void LayerWalk::MlpForward(const Ledger& l, int64_t f, bool saved) const {
  l.Product(2 * f);
  l.Take(f);
  l.Product(config_.hidden_size);
  l.Give(f);
  if (!saved) l.Give(2 * f);
}

void LayerWalk::MlpBackward(const Ledger& l, int64_t f, bool split) const {
  const int64_t d = config_.hidden_size;
  l.Product(f);
  l.SumOfProducts(d);
  if (!split) l.Give(3 * f);  // that product; the record, or what has taken its place
}

// Tokens are taken to spread evenly: as many rows arrive at a rank as leave it. Buffers of the
// exchange itself are counted by ExchangeBytes.
void LayerWalk::MoeForward(const Ledger& l, bool saved) const {
  const int64_t d = config_.hidden_size, e = config_.n_routed_experts,
                x = config_.num_experts_per_tok, rows = x * d,
                f = x * config_.moe_intermediate_size;
  const int64_t shared = config_.n_shared_experts * config_.moe_intermediate_size;
  const int64_t casts = l.mixed() ? d : 0;
  l.TakeWide(casts);
  l.TakeWide(e + x + e);  // logits, weights, scores
  l.GiveWide(casts + e);
  l.Take(rows);
  if (shared > 0) MlpForward(l, shared, saved);
  if (ep_ > 1) l.Take(rows);  // sorted by expert
  l.Product(f);
  l.Product(f);
  l.Take(f);
  l.Product(rows);
  l.Give(f);
  if (!saved) l.Give(2 * f);
  if (ep_ > 1) {
    l.Take(rows);      // the way back
    l.Give(2 * rows);  // what was sent; what the experts gave
  }
  l.Take(d);
  if (shared > 0) l.Give(d);
  if (saved) return;
  l.Give(2 * rows);
  l.GiveWide(x + e);
}

void LayerWalk::RouterBackward(const Ledger& l, bool split) const {
  const int64_t d = config_.hidden_size, e = config_.n_routed_experts;
  const int64_t balance = config_.balance_loss_alpha > 0 ? e : 0;
  l.TakeWide(balance + e);
  l.TakeWide(d);
  if (l.mixed()) {
    l.Take(d);
    l.GiveWide(d);
  }
  l.GiveWide(balance + (split ? 0 : e));
}

void LayerWalk::ExpertsBackward(const Ledger& l, bool split) const {
  const int64_t rows = config_.num_experts_per_tok * config_.hidden_size;
  const int64_t f = config_.num_experts_per_tok * config_.moe_intermediate_size;
  l.Product(f);
  l.Product(rows);
  l.Product(rows);
  l.Give(rows);
  if (!split) l.Give(3 * f + rows);  // the experts' input too
}

void LayerWalk::MoeBackward(const Ledger& l, bool split) const {
  const int64_t d = config_.hidden_size, e = config_.n_routed_experts,
                x = config_.num_experts_per_tok, rows = x * d;
  const int64_t shared = config_.n_shared_experts * config_.moe_intermediate_size;
  l.Take(rows);
  l.TakeWide(x);
  l.Give(rows);  // of the record
  RouterBackward(l, split);
  if (shared > 0) {
    MlpBackward(l, shared, split);
    l.Give(d);
  }
  if (ep_ > 1) l.Take(rows);
  ExpertsBackward(l, split);
  if (ep_ > 1) {
    l.Take(rows);
    l.Give(2 * rows);
  }
  if (!split) l.Give(rows);  // gradient of the experts' output
  l.Take(d);
  l.Give(rows + d);
  l.GiveWide(x + x + e);
}

void LayerWalk::BlockForward(const Ledger& l, bool moe, bool saved) const {
  const int64_t d = config_.hidden_size;
  l.Take(d);
  AttentionForward(l, saved);
  if (!saved) l.Give(d);
  l.Take(d);
  if (moe) {
    MoeForward(l, saved);
  } else {
    MlpForward(l, config_.intermediate_size, saved);
  }
  if (!saved) l.Give(2 * d);  // inputs of the second norm and of what follows it
}

void LayerWalk::BlockBackward(const Ledger& l, bool moe, bool split) const {
  const int64_t d = config_.hidden_size;
  if (moe) {
    MoeBackward(l, split);
  } else {
    MlpBackward(l, config_.intermediate_size, split);
  }
  if (!split) l.Give(d);  // what the second norm gave
  l.Take(d);
  l.Give(d);  // its input
  AttentionBackward(l, split);
  if (!split) l.Give(d);  // what the first norm gave
  l.Give(d);
  l.Take(d);
  l.Give(d);
  if (!split) l.Give(2 * d);  // gradients of the block's and of attention's output
  l.Give(d);                  // the block's input
}

void LayerWalk::CheckpointedBackward(const Ledger& l, bool moe, bool split) const {
  BlockForward(l, moe, true);
  l.Give(config_.hidden_size);
  BlockBackward(l, moe, split);
}

}  // namespace hone::model
