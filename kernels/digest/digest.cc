#include "kernels/digest/digest.h"

#include "kernels/digest/digest_cpu.h"
#include "kernels/digest/digest_cuda.h"
#include "kernels/switch_device.h"
#include "runtime/error.h"

namespace hone::kernels {

RowDigest& RowDigest::operator+=(const RowDigest& other) {
  low += other.low;
  high += other.high;
  return *this;
}

RowDigest DigestRows(Context& ctx, const std::vector<DigestInput>& inputs) {
  std::vector<DigestInput> filled;
  for (const DigestInput& input : inputs) {
    const Tensor& t = input.tensor;
    CheckShape(t.contiguous() && t.device() == ctx.device(),
               "[digest] a tensor of shape {} on {} is not contiguous on {}",
               runtime::ShapeToString(t.shape()), t.device().ToString(), ctx.device().ToString());
    if (t.size() == 0) continue;
    CheckShape(input.rows > 0 && t.size() % input.rows == 0,
               "[digest] {} elements are not {} rows of equal length", t.size(), input.rows);
    filled.push_back(input);
  }
  RowDigest sum;
  SwitchDevice(
      ctx, [&] { sum = cpu::DigestRows(filled); }, [&] { sum = cuda::DigestRows(ctx, filled); });
  return sum;
}

}  // namespace hone::kernels
