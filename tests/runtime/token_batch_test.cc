// Every field of a batch is checked, and the message names it.
#include "runtime/token_batch.h"

#include <gmock/gmock.h>

#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Two sequences, of 3 and 2 tokens.
TokenBatch Sound() {
  TokenBatch batch;
  batch.token_T = {1, 2, 3, 4, 5};
  batch.target_T = {2, 3, TokenBatch::kNoTarget, 5, TokenBatch::kNoTarget};
  batch.position_T = {0, 1, 2, 0, 1};
  batch.cu_seqlens = {0, 3, 5};
  batch.loss_weight_T = {1, 1, 0, 1, 0};
  return batch;
}

std::string ErrorOf(const std::function<void(TokenBatch&)>& damage) {
  TokenBatch batch = Sound();
  damage(batch);
  return MessageOf<ShapeError>([&] { batch.Validate(6, 3, "step 4"); });
}

TEST(TokenBatchTest, SoundOnesPass) {
  TokenBatch batch = Sound();
  batch.Validate(6, 3, "here");
  EXPECT_EQ(batch.tokens(), 5);
  EXPECT_EQ(batch.sequences(), 2);
  batch.sampled_logp_T = batch.old_logp_T = batch.reference_logp_T =
      batch.advantage_T = {0, 0, 0, 0, 0};
  batch.sample_S = {7, 9};
  batch.routing_TLK.assign(5 * 2 * 2, 0);
  batch.Validate(6, 3, "here");
  TokenBatch empty;
  empty.cu_seqlens = {0};
  empty.Validate(6, 3, "here");
}

TEST(TokenBatchTest, EachFieldIsNamed) {
  using B = TokenBatch;
  EXPECT_THAT(ErrorOf([](B& b) { b.target_T.pop_back(); }),
              AllOf(StartsWith("[step 4]"), HasSubstr("target_T has 4")));
  EXPECT_THAT(ErrorOf([](B& b) { b.position_T.push_back(0); }), HasSubstr("position_T has 6"));
  EXPECT_THAT(ErrorOf([](B& b) { b.loss_weight_T.clear(); }), HasSubstr("loss_weight_T has 0"));
  EXPECT_THAT(ErrorOf([](B& b) { b.cu_seqlens = {}; }), HasSubstr("cu_seqlens"));
  EXPECT_THAT(ErrorOf([](B& b) { b.cu_seqlens = {0, 3, 4}; }), HasSubstr("cu_seqlens"));
  EXPECT_THAT(ErrorOf([](B& b) { b.cu_seqlens = {0, 3, 3, 5}; }), HasSubstr("cu_seqlens[1] = 3"));
  EXPECT_THAT(ErrorOf([](B& b) { b.token_T[3] = 6; }), HasSubstr("token_T[3] = 6"));
  EXPECT_THAT(ErrorOf([](B& b) { b.token_T[0] = -100; }), HasSubstr("token_T[0] = -100"));
  EXPECT_THAT(ErrorOf([](B& b) { b.target_T[1] = -1; }), HasSubstr("target_T[1] = -1"));
  EXPECT_THAT(ErrorOf([](B& b) { b.position_T[2] = 3; }), HasSubstr("position_T[2] = 3"));
  EXPECT_THAT(ErrorOf([](B& b) { b.loss_weight_T[2] = 0.5f; }), HasSubstr("loss_weight_T[2]"));
  EXPECT_THAT(ErrorOf([](B& b) { b.embedding_slot_V = {1}; }), HasSubstr("embedding_VD has 0"));
  EXPECT_THAT(ErrorOf([](B& b) { b.routing_TLK = {1, 2, 3}; }), HasSubstr("routing_TLK has 3"));
  EXPECT_THAT(ErrorOf([](B& b) { b.sampled_logp_T = {1}; }), HasSubstr("sampled_logp_T has 1"));
  EXPECT_THAT(ErrorOf([](B& b) { b.old_logp_T = {1}; }), HasSubstr("old_logp_T"));
  EXPECT_THAT(ErrorOf([](B& b) { b.reference_logp_T = {1}; }), HasSubstr("reference_logp_T"));
  EXPECT_THAT(ErrorOf([](B& b) { b.advantage_T = {1}; }), HasSubstr("advantage_T"));
  EXPECT_THAT(ErrorOf([](B& b) { b.sample_S = {1}; }), HasSubstr("sample_S has 1"));
}

TEST(TokenBatchTest, EmbeddingSlots) {
  Context ctx;
  auto error = [&](std::vector<int32_t> slots) {
    return ErrorOf([&](TokenBatch& b) {
      b.embedding_VD = ctx.Zeros({1, 4}, DType::kF32);
      b.embedding_slot_V = std::move(slots);
    });
  };
  EXPECT_THAT(error({5}), HasSubstr("embedding_slot_V[0] = 5"));
  EXPECT_THAT(error({1, 2}), HasSubstr("embedding_VD has 1 rows for 2"));
}

}  // namespace
}  // namespace hone::runtime
