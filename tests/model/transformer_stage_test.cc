// A stage against itself: what must not change any bit, what is spliced in, frozen, tied, decoded.
#include "model/transformer_stage.h"

#include "kernels/sampling/sampling.h"
#include "model/families/tensor_table.h"
#include "tests/model/stage_testing.h"

namespace hone::model {
namespace {

using Configs = testing::TestWithParam<std::pair<std::string, ModelConfig>>;
class StageTest : public Configs {
 protected:
  const ModelConfig& config() const { return GetParam().second; }
  Context ctx_;
  CrossEntropyLoss loss_;
};
ModelConfig TinyTiedV3() {
  ModelConfig c = TinyV3();
  c.tie_word_embeddings = true;
  return c;
}
INSTANTIATE_TEST_SUITE_P(Families, StageTest,
                         testing::Values(std::pair{std::string("dense"), TinyDense()},
                                         std::pair{std::string("tied"), TinyTied()},
                                         std::pair{std::string("softmax_moe"), TinySoftmaxMoe()},
                                         std::pair{std::string("v3"), TinyV3()},
                                         std::pair{std::string("v3_tied"), TinyTiedV3()}),
                         [](const auto& info) { return info.param.first; });

std::vector<Tensor> StepGradients(Context& ctx, TransformerStage& stage,
                                  const std::vector<TokenBatch>& batches,
                                  const LossFunction& loss) {
  ZeroGradients(stage);
  stage.BeginStep(false);
  for (size_t i = 0; i < batches.size(); ++i) {
    stage.Forward(ctx, static_cast<int>(i), batches[i], {}, &loss, true);
    stage.Backward(ctx, static_cast<int>(i), {});
  }
  return Gradients(ctx, stage);
}

TEST_P(StageTest, ActivationCheckpointingGivesTheSameBits) {
  const std::vector<TokenBatch> batches = {RandomBatch(config(), {9, 4}, 1),
                                           RandomBatch(config(), {3, 7}, 2)};
  StageOptions options = WholeModel(config(), DType::kF32);
  TransformerStage plain(ctx_, config(), options);
  options.activation_checkpointing = true;
  TransformerStage checkpointed(ctx_, config(), options);
  FillStage(ctx_, plain, 5);
  FillStage(ctx_, checkpointed, 5);
  ExpectSameBits(StepGradients(ctx_, checkpointed, batches, loss_),
                 StepGradients(ctx_, plain, batches, loss_));
  EXPECT_EQ(checkpointed.TakeOutcome(0).loss, plain.TakeOutcome(0).loss);
  EXPECT_EQ(checkpointed.TakeAuxiliary().loss, plain.TakeAuxiliary().loss);
  // Routers count each token once, whether its forward ran once or twice.
  std::vector<std::vector<double>> counts[2];
  for (int i : {0, 1}) {
    TransformerStage& stage = i ? checkpointed : plain;
    stage.EndStep(ctx_, [&](std::vector<double>& values) { counts[i].push_back(values); });
  }
  EXPECT_EQ(counts[1], counts[0]);
  EXPECT_EQ(counts[0].empty(), config().router == kernels::RouterConfig::Kind::kSoftmaxTopK);
}

TEST_P(StageTest, CheckpointingKeepsLessMemory) {
  const TokenBatch batch = RandomBatch(config(), {40, 20}, 1);
  auto kept = [&](bool checkpointing) {
    StageOptions options = WholeModel(config(), DType::kF32);
    options.activation_checkpointing = checkpointing;
    Context ctx;
    TransformerStage stage(ctx, config(), options);
    FillStage(ctx, stage, 5);
    const auto at = static_cast<size_t>(MemoryCategory::kActivations);
    const int64_t before = ctx.allocator()->Usage().live[at];
    stage.Forward(ctx, 0, batch, {}, &loss_, true);
    return ctx.allocator()->Usage().live[at] - before;
  };
  EXPECT_LT(kept(true), kept(false) / 2);
}

TEST_P(StageTest, OverlappedPassGivesTheSameBits) {
  TransformerStage stage(ctx_, config(), WholeModel(config(), DType::kF32));
  FillStage(ctx_, stage, 5);
  const TokenBatch a = RandomBatch(config(), {9, 4}, 1), b = RandomBatch(config(), {3, 8}, 2);
  auto run = [&](bool overlapped) {
    ZeroGradients(stage);
    stage.Forward(ctx_, 0, a, {}, &loss_, true);
    if (overlapped) {
      stage.Overlap(ctx_, 1, b, {}, &loss_, stage, 0, {});
    } else {
      stage.Forward(ctx_, 1, b, {}, &loss_, true);
      stage.Backward(ctx_, 0, {});
    }
    stage.Backward(ctx_, 1, {});
    return std::pair{Gradients(ctx_, stage), stage.TakeOutcome(1).loss};
  };
  const auto separate = run(false), overlapped = run(true);
  ExpectSameBits(overlapped.first, separate.first);
  EXPECT_EQ(overlapped.second, separate.second);
}

TEST_P(StageTest, WeightHalvesRunLaterGiveTheSameBits) {
  TransformerStage stage(ctx_, config(), WholeModel(config(), DType::kF32));
  FillStage(ctx_, stage, 5);
  const TokenBatch batch = RandomBatch(config(), {9, 4}, 1);
  const std::vector<Tensor> at_once = StepGradients(ctx_, stage, {batch}, loss_);
  ZeroGradients(stage);
  stage.Forward(ctx_, 0, batch, {}, &loss_, true);
  WeightGradientQueue queue;
  ctx_.weight_gradients = &queue;
  stage.Backward(ctx_, 0, {});
  ctx_.weight_gradients = nullptr;
  EXPECT_FALSE(queue.empty());
  for (; !queue.empty(); queue.pop_front()) queue.front()();
  ExpectSameBits(Gradients(ctx_, stage), at_once);
}

TEST_P(StageTest, TwoStagesGiveTheBitsOfOne) {
  const TokenBatch batch = RandomBatch(config(), {9, 4}, 1);
  TransformerStage whole(ctx_, config(), WholeModel(config(), DType::kF32));
  FillStage(ctx_, whole, 5);
  StepGradients(ctx_, whole, {batch}, loss_);
  const auto split = SplitLayers(config(), 2, WholeModel(config(), DType::kF32));
  TransformerStage first(ctx_, config(), split[0]), second(ctx_, config(), split[1]);
  FillStage(ctx_, first, 5);
  FillStage(ctx_, second, 5);
  StageIO hidden = first.Forward(ctx_, 0, batch, {}, &loss_, true);
  const StageIO buffers = second.InputBuffers(ctx_, batch);
  ASSERT_EQ(hidden.size(), buffers.size());
  EXPECT_EQ(hidden[0].first, buffers[0].first);
  EXPECT_EQ(hidden[0].second.shape(), buffers[0].second.shape());
  EXPECT_TRUE(second.Forward(ctx_, 0, batch, hidden, &loss_, true).empty());
  EXPECT_EQ(second.TakeOutcome(0).loss, whole.TakeOutcome(0).loss);
  first.Backward(ctx_, 0, second.Backward(ctx_, 0, {}));
  std::map<std::string, std::vector<double>> got;  // replicas of a tied tensor are added
  for (TransformerStage* stage : {&first, &second}) {
    for (Parameter* p : stage->Parameters()) {
      if (!p->gradient.defined()) continue;
      std::vector<double> values = ToDoubles(p->gradient), &sum = got[p->spec.name];
      sum.resize(values.size());
      for (size_t i = 0; i < values.size(); ++i) sum[i] += values[i];
    }
  }
  for (Parameter* p : whole.Parameters()) {
    if (!p->gradient.defined()) continue;
    const bool shared = p->spec.name == kEmbeddingName;  // another order of addition
    EXPECT_LE(RelativeError(got.at(p->spec.name), ToDoubles(p->gradient)), shared ? 1e-6 : 0.0)
        << p->spec.name;
  }
}

TEST_P(StageTest, HoldsTheTensorsOfTheTable) {
  TransformerStage stage(ctx_, config(), WholeModel(config(), DType::kF32));
  const std::vector<TensorInfo> table = TensorTable(config());
  const SlabIndex state = stage.State();
  ASSERT_EQ(state.size(), table.size());
  std::map<std::string, Shape> shapes;
  for (const SlabTensor& s : state) shapes[s.slab.name] = s.slab.global_shape;
  for (const TensorInfo& t : table) EXPECT_EQ(shapes[t.name], t.shape) << t.name;
}

TEST_P(StageTest, InitialValuesDoNotDependOnTheThreads) {
  ModelConfig large = config();
  large.vocab_size = 100'000 / large.hidden_size;  // more than a thread takes at once
  std::vector<Tensor> embeddings;
  for (int threads : {1, 3}) {
    TransformerStage stage(ctx_, large, WholeModel(large, DType::kF32));
    stage.Initialize(77, threads);
    for (const SlabTensor& s : stage.State()) {
      if (s.slab.name == kEmbeddingName) embeddings.push_back(s.tensor);
    }
  }
  ASSERT_EQ(embeddings.size(), 2U);
  EXPECT_TRUE(SameBits(embeddings[0], embeddings[1]));
}

TEST_P(StageTest, InitialValuesDoNotDependOnTheLayout) {
  TransformerStage whole(ctx_, config(), WholeModel(config(), DType::kF32));
  whole.Initialize(77);
  std::map<std::string, Tensor> values;
  for (const SlabTensor& s : whole.State()) values[s.slab.name] = s.tensor;
  for (const StageOptions& part : SplitLayers(config(), 2, WholeModel(config(), DType::kF32))) {
    TransformerStage stage(ctx_, config(), part);
    stage.Initialize(77, /*threads=*/3);
    for (const SlabTensor& s : stage.State()) {
      EXPECT_TRUE(SameBits(s.tensor, values.at(s.slab.name))) << s.slab.name;
    }
  }
  whole.Initialize(78);
  std::vector<double> w = ToDoubles(values.at(kEmbeddingName));
  double square = 0;
  for (double x : w) square += x * x;
  EXPECT_NEAR(std::sqrt(square / static_cast<double>(w.size())), config().initializer_range,
              0.2 * config().initializer_range);
}

TEST_P(StageTest, AnEmptyBatchAddsNothing) {
  TransformerStage stage(ctx_, config(), WholeModel(config(), DType::kF32));
  FillStage(ctx_, stage, 5);
  TokenBatch empty;
  empty.cu_seqlens = {0};
  StepGradients(ctx_, stage, {empty}, loss_);
  EXPECT_EQ(stage.TakeOutcome(0).loss, 0.0);
  for (const Tensor& g : Gradients(ctx_, stage)) {
    for (double x : ToDoubles(g)) ASSERT_EQ(x, 0.0);
  }
}

// Batches that only keep ranks in step are not the experts' load: their number depends on the
// layout.
TEST_P(StageTest, ABatchWithoutWeightIsNobodysLoad) {
  const TokenBatch batch = RandomBatch(config(), {9, 4}, 1);
  TokenBatch weightless = RandomBatch(config(), {6}, 2);
  std::fill(weightless.loss_weight_T.begin(), weightless.loss_weight_T.end(), 0.0f);
  for (bool checkpointing : {false, true}) {
    StageOptions options = WholeModel(config(), DType::kF32);
    options.activation_checkpointing = checkpointing;
    std::vector<std::vector<double>> counts[2];
    for (int i : {0, 1}) {
      TransformerStage stage(ctx_, config(), options);
      FillStage(ctx_, stage, 5);
      std::vector<TokenBatch> batches = {batch};
      if (i) batches.push_back(weightless);
      StepGradients(ctx_, stage, batches, loss_);
      stage.EndStep(ctx_, [&](std::vector<double>& values) { counts[i].push_back(values); });
    }
    EXPECT_EQ(counts[1], counts[0]);
  }
}

TEST_P(StageTest, ForgetsWhatASkippedStepCounted) {
  const TokenBatch skipped = RandomBatch(config(), {9, 4}, 2),
                   batch = RandomBatch(config(), {9}, 1);
  std::vector<std::vector<double>> counts[2];
  for (int i : {0, 1}) {
    TransformerStage stage(ctx_, config(), WholeModel(config(), DType::kF32));
    FillStage(ctx_, stage, 5);
    if (i) StepGradients(ctx_, stage, {skipped}, loss_);
    StepGradients(ctx_, stage, {batch}, loss_);
    stage.EndStep(ctx_, [&](std::vector<double>& values) { counts[i].push_back(values); });
  }
  EXPECT_EQ(counts[1], counts[0]);
}

// Decodes all of `batch` in chunks of `chunk` new tokens a sequence; the greedy token and its
// log-probability at each position.
std::vector<kernels::SampledToken> DecodeInChunks(Context& ctx, TransformerStage& stage,
                                                  const TokenBatch& batch, int32_t chunk) {
  const int64_t page_size = 4;
  KvCache cache(ctx, stage.config(), stage.config().num_hidden_layers, 64, page_size,
                stage.options().dtype);
  const int64_t sequences = batch.sequences();
  std::vector<std::vector<int32_t>> pages(sequences);
  std::vector<int32_t> done(sequences, 0);
  std::vector<kernels::SampledToken> result(batch.token_T.size());
  for (bool more = true; more;) {
    DecodeBatch step;
    step.cu_seqlens = {0};
    std::vector<int32_t> row_T;
    more = false;
    for (int64_t s = 0; s < sequences; ++s) {
      const int32_t begin = batch.cu_seqlens[s] + done[s];
      const int32_t count = std::min(chunk, batch.cu_seqlens[s + 1] - begin);
      if (count <= 0) continue;
      more = true;
      for (int32_t i = begin; i < begin + count; ++i) {
        step.token_T.push_back(batch.token_T[i]);
        step.position_T.push_back(batch.position_T[i]);
        step.logits_rows.push_back(static_cast<int32_t>(row_T.size()));
        row_T.push_back(i);
      }
      done[s] += count;
      while (static_cast<int64_t>(pages[s].size()) * page_size < done[s]) {
        pages[s].push_back(cache.TakePage());
      }
      step.cu_seqlens.push_back(static_cast<int32_t>(step.token_T.size()));
      step.pages_S.push_back(pages[s]);
    }
    if (!more) break;
    const Tensor logits = stage.Decode(ctx, step, cache);
    const std::vector<kernels::SamplingParams> params(row_T.size(), {0.0, 1.0, 0});
    const std::vector<double> uniform(row_T.size(), 0.5);
    const auto sampled = kernels::Sample(ctx, logits, params, uniform);
    for (size_t i = 0; i < row_T.size(); ++i) result[row_T[i]] = sampled[i];
  }
  return result;
}

void ExpectDecodeMatchesForward(Context& ctx, const ModelConfig& config, DType dtype) {
  TransformerStage stage(ctx, config, WholeModel(config, dtype));
  FillStage(ctx, stage, 5);
  TokenBatch batch = RandomBatch(config, {13, 1, 6}, 1);
  const auto whole = DecodeInChunks(ctx, stage, batch, 100);
  for (size_t t = 0; t < whole.size(); ++t) batch.target_T[t] = whole[t].token;
  stage.BeginStep(/*keep_head_output=*/true);
  stage.Forward(ctx, 0, batch, {}, nullptr, /*train=*/false);
  const std::vector<double> logp = ToDoubles(stage.TakeOutcome(0).head.logp_T);
  for (int32_t chunk : {100, 3, 1}) {
    const auto got = DecodeInChunks(ctx, stage, batch, chunk);
    for (size_t t = 0; t < got.size(); ++t) {
      EXPECT_EQ(got[t].token, whole[t].token) << "chunk " << chunk << ", token " << t;
      EXPECT_EQ(static_cast<double>(got[t].logp), logp[t]) << "chunk " << chunk << ", token " << t;
    }
  }
}

TEST_P(StageTest, DecodingGivesTheBitsOfTheTrainingForward) {
  ExpectDecodeMatchesForward(ctx_, config(), DType::kF32);
}
TEST_P(StageTest, DecodingGivesTheBitsOfTheTrainingForwardInBf16) {
  ExpectDecodeMatchesForward(ctx_, config(), DType::kBF16);
}

TEST(StageLayoutTest, InitialExpertsDoNotDependOnTheRanksThatHoldThem) {
  const ModelConfig config = TinyV3();
  Context ctx;
  TransformerStage whole(ctx, config, WholeModel(config, DType::kF64));
  whole.Initialize(77);
  std::map<std::string, Tensor> values;
  for (const SlabTensor& s : whole.State()) values[s.slab.name] = s.tensor;
  parallel::RunThreadRanks(2, [&](parallel::GroupPtr ep) {
    Context mine;
    TransformerStage stage(mine, config, WholeModel(config, DType::kF64), ep);
    stage.Initialize(77);
    int split = 0;
    for (const SlabTensor& s : stage.State()) {
      const int64_t begin = s.slab.offset[0];
      split += !s.slab.whole();
      EXPECT_TRUE(SameBits(s.tensor, values.at(s.slab.name).Slice(begin, begin + s.slab.extent[0])))
          << s.slab.ToString();
    }
    EXPECT_EQ(split, 9);  // gate, up and down of two layers and of MTP
  });
}

using MoeStageTest = StageTest;
INSTANTIATE_TEST_SUITE_P(Families, MoeStageTest,
                         testing::Values(std::pair{std::string("softmax_moe"), TinySoftmaxMoe()},
                                         std::pair{std::string("v3"), TinyV3()}),
                         [](const auto& info) { return info.param.first; });

TEST_P(MoeStageTest, ReplayedRoutingIsTheRecordedOne) {
  StageOptions options = WholeModel(config(), DType::kF32);
  options.record_routing = true;
  TransformerStage stage(ctx_, config(), options);
  FillStage(ctx_, stage, 5);
  TokenBatch batch = RandomBatch(config(), {9, 4}, 1);
  ForwardLoss(ctx_, stage, batch, loss_);
  const std::vector<int32_t> chosen = stage.TakeRouting(0);
  const int64_t layers = config().num_hidden_layers - config().first_k_dense_replace +
                         config().num_nextn_predict_layers;
  ASSERT_EQ(static_cast<int64_t>(chosen.size()),
            batch.tokens() * layers * config().num_experts_per_tok);
  const std::vector<Tensor> routed = StepGradients(ctx_, stage, {batch}, loss_);
  batch.routing_TLK = chosen;
  ExpectSameBits(StepGradients(ctx_, stage, {batch}, loss_), routed);
  // Other choices are obeyed, and recorded as such.
  std::vector<int32_t> other(chosen.size());
  for (size_t i = 0; i < other.size(); ++i) {
    other[i] = static_cast<int32_t>(i % config().num_experts_per_tok);
  }
  batch.routing_TLK = other;
  ForwardLoss(ctx_, stage, batch, loss_);
  EXPECT_EQ(stage.TakeRouting(0), other);
}

TEST(StageBatchTest, SplicedEmbeddingsReplaceRowsAndTakeTheirGradient) {
  Context ctx;
  const ModelConfig config = TinyDense();
  TransformerStage stage(ctx, config, WholeModel(config, DType::kF64));
  FillStage(ctx, stage, 5);
  const CrossEntropyLoss loss;
  TokenBatch batch = RandomBatch(config, {6, 5}, 1);
  // Two tokens of their own, whose table rows must stay without gradient.
  for (int32_t& t : batch.token_T) t = t >= 21 ? t - 5 : t;
  batch.token_T[2] = 21;
  batch.token_T[8] = 22;
  batch.embedding_slot_V = {2, 8};
  const Tensor& table = stage.Parameters()[0]->value;
  batch.embedding_VD = ctx.Clone(table.Slice(21, 23));
  TokenBatch plain = batch;
  plain.embedding_slot_V.clear();
  plain.embedding_VD = Tensor();
  EXPECT_EQ(ForwardLoss(ctx, stage, batch, loss), ForwardLoss(ctx, stage, plain, loss));

  batch.embedding_VD = RandomTensor(ctx, {2, config.hidden_size}, DType::kF64, 9);
  ZeroGradients(stage);
  ForwardLoss(ctx, stage, batch, loss);
  const StageIO dinput = stage.Backward(ctx, 0, {});
  ASSERT_EQ(dinput.size(), 1u);
  EXPECT_EQ(dinput[0].first, "embedding");
  const Tensor dtable = stage.Parameters()[0]->gradient;
  for (double g : ToDoubles(dtable.Slice(21, 23))) EXPECT_EQ(g, 0.0);
  ExpectGradient("embedding", batch.embedding_VD, dinput[0].second,
                 [&] { return ForwardLoss(ctx, stage, batch, loss); });
}

TEST(StageBatchTest, FrozenParametersHaveNoGradientAndChangeNoOther) {
  Context ctx;
  const ModelConfig config = TinyDense();
  const TokenBatch batch = RandomBatch(config, {6, 5}, 1);
  const CrossEntropyLoss loss;
  StageOptions options = WholeModel(config, DType::kF32);
  TransformerStage free(ctx, config, options);
  options.frozen = {"model.embed_tokens", "model.layers.1.", "lm_head", "model.norm"};
  TransformerStage frozen(ctx, config, options);
  FillStage(ctx, free, 5);
  FillStage(ctx, frozen, 5);
  for (TransformerStage* stage : {&free, &frozen}) {
    ForwardLoss(ctx, *stage, batch, loss);
    stage->Backward(ctx, 0, {});
  }
  const auto all = free.Parameters(), some = frozen.Parameters();
  ASSERT_EQ(all.size(), some.size());
  for (size_t i = 0; i < all.size(); ++i) {
    const std::string& name = some[i]->spec.name;
    const bool stays = name.starts_with("model.layers.0.") || name.starts_with("model.layers.2.");
    EXPECT_EQ(some[i]->spec.trainable, stays) << name;
    ASSERT_EQ(some[i]->gradient.defined(), stays) << name;
    if (!stays) continue;
    EXPECT_TRUE(SameBits(some[i]->gradient, all[i]->gradient)) << name;
  }
}

TEST(StageBatchTest, BadUseIsAnErrorThatSaysSo) {
  Context ctx;
  const ModelConfig config = TinyDense();
  StageOptions options = WholeModel(config, DType::kF32);
  EXPECT_THROW(SplitLayers(config, 4, options), ConfigError);
  options.with_gradients = false;
  TransformerStage stage(ctx, config, options);
  const CrossEntropyLoss loss;
  EXPECT_THROW(stage.Forward(ctx, 0, RandomBatch(config, {4}, 1), {}, &loss, true), Error);
  EXPECT_THROW(stage.Backward(ctx, 0, {}), Error);
  EXPECT_THROW(stage.TakeOutcome(3), Error);
}

}  // namespace
}  // namespace hone::model
