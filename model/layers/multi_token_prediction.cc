// T tokens of the batch, M rows that have a token two ahead, D model dim, V vocabulary, K experts a
// token.
#include "model/layers/multi_token_prediction.h"

#include <algorithm>

#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "model/layers/transformer_block.h"

namespace hone::model {

namespace {

// The rows of a batch that take part, as a batch of their own. Consecutive within each sequence.
struct Rows {
  std::vector<int32_t> source_M;  // the row of h
  std::vector<int32_t> token_M, target_M, position_M, cu_seqlens;
  std::vector<float> weight_M;
  // Spliced embeddings: row of the input, row of TokenBatch::embedding_VD.
  std::vector<std::pair<int32_t, int32_t>> spliced;

  int64_t size() const { return static_cast<int64_t>(source_M.size()); }
};

Rows ShiftedRows(const TokenBatch& batch) {
  Rows rows;
  rows.cu_seqlens.push_back(0);
  std::vector<int32_t> spliced_T(batch.token_T.size(), -1);
  for (size_t v = 0; v < batch.embedding_slot_V.size(); ++v) {
    spliced_T[batch.embedding_slot_V[v]] = static_cast<int32_t>(v);
  }
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    for (int32_t i = batch.cu_seqlens[s]; i + 1 < batch.cu_seqlens[s + 1]; ++i) {
      if (spliced_T[i + 1] >= 0) {
        rows.spliced.emplace_back(static_cast<int32_t>(rows.size()), spliced_T[i + 1]);
      }
      rows.source_M.push_back(i);
      rows.token_M.push_back(batch.token_T[i + 1]);
      rows.target_M.push_back(batch.target_T[i + 1]);
      rows.position_M.push_back(batch.position_T[i]);
      rows.weight_M.push_back(batch.loss_weight_T[i + 1]);
    }
    int32_t end = static_cast<int32_t>(rows.size());
    if (end > rows.cu_seqlens.back()) rows.cu_seqlens.push_back(end);
  }
  return rows;
}

// Calls fn(first row of T, first row of M, rows) for each run of rows that lie together in both.
template <class Fn>
void ForEachRun(const Rows& rows, Fn&& fn) {
  for (size_t s = 0; s + 1 < rows.cu_seqlens.size(); ++s) {
    int32_t begin = rows.cu_seqlens[s], end = rows.cu_seqlens[s + 1];
    fn(rows.source_M[begin], begin, end - begin);
  }
}

Tensor TakeRows(Context& ctx, const Tensor& x_TD, const Rows& rows) {
  Tensor y_MD = ctx.Empty({rows.size(), x_TD.cols()}, x_TD.dtype());
  ForEachRun(rows, [&](int64_t from, int64_t to, int64_t n) {
    CopyTo(x_TD.Slice(from, from + n), y_MD.Slice(to, to + n), &ctx.stream());
  });
  return y_MD;
}

Tensor PutRows(Context& ctx, const Tensor& y_MD, const Rows& rows, int64_t tokens) {
  Tensor x_TD = ctx.Zeros({tokens, y_MD.cols()}, y_MD.dtype());
  ForEachRun(rows, [&](int64_t to, int64_t from, int64_t n) {
    CopyTo(y_MD.Slice(from, from + n), x_TD.Slice(to, to + n), &ctx.stream());
  });
  return x_TD;
}

std::vector<int32_t> TakeChoices(std::span<const int32_t> choice_TK, const Rows& rows,
                                 int64_t top_k) {
  std::vector<int32_t> choice_MK;
  if (choice_TK.empty()) return choice_MK;
  for (int32_t t : rows.source_M) {
    auto first = choice_TK.begin() + t * top_k;
    choice_MK.insert(choice_MK.end(), first, first + top_k);
  }
  return choice_MK;
}

void PutChoices(const std::vector<int32_t>& choice_MK, const Rows& rows, int64_t tokens,
                int64_t top_k, std::vector<int32_t>& choice_TK) {
  choice_TK.resize(tokens * top_k);
  for (int64_t i = 0; i < tokens * top_k; ++i) choice_TK[i] = static_cast<int32_t>(i % top_k);
  if (choice_MK.empty()) return;  // a dense block
  for (size_t m = 0; m < rows.source_M.size(); ++m) {
    std::copy_n(choice_MK.begin() + m * top_k, top_k, choice_TK.begin() + rows.source_M[m] * top_k);
  }
}

struct MtpRecord : Record {
  int64_t tokens = 0;
  Rows rows;
  std::vector<int32_t> replay_MK;
  Tensor embedded_MD, h_MD;  // inputs of the two norms
  Tensor joined_M2D;         // input of eh_proj
  RecordPtr block;
  Tensor y_MD;        // input of the last norm
  Tensor dnormed_MD;  // gradient of its output, from the head

  BlockInput Input() const {
    return {{rows.position_M, rows.cu_seqlens},
            {replay_MK, rows.cu_seqlens, rows.weight_M, nullptr, {}}};
  }
};

}  // namespace

struct MultiTokenPrediction::Impl {
  Impl(ParameterBuilder& builder, const std::string& prefix, const ModelConfig& config,
       const kernels::RopeTable& rope, std::shared_ptr<parallel::ExpertDispatcher> dispatcher,
       const Parameter& embedding, const Parameter& head, bool activation_checkpointing)
      : enorm(builder, prefix + ".enorm", config.hidden_size, config.rms_norm_eps),
        hnorm(builder, prefix + ".hnorm", config.hidden_size, config.rms_norm_eps),
        eh_proj(builder, prefix + ".eh_proj", 2 * config.hidden_size, config.hidden_size, false),
        block(MakeTransformerBlock(builder, prefix, config,
                                   config.IsMoeLayer(config.num_hidden_layers), rope,
                                   MlaDecode::kExpand, std::move(dispatcher))),
        norm(builder, prefix + ".shared_head.norm", config.hidden_size, config.rms_norm_eps),
        embedding_VD(embedding),
        head_VD(head),
        loss_weight(config.mtp_loss_weight),
        top_k(config.num_experts_per_tok) {
    if (activation_checkpointing) block = MakeCheckpointedBlock(std::move(block));
  }

  Tensor Embed(Context& ctx, const Rows& rows, const TokenBatch& batch) const;
  void EmbedBackward(Context& ctx, const Tensor& dembedded_MD, const Rows& rows) const;
  double HeadLoss(Context& ctx, const Tensor& normed_MD, const Rows& rows,
                  Tensor* dnormed_MD) const;

  RmsNorm enorm, hnorm;
  Linear eh_proj;
  std::unique_ptr<Block> block;
  RmsNorm norm;
  const Parameter &embedding_VD, &head_VD;
  double loss_weight;
  int64_t top_k;
};

Tensor MultiTokenPrediction::Impl::Embed(Context& ctx, const Rows& rows,
                                         const TokenBatch& batch) const {
  Tensor embedded_MD = kernels::Embedding(ctx, embedding_VD.value, rows.token_M);
  for (auto [m, v] : rows.spliced) {
    CopyTo(batch.embedding_VD.Slice(v, v + 1), embedded_MD.Slice(m, m + 1), &ctx.stream());
  }
  return embedded_MD;
}

void MultiTokenPrediction::Impl::EmbedBackward(Context& ctx, const Tensor& dembedded_MD,
                                               const Rows& rows) const {
  if (!embedding_VD.gradient.defined()) return;
  for (auto [m, v] : rows.spliced) {
    kernels::ScaleInPlace(ctx, dembedded_MD.Slice(m, m + 1), 0);
  }
  kernels::EmbeddingBackward(ctx, dembedded_MD, rows.token_M, embedding_VD.gradient);
}

// Σ_m λ w_m (−logp_m); with `dnormed_MD` also its gradients.
double MultiTokenPrediction::Impl::HeadLoss(Context& ctx, const Tensor& normed_MD, const Rows& rows,
                                            Tensor* dnormed_MD) const {
  std::vector<float> weight_M = rows.weight_M;
  for (float& w : weight_M) w = static_cast<float>(w * loss_weight);
  Tensor dhead_VD;
  if (dnormed_MD) {
    dhead_VD = head_VD.gradient.defined()
                   ? head_VD.gradient
                   : ctx.Zeros(head_VD.value.shape(), kernels::AccDType(head_VD.value.dtype()));
  }
  kernels::CrossEntropyResult result = kernels::CrossEntropy(
      ctx, normed_MD, head_VD.value, rows.target_M, weight_M, dnormed_MD ? &dhead_VD : nullptr);
  if (dnormed_MD) *dnormed_MD = result.dx_TD;
  std::vector<double> logp_M = ToDoubles(result.logp_T);
  double loss = 0;
  for (size_t m = 0; m < logp_M.size(); ++m) loss -= weight_M[m] * logp_M[m];
  return loss;
}

MultiTokenPrediction::MultiTokenPrediction(ParameterBuilder& builder, const ModelConfig& config,
                                           const kernels::RopeTable& rope,
                                           std::shared_ptr<parallel::ExpertDispatcher> dispatcher,
                                           const Parameter& embedding_VD, const Parameter& head_VD,
                                           bool activation_checkpointing)
    : impl_(std::make_unique<Impl>(
          builder, "model.layers." + std::to_string(config.num_hidden_layers), config, rope,
          std::move(dispatcher), embedding_VD, head_VD, activation_checkpointing)) {}

MultiTokenPrediction::~MultiTokenPrediction() = default;

FeedForward& MultiTokenPrediction::feed_forward() const { return impl_->block->feed_forward(); }

double MultiTokenPrediction::Forward(Context& ctx, const Tensor& h_TD, const TokenBatch& batch,
                                     const Routing& routing, RecordPtr* saved) const {
  auto record = std::make_unique<MtpRecord>();
  int64_t dim = h_TD.cols();
  record->tokens = h_TD.dim(0);
  record->rows = ShiftedRows(batch);
  const Rows& rows = record->rows;
  record->replay_MK = TakeChoices(routing.replay_TK, rows, impl_->top_k);
  record->embedded_MD = impl_->Embed(ctx, rows, batch);
  record->h_MD = TakeRows(ctx, h_TD, rows);
  record->joined_M2D = ctx.Empty({rows.size(), 2 * dim}, h_TD.dtype());
  CopyTo(impl_->enorm.Forward(ctx, record->embedded_MD), record->joined_M2D.Columns(0, dim),
         &ctx.stream());
  CopyTo(impl_->hnorm.Forward(ctx, record->h_MD), record->joined_M2D.Columns(dim, 2 * dim),
         &ctx.stream());

  BlockInput input = record->Input();
  std::vector<int32_t> choice_MK;
  if (routing.routing_TK) input.moe.routing_TK = &choice_MK;
  record->y_MD = impl_->block->Forward(ctx, impl_->eh_proj.Forward(ctx, record->joined_M2D), input,
                                       saved ? &record->block : nullptr);
  if (routing.routing_TK) {
    PutChoices(choice_MK, rows, record->tokens, impl_->top_k, *routing.routing_TK);
  }
  double loss = impl_->HeadLoss(ctx, impl_->norm.Forward(ctx, record->y_MD), rows,
                                saved ? &record->dnormed_MD : nullptr);
  if (saved) *saved = std::move(record);
  return loss;
}

Tensor MultiTokenPrediction::Backward(Context& ctx, RecordPtr saved) const {
  auto& record = static_cast<MtpRecord&>(*saved);
  int64_t dim = record.h_MD.cols();
  Tensor dy_MD = impl_->norm.Backward(ctx, record.dnormed_MD, record.y_MD);
  Tensor dprojected_MD =
      impl_->block->Backward(ctx, dy_MD, record.Input(), std::move(record.block));
  Tensor djoined_M2D = impl_->eh_proj.Backward(ctx, dprojected_MD, record.joined_M2D);
  Tensor dembedded_MD = impl_->enorm.Backward(ctx, djoined_M2D.Columns(0, dim), record.embedded_MD);
  impl_->EmbedBackward(ctx, dembedded_MD, record.rows);
  Tensor dh_MD = impl_->hnorm.Backward(ctx, djoined_M2D.Columns(dim, 2 * dim), record.h_MD);
  return PutRows(ctx, dh_MD, record.rows, record.tokens);
}

}  // namespace hone::model
