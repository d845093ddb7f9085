// What the ops that end in a vocabulary head check of their inputs.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/dispatch.h"
#include "runtime/token_batch.h"

namespace hone::kernels {

inline bool HasTarget(int32_t target) { return target != TokenBatch::kNoTarget; }

inline void CheckHeadInputs(std::string_view op, const Context& ctx, const Tensor& x_TD,
                            const Tensor& w_VD, std::span<const int32_t> target_T) {
  RequireCpu(op, ctx);
  CheckTensor(op, "x", ctx, x_TD, x_TD.dtype());
  CheckTensor(op, "w", ctx, w_VD, x_TD.dtype());
  CheckShape(x_TD.ndim() == 2 && w_VD.ndim() == 2 && x_TD.dim(1) == w_VD.dim(1),
             "[{}] x of shape {} and w of shape {} do not fit [tokens, dim] and [vocabulary, dim]",
             op, runtime::ShapeToString(x_TD.shape()), runtime::ShapeToString(w_VD.shape()));
  CheckShape(w_VD.dim(0) > 0, "[{}] the vocabulary is empty", op);
  CheckShape(static_cast<int64_t>(target_T.size()) == x_TD.dim(0), "[{}] {} targets for {} tokens",
             op, target_T.size(), x_TD.dim(0));
  for (size_t t = 0; t < target_T.size(); ++t) {
    CheckShape(!HasTarget(target_T[t]) || (target_T[t] >= 0 && target_T[t] < w_VD.dim(0)),
               "[{}] target {} of token {} is outside the vocabulary [0, {})", op, target_T[t], t,
               w_VD.dim(0));
  }
}

}  // namespace hone::kernels
