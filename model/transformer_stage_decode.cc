#include <numeric>

#include "kernels/embedding/embedding.h"
#include "model/transformer_stage_impl.h"

namespace hone::model {
namespace {

void CheckDecodeBatch(const DecodeBatch& batch, int64_t page_size) {
  const int64_t tokens = static_cast<int64_t>(batch.token_T.size());
  const size_t sequences = batch.pages_S.size();
  CheckShape(batch.position_T.size() == batch.token_T.size() &&
                 batch.cu_seqlens.size() == sequences + 1 && batch.cu_seqlens.front() == 0 &&
                 batch.cu_seqlens.back() == tokens,
             "[decode] {} tokens, {} positions, {} sequences, {} offsets", tokens,
             batch.position_T.size(), sequences, batch.cu_seqlens.size());
  for (size_t s = 0; s < sequences; ++s) {
    const int32_t begin = batch.cu_seqlens[s], end = batch.cu_seqlens[s + 1];
    CheckShape(begin < end, "[decode] sequence {} has no new token", s);
    CheckShape(batch.position_T[end - 1] - batch.position_T[begin] == end - 1 - begin,
               "[decode] positions of sequence {} are not consecutive", s);
    CheckShape(
        batch.position_T[end - 1] < page_size * static_cast<int64_t>(batch.pages_S[s].size()),
        "[decode] sequence {} has {} pages of {} tokens for position {}", s,
        batch.pages_S[s].size(), page_size, batch.position_T[end - 1]);
  }
  for (int32_t row : batch.logits_rows) {
    CheckShape(row >= 0 && row < tokens, "[decode] logits of row {} of {}", row, tokens);
  }
}

// Those rows of x: x itself where they are all of them, in order.
Tensor GatherRows(Context& ctx, const Tensor& x_TD, const std::vector<int32_t>& rows) {
  std::vector<int32_t> all(static_cast<size_t>(x_TD.rows()));
  std::iota(all.begin(), all.end(), 0);
  return rows == all ? x_TD : kernels::Embedding(ctx, x_TD, rows);
}

}  // namespace

Tensor TransformerStage::Decode(Context& ctx, const DecodeBatch& batch, KvCache& cache,
                                std::vector<int32_t>* routing_TLK) {
  Check<Error>(impl_->embedding && impl_->head &&
                   static_cast<int64_t>(impl_->blocks.size()) == config().num_hidden_layers,
               "[decode] needs the whole model in one stage");
  CheckDecodeBatch(batch, cache.page_size());
  std::vector<int32_t> length_S;
  for (size_t s = 0; s < batch.pages_S.size(); ++s) {
    length_S.push_back(batch.position_T[batch.cu_seqlens[s + 1] - 1] + 1);
  }
  TokenBatch tokens;
  tokens.token_T = batch.token_T;
  Tensor x_TD = impl_->embedding->Forward(ctx, tokens);
  std::vector<std::vector<int32_t>> choice_LTK;
  for (size_t i = 0; i < impl_->blocks.size(); ++i) {
    const int64_t layer = static_cast<int64_t>(i);
    const DecodeView view{
        batch.position_T, batch.cu_seqlens, batch.pages_S, length_S, cache, layer};
    FeedForward::MoeInput moe;
    moe.cu_seqlens = batch.cu_seqlens;
    if (routing_TLK && impl_->MoeIndex(layer) >= 0) moe.routing_TK = &choice_LTK.emplace_back();
    x_TD = impl_->blocks[i]->Decode(ctx, x_TD, view, moe);
  }
  const int64_t k = config().num_experts_per_tok;
  for (size_t t = 0; routing_TLK && t < batch.token_T.size(); ++t) {
    for (const std::vector<int32_t>& choice_TK : choice_LTK) {
      const auto begin = choice_TK.begin() + static_cast<int64_t>(t) * k;
      routing_TLK->insert(routing_TLK->end(), begin, begin + k);
    }
  }
  return impl_->head->Logits(ctx, GatherRows(ctx, x_TD, batch.logits_rows));
}

}  // namespace hone::model
