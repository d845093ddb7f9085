// Causal softmax attention over packed sequences, and over a paged KV cache.
//
// T tokens, H query heads, G key/value heads (G divides H; head h reads group h / (H/G)), C the dim
// of queries and keys, V the dim of values (V ≠ C for MLA). Sequence s is tokens [cu_seqlens[s],
// cu_seqlens[s+1]); token t sees the tokens of its own sequence up to itself.
//   out[t, h] = Σ_u softmax_u(scale · q[t, h] · k[u, g]) v[u, g]
// Tiled with a running maximum (Dao et al., FlashAttention, arXiv 2205.14135): no T×T matrix in
// memory. Batch invariance: keys are visited in tiles of kKeyTile from the start of the sequence,
// in one fixed order, so a query row's bits depend on its sequence up to it and on nothing else;
// packed, chunked and token-by-token runs give the same bits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/context.h"

namespace hone::kernels {

inline constexpr int64_t kKeyTile = 64;

struct AttentionResult {
  Tensor out_THV;
  Tensor lse_TH;  // log Σ exp(scale · q·k), in the accumulation dtype; what Backward needs
};

// q [T, H, C], k [T, G, C], v [T, G, V]; any row strides between (token, head) rows are not
// supported: last dims contiguous, rows as Tensor defines them.
AttentionResult Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC,
                          const Tensor& v_TGV, std::span<const int32_t> cu_seqlens, double scale);

struct AttentionGradients {
  Tensor dq_THC, dk_TGC, dv_TGV;
};
AttentionGradients AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                                     const Tensor& k_TGC, const Tensor& v_TGV,
                                     const AttentionResult& saved,
                                     std::span<const int32_t> cu_seqlens, double scale);

// How a pool of pages holds its tokens. By token, a token's heads stand together: the form that
// every device reads. By head, each head of a page has its values together, and its keys as the
// columns of a matrix, which is what products read: the CPU decodes from it without turning or
// gathering anything.
enum class KvLayout { kByToken, kByHead };

// Keys and values in pages of `page_size` tokens (a multiple of kKeyTile or a divisor of it). Slots
// of a page that no token has yet may hold anything.
struct PagedKv {
  Tensor k_PSGC;  // [pages, page_size, G, C]; by head [pages, G, C, page_size]
  Tensor v_PSGV;  // [pages, page_size, G, V]; by head [pages, G, page_size, V]
  // For each query sequence: its pages in order, and how many tokens it has, new ones included.
  std::vector<std::span<const int32_t>> pages_S;
  std::vector<int32_t> length_S;
  KvLayout layout = KvLayout::kByToken;
};
// Writes the keys and values of token t ([T, G, C], [T, G, V]) into pools by head, on the CPU: to
// slot row_T[t] % page_size of page row_T[t] / page_size. No two tokens have the same place.
void WriteByHead(Context& ctx, const Tensor& k_TGC, const Tensor& v_TGV,
                 std::span<const int64_t> row_T, const Tensor& k_PGCS, const Tensor& v_PGSV);
// The queries of sequence s are its last cu_seqlens[s+1] − cu_seqlens[s] tokens, whose keys and
// values are already in the pages. Same bits as Attention over the whole sequence.
Tensor PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                      std::span<const int32_t> cu_seqlens, double scale);

}  // namespace hone::kernels
