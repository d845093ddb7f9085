#include "runtime/tensor.h"

#include <cstring>

namespace hone::runtime {

int64_t NumElements(const Shape& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

std::string ShapeToString(const Shape& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    s += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return s + "]";
}

Tensor::Tensor(const std::shared_ptr<Allocator>& allocator, Shape shape, DType dtype,
               MemoryCategory category)
    : dtype_(dtype), device_(allocator->device()) {
  SetShape(std::move(shape));
  int64_t bytes = size_ * DTypeSize(dtype);
  data_ = allocator->Allocate(bytes, category);
  storage_ = std::shared_ptr<void>(
      data_, [allocator, bytes, category](void* ptr) { allocator->Free(ptr, bytes, category); });
}

Tensor::Tensor(void* data, Shape shape, DType dtype, Device device,
               std::shared_ptr<void> keep_alive)
    : storage_(std::move(keep_alive)), data_(data), dtype_(dtype), device_(device) {
  SetShape(std::move(shape));
}

void Tensor::SetShape(Shape shape) {
  for (int64_t d : shape) CheckShape(d >= 0, "[tensor] negative dim in {}", ShapeToString(shape));
  shape_ = std::move(shape);
  size_ = NumElements(shape_);
  cols_ = shape_.empty() ? 1 : shape_.back();
  rows_ = 1;
  for (size_t i = 0; i + 1 < shape_.size(); ++i) rows_ *= shape_[i];
  row_stride_ = cols_;
}

int64_t Tensor::dim(int i) const {
  int n = ndim();
  if (i < -n || i >= n) [[unlikely]] {  // no message is made when there is nothing to say
    throw ShapeError(
        fmt::format("[tensor] dim {} of a tensor of shape {}", i, ShapeToString(shape_)));
  }
  return shape_[i < 0 ? i + n : i];
}

Tensor Tensor::Slice(int64_t begin, int64_t end) const {
  CheckShape(ndim() > 0 && 0 <= begin && begin <= end && end <= shape_[0],
             "[tensor] slice [{}, {}) of shape {}", begin, end, ShapeToString(shape_));
  if (ndim() == 1) return Columns(begin, end);
  Tensor t = *this;
  int64_t rows_each = shape_[0] == 0 ? 0 : rows_ / shape_[0];
  t.shape_[0] = end - begin;
  t.rows_ = rows_each * (end - begin);
  t.size_ = t.rows_ * cols_;
  t.data_ = static_cast<char*>(data_) + begin * rows_each * row_stride_ * DTypeSize(dtype_);
  return t;
}

Tensor Tensor::Columns(int64_t begin, int64_t end) const {
  CheckShape(ndim() > 0 && 0 <= begin && begin <= end && end <= cols_,
             "[tensor] columns [{}, {}) of shape {}", begin, end, ShapeToString(shape_));
  Tensor t = *this;
  t.shape_.back() = end - begin;
  t.cols_ = end - begin;
  t.size_ = rows_ * t.cols_;
  t.data_ = static_cast<char*>(data_) + begin * DTypeSize(dtype_);
  return t;
}

Tensor Tensor::Reshape(Shape shape) const {
  CheckShape(NumElements(shape) == size_, "[tensor] reshape of {} to {}", ShapeToString(shape_),
             ShapeToString(shape));
  Tensor t = *this;
  t.SetShape(std::move(shape));
  if (!contiguous()) {
    CheckShape(t.cols_ == cols_, "[tensor] reshape of a strided {} to {} changes the last dim",
               ShapeToString(shape_), ShapeToString(t.shape_));
    t.row_stride_ = row_stride_;
  }
  return t;
}

namespace {

template <class To, class From>
void ConvertRow(To* to, const From* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(static_cast<Acc<From>>(from[i]));
}
template <class From>
void ConvertRow(BF16* to, const From* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = BF16(static_cast<float>(static_cast<Acc<From>>(from[i])));
}

template <class From>
void ConvertTo(const Tensor& src, const Tensor& dst) {
  for (int64_t r = 0; r < src.rows(); ++r) {
    switch (dst.dtype()) {
      case DType::kF32:
        ConvertRow(dst.row<float>(r), src.row<From>(r), src.cols());
        break;
      case DType::kF64:
        ConvertRow(dst.row<double>(r), src.row<From>(r), src.cols());
        break;
      case DType::kBF16:
        ConvertRow(dst.row<BF16>(r), src.row<From>(r), src.cols());
        break;
      default:
        throw ShapeError(fmt::format("[copy] no conversion from {} to {}", DTypeName(src.dtype()),
                                     DTypeName(dst.dtype())));
    }
  }
}

}  // namespace

namespace {

// On a device kernels::Cast is what a step uses.
void ConvertThroughHost(const Tensor& src, const Tensor& dst, Stream* stream) {
  static const std::shared_ptr<Allocator> allocator = MakeAllocator(Device::Cpu());
  Tensor from(allocator, src.shape(), src.dtype(), MemoryCategory::kOther);
  Tensor to(allocator, dst.shape(), dst.dtype(), MemoryCategory::kOther);
  CopyTo(src, from, stream);
  CopyTo(from, to, stream);
  CopyTo(to, dst, stream);
}

}  // namespace

void CopyTo(const Tensor& src, const Tensor& dst, Stream* stream) {
  CheckShape(src.shape() == dst.shape(), "[copy] from shape {} to shape {}",
             ShapeToString(src.shape()), ShapeToString(dst.shape()));
  if (src.dtype() == dst.dtype()) {
    int64_t width = DTypeSize(src.dtype());
    if (src.contiguous() && dst.contiguous()) {
      CopyBytes(dst.raw(), dst.device(), src.raw(), src.device(), src.bytes(), stream);
      return;
    }
    CopyRows(dst.raw(), dst.device(), dst.row_stride() * width, src.raw(), src.device(),
             src.row_stride() * width, src.cols() * width, src.rows(), stream);
    return;
  }
  if (!src.device().is_cpu() || !dst.device().is_cpu()) {
    return ConvertThroughHost(src, dst, stream);
  }
  switch (src.dtype()) {
    case DType::kF32:
      return ConvertTo<float>(src, dst);
    case DType::kF64:
      return ConvertTo<double>(src, dst);
    case DType::kBF16:
      return ConvertTo<BF16>(src, dst);
    default:
      throw ShapeError(fmt::format("[copy] no conversion from {}", DTypeName(src.dtype())));
  }
}

template <class T>
std::vector<T> ToVector(const Tensor& t) {
  std::vector<T> out(t.size());
  t.data<T>();  // checks the dtype
  constexpr auto kWidth = static_cast<int64_t>(sizeof(T));
  CopyRows(out.data(), Device::Cpu(), t.cols() * kWidth, t.raw(), t.device(),
           t.row_stride() * kWidth, t.cols() * kWidth, t.rows(), nullptr);
  return out;
}
template std::vector<float> ToVector<float>(const Tensor&);
template std::vector<double> ToVector<double>(const Tensor&);
template std::vector<BF16> ToVector<BF16>(const Tensor&);
template std::vector<int32_t> ToVector<int32_t>(const Tensor&);
template std::vector<int64_t> ToVector<int64_t>(const Tensor&);
template std::vector<uint8_t> ToVector<uint8_t>(const Tensor&);

namespace {
template <class T>
std::vector<double> WidenTo(const Tensor& t) {
  std::vector<double> out;
  for (T v : ToVector<T>(t)) out.push_back(static_cast<double>(static_cast<Acc<T>>(v)));
  return out;
}
}  // namespace

std::vector<double> ToDoubles(const Tensor& t) {
  switch (t.dtype()) {
    case DType::kF32:
      return WidenTo<float>(t);
    case DType::kF64:
      return WidenTo<double>(t);
    case DType::kBF16:
      return WidenTo<BF16>(t);
    case DType::kI32:
      return WidenTo<int32_t>(t);
    case DType::kI64:
      return WidenTo<int64_t>(t);
    case DType::kU8:
      return WidenTo<uint8_t>(t);
    default:
      throw ShapeError(fmt::format("[tensor] {} cannot be read as doubles", DTypeName(t.dtype())));
  }
}

}  // namespace hone::runtime
