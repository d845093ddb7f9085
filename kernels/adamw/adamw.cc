#include "kernels/adamw/adamw.h"

#include "kernels/adamw/adamw_cpu.h"
#include "kernels/adamw/adamw_cuda.h"
#include "kernels/dispatch.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "adamw";
constexpr int64_t kChunk = 16384;  // elements; what one thread takes at a time

void CheckFlat(const Context& ctx, std::string_view name, const Tensor& t, const Tensor& master) {
  CheckTensor(kOp, name, ctx, t, t.dtype());
  CheckShape(t.size() == master.size(), "[{}] {} has {} elements, the master {}", kOp, name,
             t.size(), master.size());
  CheckShape(t.contiguous(), "[{}] {} of shape {} is not contiguous", kOp, name,
             runtime::ShapeToString(t.shape()));
}

void CheckInputs(const Context& ctx, const AdamWTensor& t) {
  CheckFlat(ctx, "master", t.master, t.master);
  DType dtype = t.master.dtype(), moments = t.exp_avg.dtype();
  CheckShape(dtype == DType::kF32 || dtype == DType::kF64,
             "[{}] master has dtype {}, expected f32 or f64", kOp, runtime::DTypeName(dtype));
  CheckTensor(kOp, "gradient", ctx, t.gradient, dtype);
  CheckFlat(ctx, "gradient", t.gradient, t.master);
  CheckFlat(ctx, "exp_avg", t.exp_avg, t.master);
  CheckTensor(kOp, "exp_avg_sq", ctx, t.exp_avg_sq, moments);
  CheckFlat(ctx, "exp_avg_sq", t.exp_avg_sq, t.master);
  CheckShape(moments == dtype || moments == DType::kBF16,
             "[{}] moments have dtype {}, expected the master's {} or bf16", kOp,
             runtime::DTypeName(moments), runtime::DTypeName(dtype));
  if (t.value.defined()) CheckFlat(ctx, "value", t.value, t.master);
}

void CheckStep(const AdamWStep& s) {
  Check<ConfigError>(s.step >= 1, "[{}] step {} must count from 1", kOp, s.step);
  Check<ConfigError>(s.beta1 >= 0 && s.beta1 < 1 && s.beta2 >= 0 && s.beta2 < 1,
                     "[{}] beta1 = {}, beta2 = {} must lie in [0, 1)", kOp, s.beta1, s.beta2);
  Check<ConfigError>(s.eps >= 0, "[{}] eps = {} must not be negative", kOp, s.eps);
}

void UpdateRange(const AdamWTensor& t, const AdamWStep& step, int64_t begin, int64_t end) {
  bool bf16 = t.exp_avg.dtype() == DType::kBF16;
  if (t.master.dtype() == DType::kF64) {
    bf16 ? cpu::AdamWRange<double, BF16>(t, step, begin, end)
         : cpu::AdamWRange<double, double>(t, step, begin, end);
  } else {
    bf16 ? cpu::AdamWRange<float, BF16>(t, step, begin, end)
         : cpu::AdamWRange<float, float>(t, step, begin, end);
  }
}

void UpdateOnCpu(Context& ctx, const std::vector<AdamWTensor>& tensors, const AdamWStep& step) {
  struct Range {
    const AdamWTensor* tensor;
    int64_t begin, end;
  };
  std::vector<Range> ranges;
  for (const AdamWTensor& t : tensors) {
    for (int64_t begin = 0; begin < t.master.size(); begin += kChunk) {
      ranges.push_back({&t, begin, std::min(begin + kChunk, t.master.size())});
    }
  }
  ctx.pool().ParallelFor(static_cast<int64_t>(ranges.size()), 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      UpdateRange(*ranges[i].tensor, step, ranges[i].begin, ranges[i].end);
    }
  });
}

}  // namespace

void AdamW(Context& ctx, const std::vector<AdamWTensor>& tensors, const AdamWStep& step) {
  CheckStep(step);
  for (const AdamWTensor& t : tensors) CheckInputs(ctx, t);
  SwitchDevice(
      ctx, [&] { UpdateOnCpu(ctx, tensors, step); }, [&] { cuda::AdamW(ctx, tensors, step); });
}

double SumOfSquares(Context& ctx, const Tensor& x) { return SumsOfSquares(ctx, {x})[0]; }

std::vector<double> SumsOfSquares(Context& ctx, const std::vector<Tensor>& tensors) {
  constexpr std::string_view op = "sum_of_squares";
  std::vector<double> sums;
  for (const Tensor& x : tensors) {
    CheckTensor(op, "x", ctx, x, tensors.front().dtype());
    CheckShape(x.contiguous(), "[{}] x of shape {} is not contiguous", op,
               runtime::ShapeToString(x.shape()));
  }
  auto on_cpu = [&] {
    for (const Tensor& x : tensors) {
      SwitchFloat(op, x.dtype(),
                  [&](auto t) { sums.push_back(cpu::SumOfSquares<decltype(t)>(ctx, x)); });
    }
  };
  SwitchDevice(ctx, on_cpu, [&] { sums = cuda::SumsOfSquares(ctx, tensors); });
  return sums;
}

}  // namespace hone::kernels
