// Tensor: a typed view into shared storage.
//
// A tensor of shape [d0, …, dn] is `rows()` rows of `cols()` = dn contiguous elements; consecutive
// rows lie `row_stride()` elements apart. So slicing dim 0, slicing the last dim, and regrouping the
// leading dims are views, and every kernel sees a matrix. Copying a Tensor shares its storage.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "runtime/allocator.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/error.h"

namespace hone::runtime {

using Shape = std::vector<int64_t>;
int64_t NumElements(const Shape& shape);       // 1 for {}
std::string ShapeToString(const Shape& shape); // "[2, 3]"

class Tensor {
 public:
  Tensor() = default;  // undefined
  Tensor(const std::shared_ptr<Allocator>& allocator, Shape shape, DType dtype,
         MemoryCategory category);
  // Wraps memory owned by someone else; `keep_alive` (may be null) lives as long as the tensor.
  Tensor(void* data, Shape shape, DType dtype, Device device,
         std::shared_ptr<void> keep_alive = nullptr);

  bool defined() const { return data_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int ndim() const { return static_cast<int>(shape_.size()); }
  int64_t dim(int i) const;  // negative counts from the end
  int64_t size() const { return size_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t row_stride() const { return row_stride_; }  // in elements
  bool contiguous() const { return rows_ <= 1 || row_stride_ == cols_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int64_t bytes() const { return size_ * DTypeSize(dtype_); }

  // The first element. `data<T>` checks the dtype.
  void* raw() const { return data_; }
  template <class T>
  T* data() const {
    CheckShape(dtype_ == DTypeOf<T>::value, "[tensor] read as {} but holds {}",
               DTypeName(DTypeOf<T>::value), DTypeName(dtype_));
    return static_cast<T*>(data_);
  }
  template <class T>
  T* row(int64_t r) const {
    return data<T>() + r * row_stride_;
  }

  // Views. Each shares storage with this.
  Tensor Slice(int64_t begin, int64_t end) const;    // of dim 0
  Tensor Columns(int64_t begin, int64_t end) const;  // of the last dim
  Tensor Reshape(Shape shape) const;  // keeps the last dim unless contiguous

 private:
  void SetShape(Shape shape);

  std::shared_ptr<void> storage_;
  void* data_ = nullptr;
  Shape shape_;
  int64_t size_ = 0, rows_ = 0, cols_ = 0, row_stride_ = 0;
  DType dtype_ = DType::kF32;
  Device device_;
};

// Copies values, converting the dtype where the two differ (float types only). Same shape; any strides.
void CopyTo(const Tensor& src, const Tensor& dst, Stream* stream = nullptr);
// Host helpers for tests and small control data.
template <class T>
std::vector<T> ToVector(const Tensor& t);   // any device; T must be the dtype's type
std::vector<double> ToDoubles(const Tensor& t);  // any float or int dtype

}  // namespace hone::runtime

namespace hone {
using runtime::CopyTo;
using runtime::Shape;
using runtime::Tensor;
}  // namespace hone
