#include "model/token_embedding.h"

#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"

namespace hone::model {

Tensor TokenEmbedding::Forward(Context& ctx, const TokenBatch& batch) const {
  Tensor y_TD = kernels::Embedding(ctx, table_->value, batch.token_T);
  for (size_t v = 0; v < batch.embedding_slot_V.size(); ++v) {
    const int64_t row = static_cast<int64_t>(v), slot = batch.embedding_slot_V[v];
    CopyTo(batch.embedding_VD.Slice(row, row + 1), y_TD.Slice(slot, slot + 1), &ctx.stream());
  }
  return y_TD;
}

Tensor TokenEmbedding::Backward(Context& ctx, const Tensor& dy_TD, const TokenBatch& batch) const {
  Tensor of_table_TD = dy_TD, of_spliced_VD;
  if (!batch.embedding_slot_V.empty()) {
    of_table_TD = ctx.Clone(dy_TD);
    const int64_t slots = static_cast<int64_t>(batch.embedding_slot_V.size());
    of_spliced_VD = ctx.Empty({slots, dy_TD.cols()}, dy_TD.dtype());
    for (int64_t v = 0; v < slots; ++v) {
      const int64_t slot = batch.embedding_slot_V[v];
      CopyTo(dy_TD.Slice(slot, slot + 1), of_spliced_VD.Slice(v, v + 1), &ctx.stream());
      kernels::ScaleInPlace(ctx, of_table_TD.Slice(slot, slot + 1), 0.0);
    }
  }
  if (table_->gradient.defined()) {
    kernels::EmbeddingBackward(ctx, of_table_TD, batch.token_T, table_->gradient);
  }
  return of_spliced_VD;
}

}  // namespace hone::model
