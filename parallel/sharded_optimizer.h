// ZeRO-1 AdamW (Rajbhandari et al., arXiv 1910.02054): every replica keeps the optimizer state of
// its own rows of dim 0, updates them, and gathers the new values.
#pragma once

#include <memory>
#include <vector>

#include "parallel/gradient_reducer.h"
#include "parallel/mesh.h"
#include "parallel/parameter.h"
#include "runtime/config.h"
#include "runtime/slab.h"

namespace hone::parallel {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip = 1.0;            // global gradient norm; 0: no clipping
  DType moments = DType::kF32;  // or bf16
  // Where masters and moments live. kHost: pinned host memory, brought to the device in pieces
  // (state_stream.h); on the CPU they are there anyway.
  enum class Offload { kNone, kHost };
  Offload offload = Offload::kNone;
  int64_t offload_piece_bytes = 16 << 20;  // no key
  void Read(ConfigReader& reader);
};

class ShardedOptimizer {
 public:
  // Collective over the mesh; masters start as the parameters' values.
  ShardedOptimizer(Context& ctx, const Mesh& mesh, std::vector<Parameter*> parameters,
                   const AdamWConfig& config);
  ~ShardedOptimizer();

  struct Result {
    double gradient_norm = 0;  // global, before clipping; the same on every rank and layout
    bool skipped = false;  // the norm was not finite, or over 1e19 once clipped: nothing changed
  };
  // Collective over the mesh. `reducer` has finished. Each parameter counts once in the norm:
  // experts once over the ranks that hold them, tied replicas once.
  Result Step(const GradientReducer& reducer, double lr);

  int64_t step() const;
  void set_step(int64_t step);
  // NAME is that of the parameter it is tied to, if any: replicas on several ranks share one slab.
  // optimizer/master/NAME, optimizer/exp_avg/NAME, optimizer/exp_avg_sq/NAME: this rank's rows as
  // slabs of the whole, up to date until the next step. Loading fills these tensors in place.
  SlabIndex State();
  // After loading: writes the masters into the parameters and gathers them.
  void PublishMasters();
  // After a stage begins from other weights: masters := parameters, moments := 0, step := 0.
  void Reset();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::parallel
