// How many bytes a stage of a model takes, from its config alone: nothing is allocated.
//
// Parameters follow from the tensor table. Activations are counted by walking through what the
// layers' Forward and Backward do and adding up what is alive at each point (memory_ledger.h), so
// that peaks are those of the allocator; docs/plan.md has the same as formulas.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "model/families/tensor_table.h"
#include "model/transformer_stage.h"

namespace hone::model {

// Those of TensorTable(config) that a stage holds, with the shapes of this rank's part: experts /
// ep of the stacked ones. The embedding that a tied head or multi-token prediction reads is there
// too where the stage has no embedding of its own.
std::vector<TensorInfo> StageTensors(const ModelConfig& config,
                                     const std::vector<TensorInfo>& table,
                                     const StageOptions& stage, int ep);

// The layer of "model.layers.N.…"; −1 of other names.
int64_t LayerOf(std::string_view name);

// What one microbatch looks like.
struct MicrobatchShape {
  int64_t tokens = 0;
  int64_t sequences = 1;
  int ep = 1;  // ranks that share the experts
  int threads = 1;
  bool cpu = true;  // CPU kernels make f32 copies of bf16 tensors
  enum class Loss { kCrossEntropy, kPolicy, kValues };
  Loss loss = Loss::kCrossEntropy;
};

// Of one microbatch on one stage. Bytes.
struct ActivationBytes {
  int64_t kept = 0;    // between its forward and its backward
  int64_t queued = 0;  // between the input half and the weight half of its backward
  // The highest while each block runs, what this microbatch keeps included: in the order of the
  // forward, and of the backward. What is before the first block and behind the last counts to
  // them.
  std::vector<int64_t> forward_at, backward_at, input_half_at;
  // What is there between the blocks: after each of the forward, before each of the backward.
  std::vector<int64_t> forward_after, backward_before;
  int64_t handed_on = 0;  // what travels to the next stage, or back
  int64_t exchange = 0;   // buffers of an expert exchange

  int64_t ForwardPeak() const;
  int64_t BackwardPeak() const;
  int64_t InputHalfPeak() const;
};
ActivationBytes EstimateActivations(const ModelConfig& config, const StageOptions& stage,
                                    const MicrobatchShape& shape);

// Cosines and sines of every position.
int64_t RopeTableBytes(const ModelConfig& config, DType dtype);

}  // namespace hone::model
