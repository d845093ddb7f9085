// What the ops that end in a vocabulary head share: the checks of their inputs, and working only on
// the rows that have a target, so that prompts and masked tokens cost no GEMM.
//
// T tokens, D model dim, V vocabulary; B rows of a block, row_B their token numbers in ascending
// order.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/context.h"
#include "runtime/token_batch.h"

namespace hone::kernels {

inline bool HasTarget(int32_t target) { return target != TokenBatch::kNoTarget; }

// x [T, D] and w [V, D] of one float dtype, a target a token, each kNoTarget or in [0, V).
void CheckHeadInputs(std::string_view op, const Context& ctx, const Tensor& x_TD,
                     const Tensor& w_VD, std::span<const int32_t> target_T);

// The tokens that have a target, in order.
std::vector<int32_t> RowsWithTarget(std::span<const int32_t> target_T);

// Calls fn(row_B) for consecutive blocks of LogitBlockRows of `rows`.
template <class Fn>
void ForRowBlocks(const Context& ctx, std::span<const int32_t> rows, int64_t vocab, Fn&& fn);

// Those rows of x: a view where they are consecutive, a copy otherwise.
Tensor GatherRows(Context& ctx, const Tensor& x_TD, std::span<const int32_t> row_B);
// y[row_B[b]] = rows[b]
void ScatterRows(Context& ctx, const Tensor& rows_BD, std::span<const int32_t> row_B,
                 const Tensor& y_TD);

// Depends on the kind of device and the vocabulary only. On the CPU a block's logits stay near the
// cores: at most 4 MB of f32 where 64 rows allow it. A GPU wants blocks in which reading w once is
// little: 2^27 logits. No more than 1024 rows.
int64_t LogitBlockRows(Device device, int64_t vocab);

template <class Fn>
void ForRowBlocks(const Context& ctx, std::span<const int32_t> rows, int64_t vocab, Fn&& fn) {
  size_t block = static_cast<size_t>(LogitBlockRows(ctx.device(), vocab));
  for (size_t begin = 0; begin < rows.size(); begin += block) {
    fn(rows.subspan(begin, std::min(block, rows.size() - begin)));
  }
}

}  // namespace hone::kernels
