// As in cublaslt_cuda.cc, cuBLASLt sees columns where we have rows: its "A" is our b. fp8 wants
// both operands with the summed dim contiguous, which is how Fp8Matrix holds them, and all sizes a
// multiple of 16: rows that are padding are multiplied too, into rows of a buffer that is larger
// than `out`.
#include <map>
#include <memory>
#include <mutex>

#include "kernels/cuda/cublaslt_fp8.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/first_use.h"
#include "runtime/cuda_check.h"
#include "runtime/error.h"
#include "runtime/step_recorder.h"

namespace hone::kernels::cuda {
namespace {

constexpr uint64_t kWorkspaceBytes = uint64_t{32} << 20;
constexpr uint32_t kOutAlignment = 16;

void CheckLt(cublasStatus_t status, const char* call, const Fp8Matrix& a, const Fp8Matrix& b) {
  Check<DeviceError>(
      status == CUBLAS_STATUS_SUCCESS,
      "[fp8_multiply] {} failed for [{}, {}] in {} by [{}, {}] in {}: {}; block-scaled "
      "fp8 products need a Hopper GPU",
      call, a.rows, a.cols, a.blocks ? "blocks" : "tiles", b.rows, b.cols,
      b.blocks ? "blocks" : "tiles", Lt().cublasLtGetStatusString(status));
}

struct Key {
  int device;
  int64_t m, n, k;
  bool a_blocks, b_blocks, wide, accumulate;
  auto operator<=>(const Key&) const = default;
};

class Description {
 public:
  Description(const Fp8Matrix& a, const Fp8Matrix& b, cudaDataType_t out, int64_t out_stride)
      : a_(a), b_(b) {
    const int64_t m = a.values.dim(0), n = b.values.dim(0), k = a.values.dim(1);
    Checked(Lt().cublasLtMatmulDescInit_internal(&matmul, sizeof matmul, CUBLAS_COMPUTE_32F,
                                                 CUDA_R_32F),
            "MatmulDescInit");
    Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    Set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, Mode(b));
    Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, Mode(a));
    Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(b.scale.raw()));
    Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(a.scale.raw()));
    Checked(Lt().cublasLtMatrixLayoutInit_internal(&first, sizeof first, CUDA_R_8F_E4M3, k, n, k),
            "MatrixLayoutInit");
    Checked(Lt().cublasLtMatrixLayoutInit_internal(&second, sizeof second, CUDA_R_8F_E4M3, k, m, k),
            "MatrixLayoutInit");
    Checked(Lt().cublasLtMatrixLayoutInit_internal(&result, sizeof result, out, n, m, out_stride),
            "MatrixLayoutInit");
  }
  void Checked(cublasStatus_t status, const char* call) const { CheckLt(status, call, a_, b_); }

  cublasLtMatmulDescOpaque_t matmul;
  cublasLtMatrixLayoutOpaque_t first, second, result;

 private:
  static cublasLtMatmulMatrixScale_t Mode(const Fp8Matrix& x) {
    return x.blocks ? CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F
                    : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  }
  template <class V>
  void Set(cublasLtMatmulDescAttributes_t attribute, const V& value) {
    Checked(Lt().cublasLtMatmulDescSetAttribute(&matmul, attribute, &value, sizeof value),
            "MatmulDescSetAttribute");
  }
  const Fp8Matrix& a_;
  const Fp8Matrix& b_;
};

struct Choice {
  cublasLtHandle_t handle;
  cublasStatus_t status;  // whether there is an algorithm
  cublasLtMatmulAlgo_t algorithm;
};

// Deterministic: no algorithm that splits the sum by atomics or a second pass.
Choice Choose(cublasLtHandle_t handle, Description& d) {
  cublasLtMatmulPreferenceOpaque_t preference;
  d.Checked(Lt().cublasLtMatmulPreferenceInit_internal(&preference, sizeof preference),
            "MatmulPreferenceInit");
  auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    d.Checked(
        Lt().cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
        "MatmulPreferenceSetAttribute");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  // `out` may be rows of a larger one; the operands are allocations of their own.
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kOutAlignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kOutAlignment);
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  cublasStatus_t status = Lt().cublasLtMatmulAlgoGetHeuristic(
      handle, &d.matmul, &d.first, &d.second, &d.result, &d.result, &preference, 1, &found, &count);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = count > 0 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED;
  return {handle, status, found.algo};
}

// One a process: a handle a device, and what was chosen. The handles are safe to use without the
// mutex.
struct Library {
  std::mutex mutex;
  std::map<int, cublasLtHandle_t> handles;
  std::map<Key, Choice> choices;
};

Library& TheLibrary() {
  static Library* library = new Library;  // not destroyed: the driver may be gone by then
  return *library;
}

Choice ChoiceFor(Context& ctx, const Key& key, Description& d) {
  Library& library = TheLibrary();
  {
    std::lock_guard lock(library.mutex);
    if (auto known = library.choices.find(key); known != library.choices.end()) {
      return known->second;
    }
  }
  BeforeFirstUse(ctx, "fp8_multiply");
  std::lock_guard lock(library.mutex);
  cublasLtHandle_t& handle = library.handles[key.device];
  if (handle == nullptr) d.Checked(Lt().cublasLtCreate(&handle), "Create");
  auto known = library.choices.find(key);  // another thread may have made it by now
  if (known == library.choices.end()) {
    known = library.choices.emplace(key, Choose(handle, d)).first;
  }
  return known->second;
}

// out's rows are those of a, padding included, and its columns those of b. False where cuBLASLt has
// no product whose last tile is a part of one, which it documents and a version may lack.
bool Issue(Context& ctx, const Fp8Matrix& a, const Fp8Matrix& b, const Tensor& out,
           bool accumulate) {
  runtime::CheckCuda(cudaSetDevice(ctx.device().index), "fp8_multiply", "cudaSetDevice",
                     ctx.device().index);
  const bool wide = out.dtype() == DType::kF32;
  Description d(a, b, wide ? CUDA_R_32F : CUDA_R_16BF, out.row_stride());
  const Key key{ctx.device().index,
                a.values.dim(0),
                b.values.dim(0),
                a.values.dim(1),
                a.blocks,
                b.blocks,
                wide,
                accumulate};
  const auto [handle, status, algorithm] = ChoiceFor(ctx, key, d);
  if (status != CUBLAS_STATUS_SUCCESS && !(HasWholeTiles(a) && HasWholeTiles(b))) return false;
  d.Checked(status, "MatmulAlgoGetHeuristic");
  if (auto* recorder = runtime::StepRecorder::Of(ctx.stream());
      recorder &&
      !recorder->Issue(runtime::Piece::kFp8Product, Fp8Product(a, b, out, accumulate))) {
    return true;
  }
  Tensor workspace = ctx.Empty({static_cast<int64_t>(kWorkspaceBytes)}, DType::kU8);
  const float one = 1, beta = accumulate ? 1.f : 0.f;
  d.Checked(Lt().cublasLtMatmul(handle, &d.matmul, &one, b.values.raw(), &d.first, a.values.raw(),
                                &d.second, &beta, out.raw(), &d.result, out.raw(), &d.result,
                                &algorithm, workspace.raw(), kWorkspaceBytes,
                                static_cast<cudaStream_t>(ctx.stream().handle())),
            "Matmul");
  return true;
}

}  // namespace

void MultiplyFp8(Context& ctx, const Fp8Matrix& a, const Fp8Matrix& b, const Tensor& out_MN,
                 bool accumulate) {
  if (out_MN.size() == 0) return;
  const int64_t m = a.values.dim(0), n = b.values.dim(0);
  const bool exact = m == a.rows && n == b.rows && out_MN.row_stride() % kFp8RowMultiple == 0 &&
                     reinterpret_cast<uintptr_t>(out_MN.raw()) % kOutAlignment == 0;
  Tensor out = exact ? out_MN : ctx.Empty({m, n}, out_MN.dtype());
  Tensor part = exact ? out : out.Slice(0, a.rows).Columns(0, b.rows);
  if (accumulate && !exact) {
    runtime::FillZero(out.raw(), ctx.device(), out.bytes(), &ctx.stream());
    CopyTo(out_MN, part, &ctx.stream());
  }
  if (!Issue(ctx, a, b, out, accumulate)) {
    return MultiplyFp8(ctx, WithWholeTiles(ctx, a), WithWholeTiles(ctx, b), out_MN, accumulate);
  }
  if (!exact) CopyTo(part, out_MN, &ctx.stream());
}

}  // namespace hone::kernels::cuda
