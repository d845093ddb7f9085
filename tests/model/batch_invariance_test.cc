// A random tiny model gives each sequence the same bits whatever shares its batch: training
// forward, prefill in chunks and decoding token by token; batches of 1, 7 and 64; 1 and 2 threads;
// experts on 1 and 2 ranks. Dims are no multiples of a vector's width and the vocabulary is odd.
// emulated: descending
// timeout: 600
#include <gtest/gtest.h>

#include "kernels/sampling/sampling.h"
#include "layer_testing.h"
#include "model/transformer_stage.h"
#include "parallel/comm/device_group.h"
#include "tests/device.h"

namespace hone::model {
namespace {

constexpr int64_t kVocab = 131, kPageSize = 16;

ModelConfig DeepSeek() {
  ModelConfig config;
  config.family = Family::kDeepSeekV3;
  config.hidden_size = 44;
  config.intermediate_size = 53;
  config.num_hidden_layers = 3;
  config.num_attention_heads = config.num_key_value_heads = 3;
  config.q_lora_rank = 21;
  config.kv_lora_rank = 19;
  config.qk_nope_head_dim = 9;
  config.qk_rope_head_dim = 6;
  config.v_head_dim = 7;
  config.head_dim = 6;
  config.rope.dim = 6;
  config.rope_form = kernels::RopeForm::kInterleaved;
  config.n_routed_experts = 8;
  config.n_shared_experts = 1;
  config.num_experts_per_tok = 3;
  config.moe_intermediate_size = 13;
  config.first_k_dense_replace = 1;
  config.n_group = 4;
  config.topk_group = 2;
  config.router = kernels::RouterConfig::Kind::kSigmoidGroups;
  config.num_nextn_predict_layers = 1;
  return config;
}

ModelConfig Qwen3() {
  ModelConfig config;
  config.family = Family::kQwen3;
  config.hidden_size = 44;
  config.intermediate_size = 53;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 10;
  config.rope.dim = 10;
  config.qk_norm = true;
  config.tie_word_embeddings = true;
  return config;
}

// Products large enough that threads share them.
ModelConfig Wide() {
  ModelConfig config = Qwen3();
  config.hidden_size = 164;
  config.intermediate_size = 301;
  config.head_dim = 42;
  config.rope.dim = 42;
  return config;
}

ModelConfig WithCommon(ModelConfig config, int64_t vocab = kVocab) {
  config.vocab_size = vocab;
  config.max_position_embeddings = 256;
  config.initializer_range = 0.25;
  return config;
}

using Sequences = std::vector<std::vector<int32_t>>;

// 64 sequences (9 on a GPU, which may be emulated) of 1 to 24 tokens; one or two longer than a page
// and longer than the key tile of attention.
Sequences MakeSequences() {
  RandomStream stream({7, HashName("sequences")});
  Sequences sequences(TestDevice().is_cpu() ? 64 : 9);
  uint64_t draw = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    int64_t length = s == 5 ? 150 : s == 40 ? 64 : 1 + stream.Below(24, draw++);
    for (int64_t i = 0; i < length; ++i) {
      sequences[s].push_back(static_cast<int32_t>(stream.Below(kVocab, draw++)));
    }
  }
  return sequences;
}

// Per sequence, the values of all its tokens one behind the other.
using Values = std::vector<std::vector<float>>;

struct Model {
  Model(const ModelConfig& config, DType dtype, int threads, parallel::GroupPtr ep = nullptr)
      : ctx(TestDevice(), threads),
        stage(ctx, config, Options(config, dtype), OnDevice(std::move(ep))) {
    stage.Initialize(3);
    for (const SlabTensor& entry : stage.State()) {  // a bias that changes the choice
      if (entry.slab.name.find("e_score_correction_bias") == std::string::npos) continue;
      std::vector<float> bias(entry.tensor.size());
      for (size_t e = 0; e < bias.size(); ++e) bias[e] = 0.1f * static_cast<float>(e % 3);
      CopyTo(Tensor(bias.data(), entry.tensor.shape(), DType::kF32, Device::Cpu()), entry.tensor);
    }
  }
  parallel::GroupPtr OnDevice(parallel::GroupPtr ep) {
    return ep && !ctx.device().is_cpu() ? parallel::MakeStagedGroup(ctx, std::move(ep)) : ep;
  }
  static StageOptions Options(const ModelConfig& config, DType dtype) {
    StageOptions options;
    options.end_layer = config.num_hidden_layers;
    options.dtype = dtype;
    options.activation_checkpointing = false;
    return options;
  }

  // Log-probabilities of `targets` by the training forward, sequences packed `batch` at a time.
  Values Train(const Sequences& sequences, const Sequences& targets, size_t batch);
  // Logits of every token by Decode: `batch` sequences at a time, each adding `chunk` tokens a
  // step; steps without any go on until `longest` tokens are done, as another rank may need.
  Values Decode(const Sequences& sequences, size_t batch, int64_t chunk, int64_t longest = 0);

  Context ctx;
  TransformerStage stage;
};

class CrossEntropyLoss : public parallel::LossFunction {
 public:
  explicit CrossEntropyLoss(bool one_pass) : one_pass_(one_pass) {}
  bool is_cross_entropy() const override { return one_pass_; }
  Result Evaluate(Context& ctx, const TokenBatch&, const parallel::HeadOutput& out) const override {
    Result result;
    if (!one_pass_) result.gradient.dlogp_T = ctx.ZerosLike(out.logp_T);
    return result;
  }

 private:
  bool one_pass_;
};

Values Model::Train(const Sequences& sequences, const Sequences& targets, size_t batch) {
  Values logp(sequences.size());
  for (size_t begin = 0; begin < sequences.size(); begin += batch) {
    size_t end = std::min(sequences.size(), begin + batch);
    TokenBatch pack;
    pack.cu_seqlens = {0};
    for (size_t s = begin; s < end; ++s) {
      pack.token_T.insert(pack.token_T.end(), sequences[s].begin(), sequences[s].end());
      pack.target_T.insert(pack.target_T.end(), targets[s].begin(), targets[s].end());
      pack.cu_seqlens.push_back(static_cast<int32_t>(pack.token_T.size()));
    }
    pack.position_T = PackedPositions(pack.cu_seqlens);
    pack.loss_weight_T.assign(pack.token_T.size(), 0.01f);
    CrossEntropyLoss loss(begin / batch % 2 == 0);  // both ways to score
    stage.BeginStep(/*keep_head_output=*/true);
    stage.Forward(ctx, 0, pack, {}, &loss, /*train=*/true);
    std::vector<double> values = ToDoubles(stage.TakeOutcome(0).head.logp_T);
    for (size_t s = begin; s < end; ++s) {
      logp[s].assign(values.begin() + pack.cu_seqlens[s - begin],
                     values.begin() + pack.cu_seqlens[s - begin + 1]);
    }
  }
  return logp;
}

Values Model::Decode(const Sequences& sequences, size_t batch, int64_t chunk, int64_t longest) {
  Values logits(sequences.size());
  const int64_t vocab = stage.config().vocab_size;
  KvCache cache(ctx, stage.config(), stage.config().num_hidden_layers, 512, kPageSize,
                stage.options().dtype);
  for (size_t begin = 0; begin < sequences.size(); begin += batch) {
    size_t end = std::min(sequences.size(), begin + batch);
    std::vector<std::vector<int32_t>> pages_S(end - begin);
    for (int64_t done = 0;; done += chunk) {
      DecodeBatch step;
      step.cu_seqlens = {0};
      std::vector<size_t> who;
      for (size_t s = begin; s < end; ++s) {
        int64_t length = static_cast<int64_t>(sequences[s].size());
        int64_t stop = std::min(length, done + chunk);
        if (stop <= done) continue;
        std::vector<int32_t>& pages = pages_S[s - begin];
        while (static_cast<int64_t>(pages.size()) * kPageSize < stop) {
          pages.push_back(cache.TakePage());
        }
        for (int64_t i = done; i < stop; ++i) {
          step.logits_rows.push_back(static_cast<int32_t>(step.token_T.size()));
          step.token_T.push_back(sequences[s][i]);
          step.position_T.push_back(static_cast<int32_t>(i));
          who.push_back(s);
        }
        step.cu_seqlens.push_back(static_cast<int32_t>(step.token_T.size()));
        step.pages_S.push_back(pages);
      }
      if (who.empty() && done >= longest) break;
      const auto values = runtime::ToVector<float>(stage.Decode(ctx, step, cache));
      for (size_t r = 0; r < who.size(); ++r) {
        const float* row = values.data() + r * vocab;
        logits[who[r]].insert(logits[who[r]].end(), row, row + vocab);
      }
    }
    for (const std::vector<int32_t>& pages : pages_S) {
      for (int32_t page : pages) cache.Release(page);
    }
  }
  return logits;
}

// What the sampler draws at each token from these logits, and the log-probabilities it records.
std::pair<Sequences, Values> Draw(Context& ctx, const Values& logits, int64_t vocab) {
  Sequences tokens(logits.size());
  Values logp(logits.size());
  RandomStream stream({9, HashName("draw")});
  uint64_t draw = 0;
  for (size_t s = 0; s < logits.size(); ++s) {
    int64_t rows = static_cast<int64_t>(logits[s].size()) / vocab;
    Tensor z = ctx.Clone(
        Tensor(const_cast<float*>(logits[s].data()), {rows, vocab}, DType::kF32, Device::Cpu()));
    std::vector<kernels::SamplingParams> params(rows);
    std::vector<double> uniform;
    for (int64_t r = 0; r < rows; ++r) uniform.push_back(stream.Uniform(draw++));
    for (const kernels::SampledToken& sampled : kernels::Sample(ctx, z, params, uniform)) {
      tokens[s].push_back(sampled.token);
      logp[s].push_back(sampled.logp);
    }
  }
  return {tokens, logp};
}

// Names the first sequence and place where two runs differ.
::testing::AssertionResult SameValues(const Values& got, const Values& want) {
  for (size_t s = 0; s < want.size(); ++s) {
    if (got[s].size() != want[s].size()) {
      return ::testing::AssertionFailure()
             << "sequence " << s << " has " << got[s].size() << " values, not " << want[s].size();
    }
    for (size_t i = 0; i < want[s].size(); ++i) {
      if (std::memcmp(&got[s][i], &want[s][i], sizeof(float)) == 0) continue;
      return ::testing::AssertionFailure() << "sequence " << s << ", value " << i << ": "
                                           << got[s][i] << " is not " << want[s][i];
    }
  }
  return ::testing::AssertionSuccess();
}

void CheckInvariance(const ModelConfig& config, DType dtype) {
  const Sequences sequences = MakeSequences();
  Model one(config, dtype, 1), two(config, dtype, TestDevice().is_cpu() ? 2 : 1);
  const Values logits = one.Decode(sequences, 1, 1);
  for (size_t batch : {7, 64}) {
    EXPECT_TRUE(SameValues(one.Decode(sequences, batch, 1), logits)) << "decoding, batch " << batch;
    if (!TestDevice().is_cpu()) continue;  // whose kernels know no host threads
    EXPECT_TRUE(SameValues(two.Decode(sequences, batch, 1), logits))
        << "decoding with two threads, batch " << batch;
  }
  for (int64_t chunk : {5, 64, 1000}) {
    EXPECT_TRUE(SameValues(one.Decode(sequences, 7, chunk), logits)) << "prefill by " << chunk;
    EXPECT_TRUE(SameValues(two.Decode(sequences, 64, chunk), logits))
        << "prefill with two threads by " << chunk;
  }
  const auto [targets, logp] = Draw(one.ctx, logits, config.vocab_size);
  for (size_t batch : {1, 7, 64}) {
    EXPECT_TRUE(SameValues(one.Train(sequences, targets, batch), logp)) << "training, " << batch;
    EXPECT_TRUE(SameValues(two.Train(sequences, targets, batch), logp))
        << "training with two threads, " << batch;
  }
}

TEST(BatchInvariance, DeepSeekV3) { CheckInvariance(WithCommon(DeepSeek()), DType::kF32); }
TEST(BatchInvariance, DeepSeekV3InBf16) { CheckInvariance(WithCommon(DeepSeek()), DType::kBF16); }
TEST(BatchInvariance, Qwen3) { CheckInvariance(WithCommon(Qwen3()), DType::kF32); }
TEST(BatchInvariance, WideEnoughForThreads) {
  if (!TestDevice().is_cpu()) GTEST_SKIP() << "its kernels know no host threads";
  CheckInvariance(WithCommon(Wide(), 1003), DType::kF32);
}
TEST(BatchInvariance, WideEnoughForThreadsInBf16) {
  if (!TestDevice().is_cpu()) GTEST_SKIP() << "its kernels know no host threads";
  CheckInvariance(WithCommon(Wide(), 1003), DType::kBF16);
}

void CheckExpertRanks(DType dtype) {
  const ModelConfig config = WithCommon(DeepSeek());
  Sequences sequences = MakeSequences();
  sequences.resize(sequences.size() / 2 * 2);  // ranks with as many each take as many steps
  Model one(config, dtype, 1);
  const Values logits = one.Decode(sequences, 64, 1000);
  const auto [targets, logp] = Draw(one.ctx, logits, kVocab);
  parallel::RunThreadRanks(2, [&, &targets = targets, &logp = logp](parallel::GroupPtr ep) {
    Model model(config, dtype, 1, ep);
    auto half = [&](const auto& all) {  // every other sequence
      auto mine = std::remove_cvref_t<decltype(all)>();
      for (size_t s = ep->rank(); s < all.size(); s += 2) mine.push_back(all[s]);
      return mine;
    };
    for (size_t batch : {16, 64}) {
      EXPECT_TRUE(SameValues(model.Train(half(sequences), half(targets), batch), half(logp)))
          << "training, batch " << batch;
    }
    int64_t longest = 0;  // a rank whose sequences have ended still has experts to lend
    for (const auto& sequence : sequences)
      longest = std::max(longest, static_cast<int64_t>(sequence.size()));
    for (auto [batch, chunk] : {std::pair{64, 1000}, {7, 64}, {64, 1}, {7, 1}, {1, 1}}) {
      EXPECT_TRUE(SameValues(model.Decode(half(sequences), batch, chunk, longest), half(logits)))
          << "batch " << batch << " by " << chunk;
      if (!TestDevice().is_cpu() && chunk == 1) break;  // the others take an emulated GPU seconds
    }
  });
}

TEST(BatchInvariance, DeepSeekV3OnTwoExpertRanks) { CheckExpertRanks(DType::kF32); }
TEST(BatchInvariance, DeepSeekV3OnTwoExpertRanksInBf16) { CheckExpertRanks(DType::kBF16); }

}  // namespace
}  // namespace hone::model
