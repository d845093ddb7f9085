// Parameters for tests of the reducer and the optimizer: whole global tensors with known values and
// gradients, and the parts of them that a rank holds.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/parameter.h"
#include "runtime/context.h"

namespace hone::parallel {

// A number for (name, element, salt) with no pattern in it.
inline double Scrambled(const std::string& name, int64_t element, uint64_t salt) {
  uint64_t x = std::hash<std::string>{}(name) + salt * 0x9e3779b97f4a7c15u +
               static_cast<uint64_t>(element) * 0xbf58476d1ce4e5b9u;
  for (int i = 0; i < 2; ++i) {
    x ^= x >> 31;
    x *= 0x94d049bb133111ebu;
  }
  return static_cast<double>(x >> 11) / 9007199254740992.0 - 0.5;
}

struct ParamShape {
  std::string name;
  Shape shape;          // global
  bool expert = false;  // split over ep by dim 0, reduced over expert_data
  bool trainable = true;
  bool decay = true;
  std::string tied_to = "";
};

template <class T>
void Store(const Tensor& t, int64_t i, double value) {
  t.data<T>()[i] = static_cast<T>(static_cast<Acc<T>>(value));
}
inline void StoreAs(const Tensor& t, int64_t i, double value) {
  if (t.dtype() == DType::kF64) return Store<double>(t, i, value);
  if (t.dtype() == DType::kF32) return Store<float>(t, i, value);
  Store<BF16>(t, i, value);
}

// The rank's part of a parameter, with values from salt 0 of its shared name.
inline std::unique_ptr<Parameter> MakeParameter(Context& ctx, const ParamShape& shape, int ep_index,
                                                int ep, DType storage, DType accumulate) {
  auto p = std::make_unique<Parameter>();
  p->spec.name = shape.name;
  p->spec.slab = Slab::Whole(shape.name, shape.shape);
  if (shape.expert) {
    p->spec.slab.extent[0] = shape.shape[0] / ep;
    p->spec.slab.offset[0] = ep_index * (shape.shape[0] / ep);
    p->spec.reduce = ReduceGroup::kExpert;
  }
  p->spec.storage = storage;
  p->spec.gradient = p->spec.master = accumulate;
  p->spec.trainable = shape.trainable;
  p->spec.decay = shape.decay;
  p->spec.tied_to = shape.tied_to;
  p->value = ctx.Empty(p->spec.slab.extent, storage, MemoryCategory::kWeights);
  if (shape.trainable) {
    p->gradient = ctx.Zeros(p->spec.slab.extent, accumulate, MemoryCategory::kGradients);
  }
  const std::string& shared = shape.tied_to.empty() ? shape.name : shape.tied_to;
  int64_t first =
      p->spec.slab.offset[0] * (p->value.size() / std::max<int64_t>(1, p->value.dim(0)));
  for (int64_t i = 0; i < p->value.size(); ++i)
    StoreAs(p->value, i, Scrambled(shared, first + i, 0));
  return p;
}

// Where the part begins in the global tensor, in elements.
inline int64_t FirstElement(const Parameter& p) {
  int64_t row = 1;
  for (size_t d = 1; d < p.spec.slab.extent.size(); ++d) row *= p.spec.slab.extent[d];
  return p.spec.slab.offset[0] * row;
}

// gradient[i] = fn(global element)
inline void FillGradient(Parameter& p, const std::function<double(int64_t)>& fn) {
  for (int64_t i = 0; i < p.gradient.size(); ++i) StoreAs(p.gradient, i, fn(FirstElement(p) + i));
}

inline std::vector<Parameter*> Pointers(const std::vector<std::unique_ptr<Parameter>>& owned) {
  std::vector<Parameter*> pointers;
  for (const auto& p : owned) pointers.push_back(p.get());
  return pointers;
}

}  // namespace hone::parallel
