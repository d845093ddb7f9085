// A block draws the token of a row, as sampling_cpu.cc does. Probability mass is an integer, so it
// may be added up in any order: the token is the CPU's for the same logits.
//
// What may be drawn is said by a cut: a key, which orders logits as unsigned integers, and how many
// of the tokens with exactly that logit are kept, lowest ids first; those above it are all kept.
// The cut is found 4 bits at a time, from the weights of the 16 next digits.
#include <cstring>

#include "kernels/sampling/sampling_cuda.h"
#include "kernels/token_logprob/logit_row_cuda.h"

namespace hone::kernels::cuda {
namespace {

constexpr std::string_view kOp = "sampling";
constexpr int kWarps = kLogitThreads / kWarpSize;
constexpr int kDigits = 16;
static_assert(kWarps == kDigits);  // a warp adds up one digit's weights

// Mass, goal and nucleus: the same as in sampling_cpu.cc.
__device__ uint64_t MassOf(double exp_z) { return static_cast<uint64_t>(exp_z * 0x1p40); }
__device__ uint64_t DrawGoal(double uniform, uint64_t total) {
  uint64_t goal = static_cast<uint64_t>(uniform * static_cast<double>(total));
  return goal < total ? goal : total - 1;
}
__device__ uint64_t NucleusMass(double top_p, uint64_t total) {
  double wanted = top_p * static_cast<double>(total);
  uint64_t least = static_cast<uint64_t>(wanted);
  if (static_cast<double>(least) < wanted || least == 0) ++least;
  return least < total ? least : total;
}

struct RowParams {
  double temperature, top_p, uniform;
  int64_t top_k;
};

template <class A>
struct KeyTypeOf {
  using type = uint32_t;
};
template <>
struct KeyTypeOf<double> {
  using type = uint64_t;
};
template <class A>
using Key = typename KeyTypeOf<A>::type;

// Ascends with z; −0 counts as 0.
template <class A>
__device__ Key<A> KeyOf(A z) {
  z += A(0);
  Key<A> bits, sign = Key<A>(1) << (8 * sizeof(A) - 1);
  memcpy(&bits, &z, sizeof bits);
  return bits & sign ? ~bits : bits | sign;
}
template <class A>
__device__ A LogitOf(Key<A> key) {
  Key<A> sign = Key<A>(1) << (8 * sizeof(A) - 1), bits = key & sign ? key & ~sign : ~key;
  A z;
  memcpy(&z, &bits, sizeof z);
  return z;
}

template <class A>
struct Cut {
  Key<A> key;
  uint64_t ties;  // how many with this key are kept
};

// `weight(z, key)` of every token, and `extra` for the key of `at`, are added up from the greatest
// key down: returns the key where they reach `need`, and in `ties` what of `need` the keys above
// leave. `counter` is shared memory of kDigits · kLogitThreads; the whole block calls.
template <class T, class Weight>
__device__ Cut<Acc<T>> FindCut(const LogitRow<T>& row, uint64_t need, Weight weight, Key<Acc<T>> at,
                               uint64_t extra, uint64_t* counter) {
  using A = Acc<T>;
  constexpr int kBits = 8 * sizeof(A);
  __shared__ uint64_t digit_weight[kDigits];
  uint64_t* own = counter + threadIdx.x;
  Key<A> prefix = 0;
  for (int shift = kBits - 4; shift >= 0; shift -= 4) {
    for (int d = 0; d < kDigits; ++d) own[d * kLogitThreads] = 0;
    auto add = [&](Key<A> key, uint64_t amount) {
      Key<A> above = shift + 4 == kBits ? 0 : key >> ((shift + 4) % kBits);
      if (above == prefix) own[static_cast<int>(key >> shift & 15) * kLogitThreads] += amount;
    };
    row.ForEach([&](int64_t, A z) {
      Key<A> key = KeyOf(z);
      add(key, weight(z, key));
    });
    if (threadIdx.x == 0) add(at, extra);
    __syncthreads();
    uint64_t sum = 0;
    for (int i = Lane(); i < kLogitThreads; i += kWarpSize)
      sum += counter[Warp() * kLogitThreads + i];
    sum = WarpSum(sum);
    if (Lane() == 0) digit_weight[Warp()] = sum;
    __syncthreads();
    int digit = kDigits - 1;
    for (; digit > 0 && digit_weight[digit] < need; --digit) need -= digit_weight[digit];
    prefix = prefix << 4 | static_cast<Key<A>>(digit);
  }
  __syncthreads();  // all have read digit_weight
  return {prefix, need};
}

// The top_k likeliest, then the fewest of them that hold at least top_p of their mass.
template <class T>
__device__ Cut<Acc<T>> Restrict(const LogitRow<T>& row, Acc<T> max, const RowParams& params,
                                uint64_t* counter) {
  using A = Acc<T>;
  Cut<A> cut = {0, 0};
  if (params.top_k > 0 && params.top_k < row.vocab) {
    cut = FindCut(
        row, static_cast<uint64_t>(params.top_k), [](A, Key<A>) { return uint64_t{1}; }, Key<A>(0),
        0, counter);
  }
  if (params.top_p >= 1) return cut;
  Key<A> lowest = cut.key;
  auto mass = [max, lowest](A z, Key<A> key) {
    return key > lowest ? MassOf(Exp(z - max)) : uint64_t{0};
  };
  uint64_t ties = cut.ties, at_cut = ties == 0 ? 0 : ties * MassOf(Exp(LogitOf<A>(lowest) - max));
  uint64_t total = 0;
  row.ForEach([&](int64_t, A z) { total += mass(z, KeyOf(z)); });
  total = BlockSum(total) + at_cut;
  cut = FindCut(row, NucleusMass(params.top_p, total), mass, lowest, at_cut, counter);
  uint64_t each = MassOf(Exp(LogitOf<A>(cut.key) - max));
  cut.ties = (cut.ties + each - 1) / each;
  return cut;
}

// Walks the tokens in ascending id and stops where the running mass passes uniform · total. Each
// warp takes consecutive ids; the one where that happens finds the token. The whole block calls.
template <class T>
struct Draw {
  using A = Acc<T>;
  const LogitRow<T>& row;
  A max;
  Cut<A> cut;

  // Σ mass above the cut, and tokens at the cut, of ids [begin, end).
  __device__ void Count(int64_t begin, int64_t end, uint64_t* mass, uint64_t* ties) const {
    *mass = *ties = 0;
    for (int64_t v = begin + Lane(); v < end; v += kWarpSize) {
      A z = row.At(v);
      Key<A> key = KeyOf(z);
      if (key > cut.key) *mass += MassOf(Exp(z - max));
      if (key == cut.key) ++*ties;
    }
    *mass = WarpSum(*mass);
    *ties = WarpSum(*ties);
  }

  // The first id of [begin, end) where `sum` plus the mass so far passes `goal`.
  __device__ int32_t Walk(int64_t begin, int64_t end, uint64_t sum, uint64_t ties,
                          uint64_t goal) const {
    for (int64_t first = begin; first < end; first += kWarpSize) {
      int64_t v = first + Lane();
      A z = v < end ? row.At(v) : -Infinity<A>();
      bool tie = v < end && KeyOf(z) == cut.key;
      unsigned tied = __ballot_sync(kAllLanes, tie);
      unsigned before = static_cast<unsigned>(__popc(tied & ((1u << Lane()) - 1u)));
      bool kept = v < end && (KeyOf(z) > cut.key || (tie && before < ties));
      uint64_t mass = kept ? MassOf(Exp(z - max)) : 0;
      for (int step = 1; step < kWarpSize; step *= 2) {  // running sums
        uint64_t lower = __shfl_up_sync(kAllLanes, mass, step);
        if (Lane() >= step) mass += lower;
      }
      unsigned passed = __ballot_sync(kAllLanes, sum + mass > goal);
      if (passed != 0) return static_cast<int32_t>(first + __ffs(static_cast<int>(passed)) - 1);
      sum += __shfl_sync(kAllLanes, mass, kWarpSize - 1);
      uint64_t used = static_cast<uint64_t>(__popc(tied));
      ties -= used < ties ? used : ties;
    }
    return -1;
  }

  __device__ void Run(double uniform, int32_t* token) const {
    __shared__ uint64_t warp_mass[kWarps], warp_ties[kWarps];
    int64_t share = (row.vocab + kWarps - 1) / kWarps, begin = Warp() * share;
    int64_t end = begin + share < row.vocab ? begin + share : row.vocab;
    uint64_t mass, ties;
    Count(begin, end, &mass, &ties);
    if (Lane() == 0) {
      warp_mass[Warp()] = mass;
      warp_ties[Warp()] = ties;
    }
    __syncthreads();
    uint64_t left = cut.ties, each = left == 0 ? 0 : MassOf(Exp(LogitOf<A>(cut.key) - max));
    uint64_t total = 0, own_before = 0, own_end = 0, own_left = 0;
    for (int w = 0; w < kWarps; ++w) {
      uint64_t kept = warp_ties[w] < left ? warp_ties[w] : left;
      if (w == Warp()) {
        own_before = total;
        own_left = left;
      }
      total += warp_mass[w] + kept * each;
      if (w == Warp()) own_end = total;
      left -= kept;
    }
    uint64_t goal = DrawGoal(uniform, total);
    if (own_before > goal || own_end <= goal) return;  // all but one warp
    int32_t drawn = Walk(begin, end, own_before, own_left, goal);
    if (Lane() == 0) *token = drawn;
  }
};

template <class T>
__global__ void SampleKernel(Rows<T> logits_BV, int64_t vocab, bool aligned,
                             const RowParams* params_B, SampledToken* out_B) {
  using A = Acc<T>;
  const RowParams params = params_B[blockIdx.x];
  SampledToken* out = out_B + blockIdx.x;
  bool greedy = params.temperature == 0;
  LogitRow<T> row{logits_BV[blockIdx.x], vocab, static_cast<A>(greedy ? 1.0 : params.temperature),
                  aligned};
  RowSoftmax<A> softmax = SoftmaxOf(row);
  __shared__ int32_t token;
  if (threadIdx.x == 0) token = -1;
  __syncthreads();
  if (softmax.lse - softmax.lse == 0) {  // finite; the same in all threads
    if (greedy) {
      int32_t first = INT32_MAX;
      row.ForEach([&](int64_t v, A z) {
        if (z == softmax.max && v < first) first = static_cast<int32_t>(v);
      });
      first = BlockReduce(
          first, [](int32_t a, int32_t b) { return a < b ? a : b; }, INT32_MAX);
      if (threadIdx.x == 0) token = first;
    } else {
      Cut<A> cut = Restrict(row, softmax.max, params, DynamicShared<uint64_t>());
      Draw<T>{row, softmax.max, cut}.Run(params.uniform, &token);
    }
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  out->token = token;
  out->logp = static_cast<float>(token < 0 ? softmax.lse : softmax.Logp(row.At(token)));
}

}  // namespace

template <class T>
void Sample(Context& ctx, const Tensor& logits_BV, std::span<const SamplingParams> params_B,
            std::span<const double> uniform_B, std::vector<SampledToken>& out) {
  if (out.empty()) return;
  std::vector<uint8_t> bytes(params_B.size() * sizeof(RowParams));
  for (size_t b = 0; b < params_B.size(); ++b) {
    RowParams row{params_B[b].temperature, params_B[b].top_p, uniform_B[b], params_B[b].top_k};
    std::memcpy(bytes.data() + b * sizeof row, &row, sizeof row);
  }
  Tensor rows = Upload(ctx, std::span<const uint8_t>(bytes));
  Tensor drawn = ctx.Empty({static_cast<int64_t>(out.size() * sizeof(SampledToken))}, DType::kU8);
  Launch(ctx, kOp, SampleKernel<T>,
         {static_cast<unsigned>(out.size()), kLogitThreads,
          kDigits * kLogitThreads * static_cast<int64_t>(sizeof(uint64_t))},
         Rows<T>(logits_BV), logits_BV.cols(), RowsAligned(logits_BV),
         static_cast<const RowParams*>(rows.raw()), static_cast<SampledToken*>(drawn.raw()));
  runtime::CopyBytes(out.data(), Device::Cpu(), drawn.raw(), ctx.device(), drawn.bytes(),
                     &ctx.stream());
  for (const SampledToken& token : out) {
    Check(token.token >= 0, "[sampling] logits that are NaN or infinite: log-sum-exp is {}",
          token.logp);
  }
}

#define HONE_INSTANTIATE(T)                                                         \
  template void Sample<T>(Context&, const Tensor&, std::span<const SamplingParams>, \
                          std::span<const double>, std::vector<SampledToken>&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
