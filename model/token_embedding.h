// Token ids to rows, with given rows spliced in where the batch says so.
#pragma once

#include "model/layers/layer.h"
#include "runtime/token_batch.h"

namespace hone::model {

class TokenEmbedding {
 public:
  explicit TokenEmbedding(Parameter* table_VD) : table_(table_VD) {}

  // Row t is the table's row of token_T[t], or embedding_VD[v] where embedding_slot_V[v] = t.
  Tensor Forward(Context& ctx, const TokenBatch& batch) const;
  // Adds to the table's gradient; spliced tokens add nothing. Returns the gradient of embedding_VD,
  // or an undefined tensor for a batch without one.
  Tensor Backward(Context& ctx, const Tensor& dy_TD, const TokenBatch& batch) const;

 private:
  Parameter* table_;
};

}  // namespace hone::model
