// Attention with G key/value heads shared by H query heads (Ainslie et al., arXiv 2305.13245); with
// bias on q, k, v (Qwen2) or RMSNorm on each head of q and k before the rotation (Qwen3).
#include <optional>

#include "kernels/attention/attention.h"
#include "kernels/rope/rope.h"
#include "model/layers/layer.h"

namespace hone::model {
namespace {

class GroupedQueryAttention : public AttentionLayer {
 public:
  GroupedQueryAttention(ParameterBuilder& builder, const std::string& prefix,
                        const ModelConfig& config, const kernels::RopeTable& rope)
      : heads_(config.num_attention_heads),
        groups_(config.num_key_value_heads),
        dim_(config.head_dim),
        scale_(config.attention_scale()),
        rope_(rope),
        form_(config.rope_form),
        q_(builder, prefix + ".q_proj", config.hidden_size, heads_ * dim_, config.attention_bias),
        k_(builder, prefix + ".k_proj", config.hidden_size, groups_ * dim_, config.attention_bias),
        v_(builder, prefix + ".v_proj", config.hidden_size, groups_ * dim_, config.attention_bias),
        o_(builder, prefix + ".o_proj", heads_ * dim_, config.hidden_size, false,
           ParameterBuilder::Init::kNormalScaledByDepth) {
    if (config.qk_norm) {
      q_norm_.emplace(builder, prefix + ".q_norm", dim_, config.rms_norm_eps);
      k_norm_.emplace(builder, prefix + ".k_norm", dim_, config.rms_norm_eps);
    }
  }

  Tensor Forward(Context& ctx, const Tensor& x_TD, const PackView& pack,
                 RecordPtr* saved) const override;
  Tensor Backward(Context& ctx, const Tensor& dy_TD, const PackView& pack,
                  RecordPtr saved) const override;
  Tensor Decode(Context& ctx, const Tensor& x_TD, const DecodeView& decode) const override;

 private:
  struct Qkv {
    Tensor q_THC, k_TGC, v_TGC;           // as attention takes them
    Tensor q_before_norm, k_before_norm;  // only with QK norm
  };
  struct Saved : Record {
    Tensor x_TD;
    Qkv qkv;
    kernels::AttentionResult attention;
  };

  Qkv Project(Context& ctx, const Tensor& x_TD, std::span<const int32_t> position_T) const;
  Tensor Flat(const Tensor& x_THC) const {
    return x_THC.Reshape({x_THC.dim(0), x_THC.dim(1) * x_THC.dim(2)});
  }

  int64_t heads_, groups_, dim_;
  double scale_;
  const kernels::RopeTable& rope_;
  kernels::RopeForm form_;
  Linear q_, k_, v_, o_;
  std::optional<RmsNorm> q_norm_, k_norm_;
};

GroupedQueryAttention::Qkv GroupedQueryAttention::Project(
    Context& ctx, const Tensor& x_TD, std::span<const int32_t> position_T) const {
  const int64_t tokens = x_TD.dim(0);
  Qkv qkv;
  const std::vector<Tensor> projected = Linear::ForwardEach(ctx, x_TD, {&q_, &k_, &v_});
  qkv.q_THC = projected[0].Reshape({tokens, heads_, dim_});
  qkv.k_TGC = projected[1].Reshape({tokens, groups_, dim_});
  qkv.v_TGC = projected[2].Reshape({tokens, groups_, dim_});
  if (q_norm_) {
    qkv.q_before_norm = qkv.q_THC;
    qkv.k_before_norm = qkv.k_TGC;
    qkv.q_THC = q_norm_->Forward(ctx, qkv.q_THC);
    qkv.k_TGC = k_norm_->Forward(ctx, qkv.k_TGC);
  }
  kernels::Rope(ctx, qkv.q_THC, position_T, rope_, form_);
  kernels::Rope(ctx, qkv.k_TGC, position_T, rope_, form_);
  return qkv;
}

Tensor GroupedQueryAttention::Forward(Context& ctx, const Tensor& x_TD, const PackView& pack,
                                      RecordPtr* saved) const {
  Qkv qkv = Project(ctx, x_TD, pack.position_T);
  kernels::AttentionResult attention =
      kernels::Attention(ctx, qkv.q_THC, qkv.k_TGC, qkv.v_TGC, pack.cu_seqlens, scale_);
  Tensor y_TD = o_.Forward(ctx, Flat(attention.out_THV));
  if (saved) {
    auto record = std::make_unique<Saved>();
    record->x_TD = x_TD;
    record->qkv = std::move(qkv);
    record->attention = std::move(attention);
    *saved = std::move(record);
  }
  return y_TD;
}

Tensor GroupedQueryAttention::Backward(Context& ctx, const Tensor& dy_TD, const PackView& pack,
                                       RecordPtr record) const {
  auto& saved = static_cast<Saved&>(*record);
  const Qkv& qkv = saved.qkv;
  const int64_t tokens = dy_TD.dim(0);
  Tensor dout_THC =
      o_.Backward(ctx, dy_TD, Flat(saved.attention.out_THV)).Reshape({tokens, heads_, dim_});
  auto [dq, dk, dv] = kernels::AttentionBackward(ctx, dout_THC, qkv.q_THC, qkv.k_TGC, qkv.v_TGC,
                                                 saved.attention, pack.cu_seqlens, scale_);
  kernels::Rope(ctx, dq, pack.position_T, rope_, form_, /*inverse=*/true);
  kernels::Rope(ctx, dk, pack.position_T, rope_, form_, /*inverse=*/true);
  if (q_norm_) {
    dq = q_norm_->Backward(ctx, dq, qkv.q_before_norm);
    dk = k_norm_->Backward(ctx, dk, qkv.k_before_norm);
  }
  return Linear::BackwardSum(ctx, {{&q_, Flat(dq)}, {&k_, Flat(dk)}, {&v_, Flat(dv)}}, saved.x_TD);
}

Tensor GroupedQueryAttention::Decode(Context& ctx, const Tensor& x_TD,
                                     const DecodeView& decode) const {
  Qkv qkv = Project(ctx, x_TD, decode.position_T);
  decode.cache.Write(ctx, decode.layer, qkv.k_TGC, qkv.v_TGC,
                     decode.cache.NewTokenRows(decode.cu_seqlens, decode.pages_S, decode.length_S));
  kernels::PagedKv kv;
  kv.k_PSGC = decode.cache.first(decode.layer);
  kv.v_PSGV = decode.cache.second(decode.layer);
  kv.layout = decode.cache.layout();
  kv.pages_S.assign(decode.pages_S.begin(), decode.pages_S.end());
  kv.length_S.assign(decode.length_S.begin(), decode.length_S.end());
  return o_.Forward(ctx,
                    Flat(kernels::PagedAttention(ctx, qkv.q_THC, kv, decode.cu_seqlens, scale_)));
}

}  // namespace

std::unique_ptr<AttentionLayer> MakeGroupedQueryAttention(ParameterBuilder& builder,
                                                          const std::string& prefix,
                                                          const ModelConfig& config,
                                                          const kernels::RopeTable& rope) {
  return std::make_unique<GroupedQueryAttention>(builder, prefix, config, rope);
}

}  // namespace hone::model
