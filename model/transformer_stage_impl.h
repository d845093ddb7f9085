// The inside of TransformerStage: shared by its source files only.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "model/layers/transformer_block.h"
#include "model/output_head.h"
#include "model/token_embedding.h"
#include "model/transformer_stage.h"

namespace hone::model {

struct TransformerStage::Impl {
  // One microbatch between its forward and its backward.
  struct Microbatch {
    TokenBatch batch;
    bool train = false;
    std::vector<RecordPtr> records;                 // one a block
    std::vector<std::vector<int32_t>> replay_TK;    // one a MoE layer here, MTP's last; or none
    std::vector<std::vector<int32_t>> recorded_TK;  // the same, as chosen
    OutputHead::Saved head;
  };

  Impl(Context& ctx, const ModelConfig& config, const StageOptions& options, parallel::GroupPtr ep);

  Microbatch Begin(const TokenBatch& batch, bool train) const;
  BlockInput InputOf(Microbatch& m, int64_t block) const;
  // Rows that enter the first block: of the embedding, or received.
  Tensor Enter(Context& ctx, const Microbatch& m, const parallel::StageIO& in) const;
  // After the last block: the head, or what is handed on. Books outcome, routing and record.
  parallel::StageIO Leave(Context& ctx, int microbatch, Microbatch m, const Tensor& x_TD,
                          const parallel::LossFunction* loss);
  Microbatch TakeRecord(int microbatch);
  Tensor EnterBackward(Context& ctx, Microbatch& m, const parallel::StageIO& doutput) const;
  parallel::StageIO LeaveBackward(Context& ctx, const Microbatch& m, const Tensor& dx_TD) const;
  // True where the head adds to a tied embedding in forward, and MTP to the same in backward: an
  // overlapped pass would add in another order than a separate one.
  bool MustNotOverlapItself() const;
  int64_t MoeIndex(int64_t block) const;  // among this stage's MoE layers; −1 for a dense block
  void ReplayFrom(const std::vector<int32_t>& routing_TLK, Microbatch& m) const;
  std::vector<Parameter*> ParametersFrom(size_t first_entry) const;
  Parameter* ReplicaOfEmbedding();
  void BuildHead(std::shared_ptr<parallel::ExpertDispatcher> dispatcher);

  ModelConfig config;
  StageOptions options;
  ParameterBuilder builder;
  kernels::RopeTable rope;
  Parameter* embedding_table = nullptr;
  std::optional<TokenEmbedding> embedding;
  std::vector<std::unique_ptr<Block>> blocks;
  std::optional<OutputHead> head;
  int64_t moe_layers = 0;  // MoE blocks here, MTP's included
  int expert_ranks = 1;
  // What is final after each part's backward.
  std::vector<Parameter*> embedding_parameters, head_parameters;
  std::vector<std::vector<Parameter*>> block_parameters;

  bool keep_head_output = false;
  std::map<int, Microbatch> in_flight;
  std::map<int, Outcome> outcomes;
  Outcome auxiliary;
  std::map<int, std::vector<int32_t>> routing_TLK;
};

}  // namespace hone::model
