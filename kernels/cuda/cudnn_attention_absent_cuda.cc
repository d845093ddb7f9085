// Linked where the headers of cuDNN's frontend were not found, and to the emulator: our own kernels
// serve both modes.
#include "kernels/cuda/cudnn_attention.h"

namespace hone::kernels::cudnn {

bool Attention(Context&, const Tensor&, const Tensor&, const Tensor&, std::span<const int32_t>,
               double, const AttentionResult&) {
  return false;
}
bool AttentionBackward(Context&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                       const AttentionResult&, std::span<const int32_t>, double,
                       const AttentionGradients&) {
  return false;
}
bool PagedAttention(Context&, const Tensor&, const PagedKv&, std::span<const int32_t>, double,
                    const Tensor&) {
  return false;
}

}  // namespace hone::kernels::cudnn
