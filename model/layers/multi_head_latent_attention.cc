// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 §2.1; DeepSeek-V3 eq. 1–11).
//
// T tokens, H heads, N qk_nope_head_dim, R qk_rope_head_dim, C = N + R, V v_head_dim, L
// kv_lora_rank.
//   c_TL  = RMSNorm(x · W_DKV)            the latent, shared by all heads
//   kr_TR = rope(x · W_KR)                the rotated key, shared by all heads
//   [k_nope | v]_h = c · W_UKV,h          k_h = [k_nope,h | kr]
//   q_h = [q_nope | rope(q_rope)]_h       from x · W_Q, or through a latent of q_lora_rank of its
//   own
// Decoding keeps c and kr only. `expand` makes keys and values from them with the same Linear as
// Forward, so with the same bits. `absorb` uses q_nope · k_nope = (q_nope · W_UK) · c and Σ p v =
// W_UV (Σ p c): one key/value head of L + R and L dims; another association of the same products.
#include <algorithm>

#include "kernels/attention/attention.h"
#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/linear/linear.h"
#include "model/layers/layer.h"

namespace hone::model {

namespace {

// The norms of the latents keep the default epsilon of DeepSeek's code, whatever rms_norm_eps says.
constexpr double kLatentNormEps = 1e-6;
// Rows of rebuilt keys and values that a decode step holds at once, unless one sequence has more.
constexpr int64_t kExpandRows = 8192;

using Init = ParameterBuilder::Init;

// CopyTo, shared among the threads.
void CopyRows(Context& ctx, const Tensor& source, const Tensor& target) {
  if (!ctx.device().is_cpu()) return CopyTo(source, target, &ctx.stream());
  int64_t per_token = std::max<int64_t>(1, source.size() / std::max<int64_t>(1, source.dim(0)));
  ctx.pool().ParallelFor(source.dim(0), kernels::RowGrain(per_token),
                         [&](int64_t begin, int64_t end) {
                           CopyTo(source.Slice(begin, end), target.Slice(begin, end));
                         });
}

struct MlaRecord : Record {
  Tensor x_TD;
  Tensor q_latent_TQ;          // before its norm; undefined when q_lora_rank is 0
  Tensor latent_TL;            // before its norm
  Tensor q_THC, k_THC, v_THV;  // what attention read
  kernels::AttentionResult attention;
};

class MultiHeadLatentAttention : public AttentionLayer {
 public:
  MultiHeadLatentAttention(ParameterBuilder& builder, const std::string& prefix,
                           const ModelConfig& config, const kernels::RopeTable& rope,
                           MlaDecode decode);
  Tensor Forward(Context& ctx, const Tensor& x_TD, const PackView& pack,
                 RecordPtr* saved) const override;
  Tensor Backward(Context& ctx, const Tensor& dy_TD, const PackView& pack,
                  RecordPtr saved) const override;
  Tensor Decode(Context& ctx, const Tensor& x_TD, const DecodeView& decode) const override;

 private:
  // What reads x on the way to the queries.
  const Linear* FirstOfQuery() const { return q_a_ ? q_a_.get() : q_b_.get(); }
  // What FirstOfQuery and kv_a_ give.
  std::vector<Tensor> Project(Context& ctx, const Tensor& x_TD) const {
    return Linear::ForwardEach(ctx, x_TD, {FirstOfQuery(), &kv_a_});
  }
  Tensor Query(Context& ctx, const Tensor& first_TQ, std::span<const int32_t> position_T) const;
  // Back to what FirstOfQuery gave.
  Tensor QueryBackward(Context& ctx, const Tensor& dq_THC, std::span<const int32_t> position_T,
                       const MlaRecord& record) const;
  // Keys and values of every head from normalised latents and rotated shared keys.
  std::pair<Tensor, Tensor> Expand(Context& ctx, const Tensor& c_TL, const Tensor& kr_TR) const;
  Tensor ExpandBackward(Context& ctx, const Tensor& dk_THC, const Tensor& dv_THV,
                        const Tensor& c_TL) const;
  Tensor SumOverHeads(Context& ctx, const Tensor& dk_THC) const;
  Tensor AttendKept(Context& ctx, const Tensor& q_THC, const DecodeView& decode) const;
  Tensor AttendExpanded(Context& ctx, const Tensor& q_THC, const DecodeView& decode) const;
  Tensor AttendAbsorbed(Context& ctx, const Tensor& q_THC, const DecodeView& decode) const;

  Tensor RopeColumns(const Tensor& t_THC) const { return t_THC.Columns(nope_, nope_ + rope_); }
  Tensor HeadColumns(const Tensor& t, int64_t head, int64_t width, int64_t begin,
                     int64_t end) const {
    Tensor flat = t.Reshape({t.dim(0), heads_ * width});
    return flat.Columns(head * width + begin, head * width + end);
  }

  int64_t heads_, nope_, rope_, value_, latent_;
  double scale_;
  kernels::RopeForm form_;
  const kernels::RopeTable& table_;
  MlaDecode decode_;
  std::unique_ptr<Linear> q_a_, q_b_;  // without q_lora_rank: q_b_ is q_proj and reads x
  std::unique_ptr<RmsNorm> q_norm_;
  Linear kv_a_;
  RmsNorm kv_norm_;
  Linear kv_b_, o_;
};

MultiHeadLatentAttention::MultiHeadLatentAttention(ParameterBuilder& builder,
                                                   const std::string& prefix,
                                                   const ModelConfig& config,
                                                   const kernels::RopeTable& rope, MlaDecode decode)
    : heads_(config.num_attention_heads),
      nope_(config.qk_nope_head_dim),
      rope_(config.qk_rope_head_dim),
      value_(config.v_head_dim),
      latent_(config.kv_lora_rank),
      scale_(config.attention_scale()),
      form_(config.rope_form),
      table_(rope),
      decode_(decode),
      kv_a_(builder, prefix + ".kv_a_proj_with_mqa", config.hidden_size, latent_ + rope_,
            config.attention_bias),
      kv_norm_(builder, prefix + ".kv_a_layernorm", latent_, kLatentNormEps),
      kv_b_(builder, prefix + ".kv_b_proj", latent_, heads_ * (nope_ + value_), false),
      o_(builder, prefix + ".o_proj", heads_ * value_, config.hidden_size, config.attention_bias,
         Init::kNormalScaledByDepth) {
  int64_t out = heads_ * (nope_ + rope_), rank = config.q_lora_rank;
  if (rank == 0) {
    q_b_ = std::make_unique<Linear>(builder, prefix + ".q_proj", config.hidden_size, out, false);
    return;
  }
  q_a_ = std::make_unique<Linear>(builder, prefix + ".q_a_proj", config.hidden_size, rank,
                                  config.attention_bias);
  q_norm_ = std::make_unique<RmsNorm>(builder, prefix + ".q_a_layernorm", rank, kLatentNormEps);
  q_b_ = std::make_unique<Linear>(builder, prefix + ".q_b_proj", rank, out, false);
}

Tensor MultiHeadLatentAttention::Query(Context& ctx, const Tensor& first_TQ,
                                       std::span<const int32_t> position_T) const {
  Tensor q = q_a_ ? q_b_->Forward(ctx, q_norm_->Forward(ctx, first_TQ)) : first_TQ;
  Tensor q_THC = q.Reshape({first_TQ.dim(0), heads_, nope_ + rope_});
  kernels::Rope(ctx, RopeColumns(q_THC), position_T, table_, form_);
  return q_THC;
}

Tensor MultiHeadLatentAttention::QueryBackward(Context& ctx, const Tensor& dq_THC,
                                               std::span<const int32_t> position_T,
                                               const MlaRecord& record) const {
  kernels::Rope(ctx, RopeColumns(dq_THC), position_T, table_, form_, /*inverse=*/true);
  Tensor dq = dq_THC.Reshape({dq_THC.dim(0), heads_ * (nope_ + rope_)});
  if (!q_a_) return dq;
  Tensor normed_TQ = q_norm_->Forward(ctx, record.q_latent_TQ);
  Tensor dnormed_TQ = q_b_->Backward(ctx, dq, normed_TQ);
  return q_norm_->Backward(ctx, dnormed_TQ, record.q_latent_TQ);
}

std::pair<Tensor, Tensor> MultiHeadLatentAttention::Expand(Context& ctx, const Tensor& c_TL,
                                                           const Tensor& kr_TR) const {
  int64_t tokens = c_TL.dim(0);
  Tensor kv = kv_b_.Forward(ctx, c_TL).Reshape({tokens, heads_, nope_ + value_});
  Tensor k_THC = ctx.Empty({tokens, heads_, nope_ + rope_}, kv.dtype());
  Tensor v_THV = ctx.Empty({tokens, heads_, value_}, kv.dtype());
  CopyRows(ctx, kv.Columns(0, nope_), k_THC.Columns(0, nope_));
  CopyRows(ctx, kv.Columns(nope_, nope_ + value_), v_THV);
  for (int64_t h = 0; h < heads_; ++h) {
    CopyRows(ctx, kr_TR, HeadColumns(k_THC, h, nope_ + rope_, nope_, nope_ + rope_));
  }
  return {k_THC, v_THV};
}

Tensor MultiHeadLatentAttention::ExpandBackward(Context& ctx, const Tensor& dk_THC,
                                                const Tensor& dv_THV, const Tensor& c_TL) const {
  int64_t tokens = c_TL.dim(0);
  Tensor dkv = ctx.Empty({tokens, heads_, nope_ + value_}, dk_THC.dtype());
  CopyRows(ctx, dk_THC.Columns(0, nope_), dkv.Columns(0, nope_));
  CopyRows(ctx, dv_THV, dkv.Columns(nope_, nope_ + value_));
  return kv_b_.Backward(ctx, dkv.Reshape({tokens, heads_ * (nope_ + value_)}), c_TL);
}

Tensor MultiHeadLatentAttention::SumOverHeads(Context& ctx, const Tensor& dk_THC) const {
  Tensor sum_TR = ctx.Zeros({dk_THC.dim(0), rope_}, kernels::AccDType(dk_THC.dtype()));
  for (int64_t h = 0; h < heads_; ++h) {
    kernels::AddInPlace(ctx, sum_TR, HeadColumns(dk_THC, h, nope_ + rope_, nope_, nope_ + rope_));
  }
  return sum_TR;
}

Tensor MultiHeadLatentAttention::Forward(Context& ctx, const Tensor& x_TD, const PackView& pack,
                                         RecordPtr* saved) const {
  int64_t tokens = x_TD.dim(0);
  auto record = std::make_unique<MlaRecord>();
  const std::vector<Tensor> projected = Project(ctx, x_TD);
  const Tensor& kv_a = projected[1];
  if (q_a_) record->q_latent_TQ = projected[0];
  record->q_THC = Query(ctx, projected[0], pack.position_T);
  record->latent_TL = kv_a.Columns(0, latent_);
  Tensor kr_TR = kv_a.Columns(latent_, latent_ + rope_);
  kernels::Rope(ctx, kr_TR.Reshape({tokens, 1, rope_}), pack.position_T, table_, form_);
  Tensor c_TL = kv_norm_.Forward(ctx, record->latent_TL);
  std::tie(record->k_THC, record->v_THV) = Expand(ctx, c_TL, kr_TR);
  record->attention =
      kernels::Attention(ctx, record->q_THC, record->k_THC, record->v_THV, pack.cu_seqlens, scale_);
  Tensor y_TD = o_.Forward(ctx, record->attention.out_THV.Reshape({tokens, heads_ * value_}));
  if (saved) {
    record->x_TD = x_TD;
    *saved = std::move(record);
  }
  return y_TD;
}

Tensor MultiHeadLatentAttention::Backward(Context& ctx, const Tensor& dy_TD, const PackView& pack,
                                          RecordPtr saved) const {
  auto& record = static_cast<MlaRecord&>(*saved);
  int64_t tokens = dy_TD.dim(0);
  Tensor out = record.attention.out_THV.Reshape({tokens, heads_ * value_});
  Tensor dout_THV = o_.Backward(ctx, dy_TD, out).Reshape({tokens, heads_, value_});
  auto [dq_THC, dk_THC, dv_THV] =
      kernels::AttentionBackward(ctx, dout_THV, record.q_THC, record.k_THC, record.v_THV,
                                 record.attention, pack.cu_seqlens, scale_);
  record.attention = {};
  record.q_THC = record.k_THC = record.v_THV = Tensor();

  Tensor c_TL = kv_norm_.Forward(ctx, record.latent_TL);  // cheaper to recompute than to keep
  Tensor dc_TL = ExpandBackward(ctx, dk_THC, dv_THV, c_TL);
  Tensor dkv_a = ctx.Empty({tokens, latent_ + rope_}, dy_TD.dtype());
  CopyRows(ctx, kv_norm_.Backward(ctx, dc_TL, record.latent_TL), dkv_a.Columns(0, latent_));
  Tensor dkr_TR = SumOverHeads(ctx, dk_THC);
  kernels::Rope(ctx, dkr_TR.Reshape({tokens, 1, rope_}), pack.position_T, table_, form_,
                /*inverse=*/true);
  CopyRows(ctx, kernels::Cast(ctx, dkr_TR, dy_TD.dtype()), dkv_a.Columns(latent_, latent_ + rope_));

  Tensor dfirst_TQ = QueryBackward(ctx, dq_THC, pack.position_T, record);
  return Linear::BackwardSum(ctx, {{FirstOfQuery(), dfirst_TQ}, {&kv_a_, dkv_a}}, record.x_TD);
}

Tensor MultiHeadLatentAttention::Decode(Context& ctx, const Tensor& x_TD,
                                        const DecodeView& decode) const {
  int64_t tokens = x_TD.dim(0);
  const std::vector<Tensor> projected = Project(ctx, x_TD);
  const Tensor& kv_a = projected[1];
  Tensor q_THC = Query(ctx, projected[0], decode.position_T);
  Tensor kr_TR = kv_a.Columns(latent_, latent_ + rope_);
  kernels::Rope(ctx, kr_TR.Reshape({tokens, 1, rope_}), decode.position_T, table_, form_);
  Tensor c_TL = kv_norm_.Forward(ctx, kv_a.Columns(0, latent_));
  std::vector<int64_t> rows =
      decode.cache.NewTokenRows(decode.cu_seqlens, decode.pages_S, decode.length_S);
  Tensor out_THV;
  if (decode.cache.expanded()) {
    Check<ConfigError>(decode_ == MlaDecode::kExpand,
                       "[mla] a cache of keys and values cannot be decoded by absorbing; make it "
                       "of latents");
    auto [k_THC, v_THV] = Expand(ctx, c_TL, kr_TR);
    decode.cache.Write(ctx, decode.layer, k_THC, v_THV, rows);
    out_THV = AttendKept(ctx, q_THC, decode);
  } else {
    decode.cache.Write(ctx, decode.layer, c_TL, kr_TR, rows);
    out_THV = decode_ == MlaDecode::kExpand ? AttendExpanded(ctx, q_THC, decode)
                                            : AttendAbsorbed(ctx, q_THC, decode);
  }
  return o_.Forward(ctx, out_THV.Reshape({tokens, heads_ * value_}));
}

// The pages of all sequences of a decode step over the given pools.
kernels::PagedKv PagesOf(const DecodeView& decode, const Tensor& k_PSGC, const Tensor& v_PSGV) {
  kernels::PagedKv kv{k_PSGC, v_PSGV, {}, {}, decode.cache.layout()};
  kv.pages_S.assign(decode.pages_S.begin(), decode.pages_S.end());
  kv.length_S.assign(decode.length_S.begin(), decode.length_S.end());
  return kv;
}

Tensor MultiHeadLatentAttention::AttendKept(Context& ctx, const Tensor& q_THC,
                                            const DecodeView& decode) const {
  return kernels::PagedAttention(
      ctx, q_THC,
      PagesOf(decode, decode.cache.first(decode.layer), decode.cache.second(decode.layer)),
      decode.cu_seqlens, scale_);
}

// Consecutive sequences [begin, end) of a decode step whose cached tokens, rounded up to whole
// pages, fit in kExpandRows (or one sequence): they are gathered one behind the other and numbered
// anew.
struct ExpandChunk {
  size_t begin, end;
  int64_t pages = 0;
};
std::vector<ExpandChunk> CutIntoChunks(const DecodeView& decode) {
  int64_t page_size = decode.cache.page_size();
  std::vector<ExpandChunk> chunks;
  for (size_t s = 0; s < decode.length_S.size(); ++s) {
    int64_t pages = (decode.length_S[s] + page_size - 1) / page_size;
    if (chunks.empty() || (chunks.back().pages + pages) * page_size > kExpandRows) {
      chunks.push_back({s, s});
    }
    chunks.back().end = s + 1;
    chunks.back().pages += pages;
  }
  return chunks;
}

Tensor MultiHeadLatentAttention::AttendExpanded(Context& ctx, const Tensor& q_THC,
                                                const DecodeView& decode) const {
  const Tensor& joint = decode.cache.joint(decode.layer);
  int64_t page_size = decode.cache.page_size(), width = latent_ + rope_;
  Tensor out_THV = ctx.Empty({q_THC.dim(0), heads_, value_}, q_THC.dtype());
  for (const ExpandChunk& chunk : CutIntoChunks(decode)) {
    Tensor gathered = ctx.Empty({chunk.pages, page_size, 1, width}, q_THC.dtype());
    std::vector<int32_t> numbers(chunk.pages);
    kernels::PagedKv kv;
    std::vector<int32_t> cu_seqlens = {0};
    int32_t first = decode.cu_seqlens[chunk.begin];
    int64_t next = 0;
    for (size_t s = chunk.begin; s < chunk.end; ++s) {
      int64_t pages = (decode.length_S[s] + page_size - 1) / page_size;
      for (int64_t p = 0; p < pages; ++p) {
        int64_t page = decode.pages_S[s][p];
        CopyRows(ctx, joint.Slice(page, page + 1), gathered.Slice(next + p, next + p + 1));
        numbers[next + p] = static_cast<int32_t>(next + p);
      }
      kv.pages_S.push_back(std::span<const int32_t>(numbers).subspan(next, pages));
      kv.length_S.push_back(decode.length_S[s]);
      cu_seqlens.push_back(decode.cu_seqlens[s + 1] - first);
      next += pages;
    }
    Tensor rows = gathered.Reshape({chunk.pages * page_size, width});
    auto [k, v] = Expand(ctx, rows.Columns(0, latent_), rows.Columns(latent_, width));
    kv.k_PSGC = k.Reshape({chunk.pages, page_size, heads_, nope_ + rope_});
    kv.v_PSGV = v.Reshape({chunk.pages, page_size, heads_, value_});
    int32_t last = decode.cu_seqlens[chunk.end];
    CopyRows(ctx, kernels::PagedAttention(ctx, q_THC.Slice(first, last), kv, cu_seqlens, scale_),
             out_THV.Slice(first, last));
  }
  return out_THV;
}

Tensor MultiHeadLatentAttention::AttendAbsorbed(Context& ctx, const Tensor& q_THC,
                                                const DecodeView& decode) const {
  int64_t tokens = q_THC.dim(0), per_head = nope_ + value_, width = latent_ + rope_;
  const Tensor& w = kv_b_.weight().value;  // [H · (N + V), L]
  Tensor absorbed = ctx.Empty({tokens, heads_, width}, q_THC.dtype());
  for (int64_t h = 0; h < heads_; ++h) {
    Tensor w_uk_NL = w.Slice(h * per_head, h * per_head + nope_);
    Tensor q_TN = ctx.Clone(HeadColumns(q_THC, h, nope_ + rope_, 0, nope_));
    CopyRows(ctx, kernels::LinearInputGradient(ctx, q_TN, w_uk_NL),
             HeadColumns(absorbed, h, width, 0, latent_));
  }
  CopyRows(ctx, RopeColumns(q_THC), absorbed.Columns(latent_, width));

  kernels::PagedKv kv =
      PagesOf(decode, decode.cache.joint(decode.layer), decode.cache.first(decode.layer));
  Tensor mixed_THL = kernels::PagedAttention(ctx, absorbed, kv, decode.cu_seqlens, scale_);

  Tensor out_THV = ctx.Empty({tokens, heads_, value_}, q_THC.dtype());
  for (int64_t h = 0; h < heads_; ++h) {
    Tensor w_uv_VL = w.Slice(h * per_head + nope_, (h + 1) * per_head);
    Tensor mixed_TL = ctx.Clone(HeadColumns(mixed_THL, h, latent_, 0, latent_));
    CopyRows(ctx, kernels::Linear(ctx, mixed_TL, w_uv_VL),
             HeadColumns(out_THV, h, value_, 0, value_));
  }
  return out_THV;
}

}  // namespace

std::unique_ptr<AttentionLayer> MakeMultiHeadLatentAttention(ParameterBuilder& builder,
                                                             const std::string& prefix,
                                                             const ModelConfig& config,
                                                             const kernels::RopeTable& rope,
                                                             MlaDecode decode) {
  return std::make_unique<MultiHeadLatentAttention>(builder, prefix, config, rope, decode);
}

}  // namespace hone::model
