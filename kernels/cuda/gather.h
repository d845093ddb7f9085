// Copying rows by number: to[r] = from[index[r]], or to[index[r]] = from[r].
#pragma once

#include "kernels/cuda/elementwise.h"

namespace hone::kernels::cuda {

// Bits are copied as they are.
template <class T, bool kScatter>
struct MoveRows {
  static constexpr int kWidth = Pack<T>::kSize;
  Rows<T> from, to;
  const int32_t* index;
  __device__ void operator()(int64_t row, int64_t i, int64_t count, bool aligned) const {
    const T* source = from[kScatter ? row : index[row]] + i;
    T* target = to[kScatter ? index[row] : row] + i;
    if (aligned && count == kWidth) {
      StorePack(target, LoadPack(source));
    } else {
      for (int64_t j = 0; j < count; ++j) target[j] = source[j];
    }
  }
};

// `index` is on the host and has an entry for each row of `to` (of `from` when scattering).
template <class T, bool kScatter = false>
void GatherRows(Context& ctx, std::string_view op, const Tensor& from,
                std::span<const int32_t> index, const Tensor& to) {
  if (index.empty()) return;
  Tensor numbers = Upload(ctx, index);
  ForEachElement(ctx, op, false,
                 MoveRows<T, kScatter>{Rows<T>(from), Rows<T>(to), numbers.data<int32_t>()},
                 kScatter ? from : to, kScatter ? to : from);
}

}  // namespace hone::kernels::cuda
