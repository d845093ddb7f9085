// cuBLASLt sees matrices column by column: our row-major c = a·b is its cᵀ = bᵀ·aᵀ. So "A" of its
// calls is our b, its rows are our columns, and its columns are our rows.
//
// Row invariance. An algorithm is a tile shape, a number of stages and a way to split `inner`.
// Within one algorithm that does not split `inner`, an element of c is one pass over its row and
// column in an order that the tile's shape fixes, wherever in c it stands. So the algorithm is
// chosen once, for kCanonicalRows rows, and used for every number of rows: `rows` is not part of
// its key, and neither is anything that slicing a's rows changes. Splits of `inner` are excluded by
// the preference for no reduction scheme, and looked for in what is answered. cuBLASLt does not
// promise this in words: the linear tests compare bits over many numbers of rows, and must do so on
// each new GPU and library version.
#include <array>
#include <bit>
#include <map>
#include <mutex>
#include <span>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/first_use.h"
#include "runtime/cuda_check.h"
#include "runtime/error.h"
#include "runtime/step_recorder.h"

namespace hone::kernels::cuda {
namespace {

constexpr int64_t kCanonicalRows = 1024;
constexpr uint64_t kWorkspaceBytes = uint64_t{32} << 20;  // as NVIDIA recommends for Hopper
constexpr uint32_t kAligned = 16;
constexpr int kCandidates = 8;  // algorithms to ask for, best first

void CheckLt(cublasStatus_t status, std::string_view op, std::string_view call, const Product& p) {
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]] {
    throw DeviceError(fmt::format(
        "[{}] {} failed for a product [{}, {}] · [{}, {}] of {}: {}", op, call, p.rows, p.inner,
        p.inner, p.cols, runtime::DTypeName(p.input), Lt().cublasLtGetStatusString(status)));
  }
}

cudaDataType_t TypeOf(DType dtype) {
  return dtype == DType::kF64 ? CUDA_R_64F : dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
}

// Two classes only: all operands 16-byte aligned in address and stride, or none taken to be. Rows
// that are sliced off stay in their class.
bool IsAligned(const Product& p) {
  auto fits = [](const void* data, int64_t stride, DType dtype) {
    return reinterpret_cast<uintptr_t>(data) % kAligned == 0 &&
           stride * runtime::DTypeSize(dtype) % kAligned == 0;
  };
  return fits(p.a.data, p.a.stride, p.input) && fits(p.b.data, p.b.stride, p.input) &&
         fits(p.c, p.c_stride, p.output) &&
         (!p.bias || reinterpret_cast<uintptr_t>(p.bias) % kAligned == 0);
}

// What an algorithm is chosen for.
struct Key {
  int device;
  DType input, output;
  int64_t rows, cols, inner;
  bool a_transposed, b_transposed, bias, accumulate, aligned, row_invariant;
  auto operator<=>(const Key&) const = default;
};

// The next power of two, so that lengths that differ a little share a choice.
int64_t Rounded(int64_t n) { return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n))); }

Key KeyOf(const Context& ctx, const Product& p) {
  // A weight gradient's `inner` is the number of tokens.
  int64_t inner = p.a.transposed ? Rounded(p.inner) : p.inner;
  int64_t rows = p.a.transposed ? p.rows : p.row_invariant ? kCanonicalRows : Rounded(p.rows);
  return {ctx.device().index,
          p.input,
          p.output,
          rows,
          p.cols,
          inner,
          p.a.transposed,
          p.b.transposed,
          p.bias != nullptr,
          p.accumulate,
          IsAligned(p),
          p.row_invariant};
}

// The product that stands for all those of a key: its sizes, rows as close as their class allows,
// and a bias, of which the choice sees nothing but the alignment.
Product Canonical(Product p, const Key& key) {
  auto stride = [&](int64_t cols, DType dtype) {
    int64_t step = key.aligned ? kAligned / runtime::DTypeSize(dtype) : 1;
    return (cols + step - 1) / step * step;
  };
  p.rows = key.rows;
  p.inner = key.inner;
  p.a.stride = stride(p.a.transposed ? p.rows : p.inner, p.input);
  p.b.stride = stride(p.b.transposed ? p.inner : p.cols, p.input);
  p.c_stride = stride(p.cols, p.output);
  if (p.bias) {
    p.bias = reinterpret_cast<const void*>(
        key.aligned ? uintptr_t{kAligned} : static_cast<uintptr_t>(runtime::DTypeSize(p.output)));
  }
  return p;
}

// cuBLASLt's description of a product.
class Description {
 public:
  Description(std::string_view op, const Product& p) : op_(op), product_(p) {
    cublasComputeType_t compute = p.input == DType::kF64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
    cudaDataType_t scale = p.input == DType::kF64 ? CUDA_R_64F : CUDA_R_32F;
    Checked(Lt().cublasLtMatmulDescInit_internal(&matmul, sizeof matmul, compute, scale),
            "cublasLtMatmulDescInit");
    Set(CUBLASLT_MATMUL_DESC_TRANSA, p.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    Set(CUBLASLT_MATMUL_DESC_TRANSB, p.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias) {
      Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    }
    Layout(&b, p.input, p.cols, p.inner, p.b.stride, p.b.transposed);
    Layout(&a, p.input, p.inner, p.rows, p.a.stride, p.a.transposed);
    Layout(&c, p.output, p.cols, p.rows, p.c_stride, false);
  }

  cublasLtMatmulDescOpaque_t matmul;
  cublasLtMatrixLayoutOpaque_t a, b, c;

 private:
  void Checked(cublasStatus_t status, const char* call) { CheckLt(status, op_, call, product_); }
  template <class T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    Checked(Lt().cublasLtMatmulDescSetAttribute(&matmul, attribute, &value, sizeof value),
            "cublasLtMatmulDescSetAttribute");
  }
  // Column-major: rows and cols as the product uses the operand, before its transposition.
  void Layout(cublasLtMatrixLayoutOpaque_t* layout, DType dtype, int64_t rows, int64_t cols,
              int64_t stride, bool transposed) {
    if (transposed) std::swap(rows, cols);
    Checked(Lt().cublasLtMatrixLayoutInit_internal(layout, sizeof *layout, TypeOf(dtype), rows,
                                                   cols, stride),
            "cublasLtMatrixLayoutInit");
  }

  std::string_view op_;
  const Product& product_;
};

class Preference {
 public:
  Preference(std::string_view op, const Product& p, bool aligned) {
    CheckLt(Lt().cublasLtMatmulPreferenceInit_internal(&preference, sizeof preference), op,
            "cublasLtMatmulPreferenceInit", p);
    auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      CheckLt(
          Lt().cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
          op, "cublasLtMatmulPreferenceSetAttribute", p);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    // Parts of a split sum go through the workspace and are added in order, where splits may be.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(p.row_invariant ? CUBLASLT_REDUCTION_SCHEME_NONE
                                              : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    auto input = aligned ? kAligned : static_cast<uint32_t>(runtime::DTypeSize(p.input));
    auto output = aligned ? kAligned : static_cast<uint32_t>(runtime::DTypeSize(p.output));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, input);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, input);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, output);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, output);
  }
  cublasLtMatmulPreferenceOpaque_t preference;
};

// Whether the algorithm can do this very shape, and with what workspace.
cublasStatus_t CheckAlgorithm(cublasLtHandle_t handle, Description& d,
                              const cublasLtMatmulAlgo_t& algorithm, int64_t* workspace_bytes) {
  cublasLtMatmulHeuristicResult_t result = {};
  cublasStatus_t status =
      Lt().cublasLtMatmulAlgoCheck(handle, &d.matmul, &d.b, &d.a, &d.c, &d.c, &algorithm, &result);
  *workspace_bytes = static_cast<int64_t>(result.workspaceSize);
  return status;
}

bool SplitsInner(const cublasLtMatmulAlgo_t& algorithm) {
  int32_t parts = 1;
  size_t written = 0;
  cublasStatus_t status = Lt().cublasLtMatmulAlgoConfigGetAttribute(
      &algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts, &written);
  return status == CUBLAS_STATUS_SUCCESS && parts > 1;
}

// Few rows and many: what is chosen once has to serve every number of them.
bool TakesAnyRows(std::string_view op, Product p, cublasLtHandle_t handle,
                  const cublasLtMatmulAlgo_t& algorithm) {
  int64_t bytes = 0;
  for (int64_t rows : {1, 2, 1 << 14}) {
    p.rows = rows;
    Description d(op, p);
    if (CheckAlgorithm(handle, d, algorithm, &bytes) != CUBLAS_STATUS_SUCCESS) return false;
  }
  return true;
}

struct Choice {
  cublasLtHandle_t handle;
  cublasLtMatmulAlgo_t algorithm;
};

cublasLtMatmulAlgo_t Choose(std::string_view op, const Product& p, const Key& key,
                            cublasLtHandle_t handle) {
  const Product canonical = Canonical(p, key);
  Description d(op, canonical);
  Preference preference(op, p, key.aligned);
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> candidates = {};
  int found = 0;
  CheckLt(Lt().cublasLtMatmulAlgoGetHeuristic(handle, &d.matmul, &d.b, &d.a, &d.c, &d.c,
                                              &preference.preference, kCandidates,
                                              candidates.data(), &found),
          op, "cublasLtMatmulAlgoGetHeuristic", p);
  const cublasLtMatmulAlgo_t* chosen = nullptr;
  for (const auto& candidate : std::span(candidates).first(found)) {
    if (candidate.state != CUBLAS_STATUS_SUCCESS) continue;
    if (p.row_invariant && SplitsInner(candidate.algo)) continue;
    if (!chosen) chosen = &candidate.algo;  // where none takes any rows
    if (p.row_invariant && !TakesAnyRows(op, canonical, handle, candidate.algo)) continue;
    chosen = &candidate.algo;
    break;
  }
  CheckLt(chosen ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED, op,
          "cublasLtMatmulAlgoGetHeuristic", p);
  return *chosen;
}

// A handle a device, and what was chosen so far: a choice must outlive every context, so that all
// of a process make the same one.
class Library {
 public:
  Choice ChoiceFor(Context& ctx, std::string_view op, const Product& p, const Key& key) {
    {
      std::lock_guard lock(mutex_);
      if (auto it = choices_.find(key); it != choices_.end()) return it->second;
    }
    BeforeFirstUse(ctx, op);
    std::lock_guard lock(mutex_);
    cublasLtHandle_t& handle = handles_[key.device];
    if (!handle) CheckLt(Lt().cublasLtCreate(&handle), op, "cublasLtCreate", p);
    auto it = choices_.find(key);  // another thread may have made it by now
    if (it == choices_.end()) {
      it = choices_.emplace(key, Choice{handle, Choose(op, p, key, handle)}).first;
    }
    return it->second;
  }

 private:
  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<Key, Choice> choices_;
};

Library& library() {
  static Library* l = new Library;  // not destroyed: the driver may be gone by then
  return *l;
}

}  // namespace

void Multiply(Context& ctx, std::string_view op, const Product& p) {
  if (auto* recorder = runtime::StepRecorder::Of(ctx.stream());
      recorder && !recorder->Issue(runtime::Piece::kProduct, p)) {
    return;
  }
  int device = ctx.device().index;
  runtime::CheckCuda(cudaSetDevice(device), op, "cudaSetDevice", device);
  Key key = KeyOf(ctx, p);
  auto [handle, algorithm] = library().ChoiceFor(ctx, op, p, key);
  Description d(op, p);
  int64_t bytes = 0;
  cublasStatus_t status = CheckAlgorithm(handle, d, algorithm, &bytes);
  if (status != CUBLAS_STATUS_SUCCESS && !p.row_invariant) {  // not for its neighbours in size
    key.rows = p.rows;
    key.inner = p.inner;
    algorithm = library().ChoiceFor(ctx, op, p, key).algorithm;
    status = CheckAlgorithm(handle, d, algorithm, &bytes);
  }
  CheckLt(status, op, "cublasLtMatmulAlgoCheck", p);
  Tensor workspace = ctx.Empty({bytes}, DType::kU8, MemoryCategory::kOther);
  const double one = 1, zero = 0;
  const float one_f32 = 1, zero_f32 = 0;
  bool wide = p.input == DType::kF64;
  const void* alpha = wide ? static_cast<const void*>(&one) : &one_f32;
  const void* beta = p.accumulate ? alpha : wide ? static_cast<const void*>(&zero) : &zero_f32;
  CheckLt(
      Lt().cublasLtMatmul(handle, &d.matmul, alpha, p.b.data, &d.b, p.a.data, &d.a, beta, p.c, &d.c,
                          p.c, &d.c, &algorithm, workspace.raw(), static_cast<size_t>(bytes),
                          static_cast<cudaStream_t>(ctx.stream().handle())),
      op, "cublasLtMatmul", p);
}

}  // namespace hone::kernels::cuda
