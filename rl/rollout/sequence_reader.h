// Frozen weights that read whole sequences on a worker: what leases of kind logprob and score need.
// The bits are those of the learner's own forward pass, whatever is read together.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/transformer_stage.h"
#include "rl/rollout/coordinator.h"

namespace hone::rl {

// Not thread safe.
class SequenceReader {
 public:
  // kScore: the model has a value head, whatever `model` says.
  SequenceReader(LeaseKind kind, model::ModelConfig model, DType dtype, int threads,
                 Device device = {}, Numerics numerics = Numerics::kBatchInvariant);
  ~SequenceReader();

  // Where weights of version() go; set_version once they are there, and 0 before.
  SlabIndex State() { return stage_->State(); }
  int64_t version() const { return version_; }
  const std::string& digest() const { return digest_; }
  void set_version(int64_t version, const std::string& digest);

  // One forward over all of them, sequences of at least two tokens. kLogprob: sets logp, of
  // softmax(z / temperature), and weight_version of the tokens that a model drew. kScore: the value
  // at the last token but one, the last being only a target, as rewards["value"].
  void Read(double temperature, std::vector<Sample>* samples);

 private:
  LeaseKind kind_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<model::TransformerStage> stage_;
  int64_t version_ = 0;
  std::string digest_;
};

}  // namespace hone::rl
