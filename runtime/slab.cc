#include "runtime/slab.h"

#include <algorithm>
#include <unordered_map>

namespace hone::runtime {

Slab Slab::Whole(std::string name, Shape shape) {
  Shape zero(shape.size(), 0);
  return {std::move(name), shape, std::move(zero), shape};
}

std::string Slab::ToString() const {
  std::string s = name + "[";
  for (size_t d = 0; d < extent.size(); ++d) {
    s += fmt::format("{}{}:{}", d ? ", " : "", offset[d], offset[d] + extent[d]);
  }
  return s + "] of " + ShapeToString(global_shape);
}

Slab Intersect(const Slab& a, const Slab& b) {
  Slab both = a;
  for (size_t d = 0; d < a.extent.size(); ++d) {
    int64_t begin = std::max(a.offset[d], b.offset[d]);
    int64_t end = std::min(a.offset[d] + a.extent[d], b.offset[d] + b.extent[d]);
    both.offset[d] = begin;
    both.extent[d] = std::max<int64_t>(0, end - begin);
  }
  return both;
}

std::vector<Slab> Subtract(const Slab& a, const Slab& b) {
  Slab both = Intersect(a, b);
  if (both.size() == 0) {
    return a.size() == 0 ? std::vector<Slab>{} : std::vector<Slab>{a};
  }
  // Cut off what lies before and after `both` along one dim after the other; `rest` shrinks to it.
  std::vector<Slab> parts;
  Slab rest = a;
  for (size_t d = 0; d < a.extent.size(); ++d) {
    int64_t begin = both.offset[d], end = begin + both.extent[d];
    if (begin > rest.offset[d]) {
      parts.push_back(rest);
      parts.back().extent[d] = begin - rest.offset[d];
    }
    if (end < rest.offset[d] + rest.extent[d]) {
      parts.push_back(rest);
      parts.back().offset[d] = end;
      parts.back().extent[d] = rest.offset[d] + rest.extent[d] - end;
    }
    rest.offset[d] = begin;
    rest.extent[d] = both.extent[d];
  }
  return parts;
}

namespace {

// Where the element of a slab at a global position lies, counted in elements from tensor.raw().
class Addressing {
 public:
  explicit Addressing(const SlabTensor& st) : slab_(st.slab) {
    const Tensor& t = st.tensor;
    bool same_shape = t.shape() == slab_.extent;
    CheckShape(same_shape || (t.size() == slab_.size() && t.contiguous()),
               "[slab] {} is held by a tensor of shape {}", slab_.ToString(),
               ShapeToString(t.shape()));
    contiguous_ = t.contiguous();
    size_t n = slab_.extent.size();
    stride_.assign(n, 1);
    if (n < 2) return;
    stride_[n - 2] = contiguous_ ? slab_.extent[n - 1] : t.row_stride();
    for (size_t d = n - 2; d > 0; --d) stride_[d - 1] = stride_[d] * slab_.extent[d];
  }
  bool contiguous() const { return contiguous_; }
  int64_t At(const Shape& position) const {
    int64_t index = 0;
    for (size_t d = 0; d < position.size(); ++d) {
      index += (position[d] - slab_.offset[d]) * stride_[d];
    }
    return index;
  }

 private:
  const Slab& slab_;
  bool contiguous_ = true;
  Shape stride_;
};

// `n` elements that are contiguous on both sides, of any two dtypes and devices.
void CopyRun(const Tensor& src, int64_t src_at, const Tensor& dst, int64_t dst_at, int64_t n) {
  char* from = static_cast<char*>(src.raw()) + src_at * DTypeSize(src.dtype());
  char* to = static_cast<char*>(dst.raw()) + dst_at * DTypeSize(dst.dtype());
  if (src.dtype() == dst.dtype()) {
    CopyBytes(to, dst.device(), from, src.device(), n * DTypeSize(src.dtype()), nullptr);
    return;
  }
  std::vector<char> host_src, host_dst;
  if (!src.device().is_cpu()) {
    host_src.resize(n * DTypeSize(src.dtype()));
    CopyBytes(host_src.data(), Device::Cpu(), from, src.device(), host_src.size(), nullptr);
    from = host_src.data();
  }
  bool staged = !dst.device().is_cpu();
  if (staged) host_dst.resize(n * DTypeSize(dst.dtype()));
  char* host_to = staged ? host_dst.data() : to;
  CopyTo(Tensor(from, {n}, src.dtype(), Device::Cpu()),
         Tensor(host_to, {n}, dst.dtype(), Device::Cpu()));
  if (staged) {
    CopyBytes(to, dst.device(), host_to, Device::Cpu(), host_dst.size(), nullptr);
  }
}

}  // namespace

void CopyRegion(const Slab& region, const SlabTensor& src, const SlabTensor& dst) {
  if (region.size() == 0) return;
  Addressing from(src), to(dst);
  // The longest run that is contiguous on both sides: the last dim, and the dim before it as long
  // as this one is taken whole.
  int inner = static_cast<int>(region.extent.size()) - 1;
  int64_t run = inner >= 0 ? region.extent[inner] : 1;
  while (inner > 0 && from.contiguous() && to.contiguous() &&
         region.extent[inner] == src.slab.extent[inner] &&
         region.extent[inner] == dst.slab.extent[inner]) {
    run *= region.extent[--inner];
  }
  Shape position = region.offset;
  for (;;) {
    CopyRun(src.tensor, from.At(position), dst.tensor, to.At(position), run);
    int d = inner - 1;
    while (d >= 0 && ++position[d] == region.offset[d] + region.extent[d]) {
      position[d] = region.offset[d];
      --d;
    }
    if (d < 0) return;
  }
}

int64_t CopySlab(const SlabTensor& src, const SlabTensor& dst) {
  Slab both = Intersect(src.slab, dst.slab);
  CopyRegion(both, src, dst);
  return both.size();
}

void CopySlabs(const SlabIndex& src, const SlabIndex& dst) {
  std::unordered_map<std::string, std::vector<const SlabTensor*>> by_name;
  for (const SlabTensor& s : src) by_name[s.slab.name].push_back(&s);
  for (const SlabTensor& d : dst) {
    std::vector<Slab> missing;
    if (d.slab.size() > 0) missing.push_back(d.slab);
    for (const SlabTensor* s : by_name[d.slab.name]) {
      Check<CheckpointError>(s->slab.global_shape == d.slab.global_shape,
                             "[slab] {} has shape {} on one side and {} on the other", d.slab.name,
                             ShapeToString(s->slab.global_shape),
                             ShapeToString(d.slab.global_shape));
      std::vector<Slab> still_missing;
      for (const Slab& part : missing) {
        CopyRegion(Intersect(part, s->slab), *s, d);
        for (Slab& rest : Subtract(part, s->slab)) still_missing.push_back(std::move(rest));
      }
      missing = std::move(still_missing);
    }
    Check<CheckpointError>(missing.empty(), "[slab] nothing to fill {} from",
                           missing.empty() ? "" : missing[0].ToString());
  }
}

}  // namespace hone::runtime
