// Multi-head latent attention: gradients, and the two ways to decode against the training forward.
#include <gtest/gtest.h>

#include "layer_testing.h"
#include "model/kv_cache.h"

namespace hone::model {
namespace {

ModelConfig TinyConfig(int64_t q_lora_rank) {
  ModelConfig config;
  config.family = Family::kDeepSeekV3;
  config.hidden_size = 22;
  config.num_attention_heads = config.num_key_value_heads = 3;
  config.q_lora_rank = q_lora_rank;
  config.kv_lora_rank = 13;
  config.qk_nope_head_dim = 7;
  config.qk_rope_head_dim = 6;
  config.v_head_dim = 5;
  config.rope.dim = 6;
  config.rope_form = kernels::RopeForm::kInterleaved;
  return config;
}

// One layer with parameters that do not depend on dtype or way of decoding, up to rounding.
struct Mla {
  Mla(Context& ctx, const ModelConfig& config, DType dtype, MlaDecode decode = MlaDecode::kExpand)
      : rope(kernels::MakeRopeTable(ctx, config.rope, 4096,
                                    dtype == DType::kF64 ? DType::kF64 : DType::kF32)),
        builder(ctx, {.dtype = dtype, .with_gradients = true, .frozen = {}}),
        layer(MakeMultiHeadLatentAttention(builder, "attn", config, rope, decode)) {
    FillParameters(ctx, builder, 11);
  }
  kernels::RopeTable rope;
  ParameterBuilder builder;
  std::unique_ptr<AttentionLayer> layer;
};

void CheckGradients(int64_t q_lora_rank) {
  Context ctx;
  ModelConfig config = TinyConfig(q_lora_rank);
  Mla mla(ctx, config, DType::kF64);
  std::vector<int32_t> cu_seqlens = {0, 1, 6, 9}, position_T = PackedPositions(cu_seqlens);
  PackView pack{position_T, cu_seqlens};
  Tensor x_TD = RandomTensor(ctx, {9, config.hidden_size}, DType::kF64, 1);
  Tensor dy_TD = RandomTensor(ctx, {9, config.hidden_size}, DType::kF64, 2);
  auto loss = [&] { return Dot(mla.layer->Forward(ctx, x_TD, pack, nullptr), dy_TD); };

  RecordPtr saved;
  mla.layer->Forward(ctx, x_TD, pack, &saved);
  Tensor dx_TD = mla.layer->Backward(ctx, dy_TD, pack, std::move(saved));
  ExpectGradient("x", x_TD, dx_TD, loss, 200);
  ExpectParameterGradients(mla.builder, loss);
}
TEST(Mla, GradientsWithQueryLatent) { CheckGradients(9); }
TEST(Mla, GradientsWithoutQueryLatent) { CheckGradients(0); }

// Decodes `length_S` sequences of which each step adds chunk_S[s] tokens (less at the end), all in
// one batch, with scattered pages; returns the outputs in packed order.
Tensor DecodeInChunks(Context& ctx, const Mla& mla, const ModelConfig& config, const Tensor& x_TD,
                      const std::vector<int32_t>& cu_seqlens, const std::vector<int32_t>& chunk_S,
                      int64_t page_size, KvCache::Mla kept = KvCache::Mla::kLatent) {
  size_t sequences = chunk_S.size();
  int64_t pages = 0;
  for (size_t s = 0; s < sequences; ++s) {
    pages += (cu_seqlens[s + 1] - cu_seqlens[s] + page_size - 1) / page_size;
  }
  KvCache cache(ctx, config, 2, pages, page_size, x_TD.dtype(), kept);
  std::vector<std::vector<int32_t>> pages_S(sequences);
  std::vector<int32_t> done_S(sequences, 0);
  Tensor y_TD = ctx.EmptyLike(x_TD);
  while (true) {
    std::vector<int32_t> position, new_cu = {0}, length, rows;
    std::vector<std::vector<int32_t>> step_pages;
    std::vector<size_t> who;
    for (size_t s = 0; s < sequences; ++s) {
      int32_t total = cu_seqlens[s + 1] - cu_seqlens[s];
      int32_t end = std::min(total, done_S[s] + chunk_S[s]);
      if (end == done_S[s]) continue;
      while (static_cast<int64_t>(pages_S[s].size()) * page_size < end) {
        pages_S[s].push_back(cache.TakePage());
      }
      for (int32_t i = done_S[s]; i < end; ++i) {
        position.push_back(i);
        rows.push_back(cu_seqlens[s] + i);
      }
      new_cu.push_back(static_cast<int32_t>(position.size()));
      length.push_back(end);
      step_pages.push_back(pages_S[s]);
      who.push_back(s);
      done_S[s] = end;
    }
    if (who.empty()) return y_TD;
    Tensor x = ctx.Empty({static_cast<int64_t>(rows.size()), x_TD.cols()}, x_TD.dtype());
    for (size_t i = 0; i < rows.size(); ++i) {
      CopyTo(x_TD.Slice(rows[i], rows[i] + 1), x.Slice(i, i + 1));
    }
    Tensor y = mla.layer->Decode(ctx, x, {position, new_cu, step_pages, length, cache, 1});
    for (size_t i = 0; i < rows.size(); ++i) {
      CopyTo(y.Slice(i, i + 1), y_TD.Slice(rows[i], rows[i] + 1));
    }
  }
}

class MlaDecoding : public ::testing::TestWithParam<DType> {};

TEST_P(MlaDecoding, ExpandGivesTheBitsOfForward) {
  Context ctx;
  for (int64_t q_lora_rank : {0, 9}) {
    ModelConfig config = TinyConfig(q_lora_rank);
    Mla mla(ctx, config, GetParam());
    std::vector<int32_t> cu_seqlens = {0, 70, 71, 200, 217},
                         position_T = PackedPositions(cu_seqlens);
    Tensor x_TD = RandomTensor(ctx, {217, config.hidden_size}, GetParam(), 3);
    Tensor want = mla.layer->Forward(ctx, x_TD, {position_T, cu_seqlens}, nullptr);
    for (const std::vector<int32_t>& chunk_S :
         {std::vector<int32_t>{1, 1, 1, 1}, {200, 200, 200, 200}, {3, 1, 17, 16}}) {
      for (KvCache::Mla kept : {KvCache::Mla::kLatent, KvCache::Mla::kExpanded}) {
        EXPECT_TRUE(
            SameBits(DecodeInChunks(ctx, mla, config, x_TD, cu_seqlens, chunk_S, 16, kept), want))
            << "chunks of " << chunk_S[0] << ", q_lora_rank " << q_lora_rank;
      }
    }
  }
}

// Pages so large that the sequences do not fit in one gathered chunk.
TEST_P(MlaDecoding, ExpandInSeveralChunksGivesTheBitsOfForward) {
  Context ctx;
  ModelConfig config = TinyConfig(0);
  Mla mla(ctx, config, GetParam());
  std::vector<int32_t> cu_seqlens = {0, 5, 9, 12}, position_T = PackedPositions(cu_seqlens);
  Tensor x_TD = RandomTensor(ctx, {12, config.hidden_size}, GetParam(), 3);
  Tensor want = mla.layer->Forward(ctx, x_TD, {position_T, cu_seqlens}, nullptr);
  EXPECT_TRUE(SameBits(DecodeInChunks(ctx, mla, config, x_TD, cu_seqlens, {4, 4, 4}, 4096), want));
}

TEST_P(MlaDecoding, AbsorbIsClose) {
  Context ctx;
  ModelConfig config = TinyConfig(9);
  Mla expand(ctx, config, GetParam()), absorb(ctx, config, GetParam(), MlaDecode::kAbsorb);
  std::vector<int32_t> cu_seqlens = {0, 70, 71, 100}, position_T = PackedPositions(cu_seqlens);
  Tensor x_TD = RandomTensor(ctx, {100, config.hidden_size}, GetParam(), 3);
  Tensor want = expand.layer->Forward(ctx, x_TD, {position_T, cu_seqlens}, nullptr);
  Tensor got = DecodeInChunks(ctx, absorb, config, x_TD, cu_seqlens, {5, 1, 9}, 16);
  double bound = GetParam() == DType::kF64 ? 1e-13 : GetParam() == DType::kF32 ? 1e-5 : 3e-2;
  EXPECT_LE(RelativeError(ToDoubles(got), ToDoubles(want)), bound);
}

TEST(Mla, AbsorbingNeedsLatents) {
  Context ctx;
  ModelConfig config = TinyConfig(0);
  Mla absorb(ctx, config, DType::kF32, MlaDecode::kAbsorb);
  Tensor x_TD = RandomTensor(ctx, {3, config.hidden_size}, DType::kF32, 3);
  EXPECT_THROW(DecodeInChunks(ctx, absorb, config, x_TD, {0, 3}, {3}, 16, KvCache::Mla::kExpanded),
               ConfigError);
}

INSTANTIATE_TEST_SUITE_P(DTypes, MlaDecoding,
                         ::testing::Values(DType::kF32, DType::kF64, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

}  // namespace
}  // namespace hone::model
