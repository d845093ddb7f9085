#include "model/transformer_stage_impl.h"

#include <utility>

#include "kernels/dispatch.h"
#include "model/families/tensor_table.h"

namespace hone::model {

using parallel::LossFunction;
using parallel::StageIO;

constexpr char kHidden[] = "hidden";

TransformerStage::Impl::Impl(Context& ctx, const ModelConfig& config, const StageOptions& options,
                             parallel::GroupPtr ep)
    : config(config),
      options(options),
      builder(ctx, {options.dtype, options.with_gradients, options.frozen}),
      rope(kernels::MakeRopeTable(ctx, config.rope, config.max_position_embeddings,
                                  kernels::AccDType(options.dtype))) {
  config.Validate("model");
  Check<ConfigError>(options.first_layer >= 0 && options.first_layer <= options.end_layer &&
                         options.end_layer <= config.num_hidden_layers,
                     "[stage] layers [{}, {}) of a model with {}", options.first_layer,
                     options.end_layer, config.num_hidden_layers);
  std::shared_ptr<parallel::ExpertDispatcher> dispatcher;
  if (config.is_moe()) {
    if (!ep) ep = parallel::MakeSingleGroup();
    expert_ranks = ep->size();
    dispatcher = std::make_shared<parallel::ExpertDispatcher>(ep, config.n_routed_experts);
  }
  if (options.has_embedding) {
    embedding_table = builder.Add(kEmbeddingName, {config.vocab_size, config.hidden_size},
                                  ParameterBuilder::Init::kNormal);
    embedding.emplace(embedding_table);
    embedding_parameters = {embedding_table};
  }
  for (int64_t layer = options.first_layer; layer < options.end_layer; ++layer) {
    const bool moe = config.IsMoeLayer(layer);
    const size_t first_entry = builder.entries().size();
    auto block = MakeTransformerBlock(builder, fmt::format("model.layers.{}", layer), config, moe,
                                      rope, options.mla_decode, dispatcher);
    blocks.push_back(options.activation_checkpointing ? MakeCheckpointedBlock(std::move(block))
                                                      : std::move(block));
    block_parameters.push_back(ParametersFrom(first_entry));
    moe_layers += moe;
  }
  const size_t first_entry = builder.entries().size();
  if (options.has_head) BuildHead(dispatcher);
  head_parameters = ParametersFrom(first_entry);
}

std::vector<Parameter*> TransformerStage::Impl::ParametersFrom(size_t first_entry) const {
  std::vector<Parameter*> parameters;
  for (size_t i = first_entry; i < builder.entries().size(); ++i) {
    parameters.push_back(builder.entries()[i].parameter.get());
  }
  return parameters;
}

// The embedding where this stage has none of its own: same name, marked as tied across the
// pipeline.
Parameter* TransformerStage::Impl::ReplicaOfEmbedding() {
  if (!embedding_table) {
    embedding_table = builder.Add(kEmbeddingName, {config.vocab_size, config.hidden_size},
                                  ParameterBuilder::Init::kNormal);
    embedding_table->spec.tied_to = kEmbeddingName;
  }
  return embedding_table;
}

void TransformerStage::Impl::BuildHead(std::shared_ptr<parallel::ExpertDispatcher> dispatcher) {
  Parameter* projection =
      config.tie_word_embeddings
          ? ReplicaOfEmbedding()
          : builder.Add("lm_head.weight", {config.vocab_size, config.hidden_size},
                        ParameterBuilder::Init::kNormal);
  head.emplace(builder, config, projection);
  if (config.num_nextn_predict_layers > 0) {
    head->AddMultiTokenPrediction(builder, config, rope, std::move(dispatcher),
                                  *ReplicaOfEmbedding(), options.activation_checkpointing);
    moe_layers += config.is_moe();
  }
}

int64_t TransformerStage::Impl::MoeIndex(int64_t block) const {
  const int64_t layer = options.first_layer + block;
  if (!config.IsMoeLayer(layer)) return -1;
  return layer - std::max(options.first_layer, config.first_k_dense_replace);
}

// routing_TLK holds every MoE layer of the model in order, with or without MTP's as the last.
void TransformerStage::Impl::ReplayFrom(const std::vector<int32_t>& routing_TLK,
                                        Microbatch& m) const {
  const int64_t tokens = m.batch.tokens(), k = config.num_experts_per_tok;
  const int64_t model_layers = config.num_hidden_layers - config.first_k_dense_replace;
  const int64_t layers = tokens > 0 ? static_cast<int64_t>(routing_TLK.size()) / (tokens * k) : 0;
  CheckShape(
      static_cast<int64_t>(routing_TLK.size()) == tokens * layers * k &&
          (layers == model_layers || layers == model_layers + config.num_nextn_predict_layers),
      "[stage] routing of {} choices for {} tokens, {} MoE layers and {} experts a token",
      routing_TLK.size(), tokens, model_layers, k);
  const int64_t first = std::max<int64_t>(options.first_layer - config.first_k_dense_replace, 0);
  for (int64_t i = 0; i < moe_layers && first + i < layers; ++i) {
    std::vector<int32_t> choice_TK;
    for (int64_t t = 0; t < tokens; ++t) {
      const auto begin = routing_TLK.begin() + (t * layers + first + i) * k;
      choice_TK.insert(choice_TK.end(), begin, begin + k);
    }
    m.replay_TK.push_back(std::move(choice_TK));
  }
}

TransformerStage::Impl::Microbatch TransformerStage::Impl::Begin(const TokenBatch& batch,
                                                                 bool train) const {
  Microbatch m;
  m.batch = batch;
  m.train = train;
  m.records.resize(blocks.size());
  if (options.record_routing) m.recorded_TK.resize(moe_layers);
  if (!batch.routing_TLK.empty() && config.is_moe()) ReplayFrom(batch.routing_TLK, m);
  return m;
}

BlockInput TransformerStage::Impl::InputOf(Microbatch& m, int64_t block) const {
  BlockInput input;
  input.pack = {m.batch.position_T, m.batch.cu_seqlens};
  const int64_t index = MoeIndex(block);
  if (index >= 0) {
    input.moe.cu_seqlens = m.batch.cu_seqlens;
    input.moe.loss_weight_T = m.batch.loss_weight_T;
    if (!m.replay_TK.empty()) input.moe.replay_TK = m.replay_TK[index];
    if (!m.recorded_TK.empty()) input.moe.routing_TK = &m.recorded_TK[index];
  }
  return input;
}

Tensor TransformerStage::Impl::Enter(Context& ctx, const Microbatch& m, const StageIO& in) const {
  if (embedding) return embedding->Forward(ctx, m.batch);
  CheckShape(in.size() == 1 && in[0].first == kHidden, "[stage] takes one tensor '{}', got {}",
             kHidden, in.size());
  return in[0].second;
}

StageIO TransformerStage::Impl::Leave(Context& ctx, int microbatch, Microbatch m,
                                      const Tensor& x_TD, const LossFunction* loss) {
  Outcome outcome;
  if (head) {
    OutputHead::Request request{loss, keep_head_output, {}};
    const size_t mtp = moe_layers - 1;
    if (head->mtp() && config.is_moe()) {
      if (m.replay_TK.size() > mtp) request.mtp_routing.replay_TK = m.replay_TK[mtp];
      if (!m.recorded_TK.empty()) request.mtp_routing.routing_TK = &m.recorded_TK[mtp];
    }
    outcome = head->Forward(ctx, x_TD, m.batch, request, m.train ? &m.head : nullptr);
  }
  double balance = 0;
  for (auto& block : blocks) balance += block->feed_forward().TakeAuxiliaryLoss();
  if (head && head->mtp()) balance += head->mtp()->feed_forward().TakeAuxiliaryLoss();
  if (config.balance_loss_alpha > 0 && m.train) {
    auxiliary.loss += balance;
    auxiliary.metrics["balance_loss"] += balance;
  }
  outcomes[microbatch] = std::move(outcome);
  if (options.record_routing) {
    std::vector<int32_t>& flat = routing_TLK[microbatch] = {};
    const int64_t k = config.num_experts_per_tok;
    for (int64_t t = 0; t < m.batch.tokens(); ++t) {
      for (const std::vector<int32_t>& choice_TK : m.recorded_TK) {
        if (choice_TK.empty()) continue;  // MTP did not run
        flat.insert(flat.end(), choice_TK.begin() + t * k, choice_TK.begin() + (t + 1) * k);
      }
    }
  }
  if (m.train) in_flight.insert_or_assign(microbatch, std::move(m));
  return head ? StageIO{} : StageIO{{kHidden, x_TD}};
}

TransformerStage::Impl::Microbatch TransformerStage::Impl::TakeRecord(int microbatch) {
  auto node = in_flight.extract(microbatch);
  Check<Error>(!node.empty(), "[stage] backward of microbatch {}, which has no forward in training",
               microbatch);
  return std::move(node.mapped());
}

Tensor TransformerStage::Impl::EnterBackward(Context& ctx, Microbatch& m,
                                             const StageIO& doutput) const {
  if (head) {
    return const_cast<OutputHead&>(*head).Backward(ctx, m.batch, std::move(m.head));
  }
  CheckShape(doutput.size() == 1, "[stage] backward takes one gradient, got {}", doutput.size());
  return doutput[0].second;
}

StageIO TransformerStage::Impl::LeaveBackward(Context& ctx, const Microbatch& m,
                                              const Tensor& dx_TD) const {
  if (!embedding) return {{kHidden, dx_TD}};
  Tensor dembedding_VD = embedding->Backward(ctx, dx_TD, m.batch);
  return dembedding_VD.defined() ? StageIO{{"embedding", dembedding_VD}} : StageIO{};
}

bool TransformerStage::Impl::MustNotOverlapItself() const {
  return head && config.tie_word_embeddings && config.num_nextn_predict_layers > 0;
}

}  // namespace hone::model
