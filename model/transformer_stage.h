// A chunk of consecutive layers of a decoder, with the embedding in front if it is the first and
// the norm and heads behind if it is the last. The same code trains, evaluates and decodes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/kv_cache.h"
#include "model/layers/layer.h"
#include "model/model_config.h"
#include "parallel/expert_dispatcher.h"
#include "parallel/pipeline_stage.h"

namespace hone::model {

struct StageOptions {
  int64_t first_layer = 0, end_layer = 0;  // [first, end)
  bool has_embedding = true, has_head = true;
  DType dtype = DType::kF32;
  bool activation_checkpointing = false;  // keep only each layer's input, run its forward again
  bool with_gradients = true;             // false: inference and reference models
  bool record_routing = false;            // keep expert choices for replay
  MlaDecode mla_decode = MlaDecode::kExpand;
  std::vector<std::string> frozen;  // prefixes of parameter names that are not trained
};

// How `layers` are cut into `stages`: as even as can be, the first stages one more.
// ConfigError when there are more stages than layers.
std::vector<StageOptions> SplitLayers(const ModelConfig& config, int stages,
                                      const StageOptions& base);

// One step of decoding: sequences of new tokens whose past is in the cache.
struct DecodeBatch {
  std::vector<int32_t> token_T, position_T, cu_seqlens;  // new tokens, S sequences
  std::vector<std::vector<int32_t>> pages_S;             // pages that hold past and new tokens
  std::vector<int32_t> logits_rows;                      // rows of T whose logits are wanted
};

class TransformerStage : public parallel::PipelineStage {
 public:
  // `ep`: ranks that share the experts (nullptr: all here). Parameters are allocated, not set.
  TransformerStage(Context& ctx, const ModelConfig& config, const StageOptions& options,
                   parallel::GroupPtr ep = nullptr);
  ~TransformerStage() override;

  const ModelConfig& config() const;
  const StageOptions& options() const;

  // Sets every parameter as a function of (seed, tensor name, element): the same in any layout.
  // Normal with initializer_range; norms 1, biases 0, output projections scaled by 1/√(2·layers).
  // With `prefix`, those only whose names begin with it.
  void Initialize(uint64_t seed, int threads = 1, std::string_view prefix = "");
  // Names and slabs of all parameters and buffers: for checkpoints, publication, import.
  SlabIndex State();

  // parallel::PipelineStage
  std::vector<Parameter*> Parameters() override;
  parallel::StageIO InputBuffers(Context& ctx, const TokenBatch& batch) override;
  parallel::StageIO Forward(Context& ctx, int microbatch, const TokenBatch& batch,
                            parallel::StageIO in, const parallel::LossFunction* loss,
                            bool train) override;
  parallel::StageIO Backward(Context& ctx, int microbatch, parallel::StageIO doutput) override;
  // Block i of the forward runs beside block i from the end of the backward: while one's rows are
  // on their way to other ranks, the other computes.
  std::pair<parallel::StageIO, parallel::StageIO> Overlap(
      Context& ctx, int forward_microbatch, const TokenBatch& batch, parallel::StageIO in,
      const parallel::LossFunction* loss, PipelineStage& backward_stage, int backward_microbatch,
      parallel::StageIO doutput) override;
  bool overlaps_forward_backward() const override;
  Outcome TakeOutcome(int microbatch) override;
  Outcome TakeAuxiliary() override;
  // Expert choices of a forward with `record_routing`: [T, MoE layers of this stage, K], MTP's
  // last.
  std::vector<int32_t> TakeRouting(int microbatch);
  bool is_last() const override;
  void BeginStep(bool keep_head_output) override;
  void EndStep(Context& ctx, const std::function<void(std::vector<double>&)>& sum) override;

  // Inference on one stage that holds the whole model: writes new keys and values into the cache
  // and returns the logits [rows, V] of the wanted rows (f32 for f32 and bf16 models). Same bits as
  // Forward. With `routing_TLK` not null the experts chosen are appended there.
  Tensor Decode(Context& ctx, const DecodeBatch& batch, KvCache& cache,
                std::vector<int32_t>* routing_TLK = nullptr);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::model
