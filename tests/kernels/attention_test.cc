// emulated: all
// timeout: 300
#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <numeric>

#include "tests/kernels/tensors.h"

namespace hone::kernels {
namespace {

struct Dims {
  int64_t H, G, C, V;
};
constexpr Dims kDims[] = {{4, 4, 64, 64},  {4, 2, 24, 16},   {6, 1, 13, 7},  {2, 2, 40, 33},
                          {2, 1, 300, 20}, {2, 1, 192, 128}, {3, 1, 20, 600}};
const std::vector<std::vector<int32_t>> kLengths = {{1},      {0},  {}, {64}, {65, 0, 1, 63},
                                                    {130, 7}, {200}};

std::vector<int32_t> Offsets(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> cu = {0};
  for (int32_t n : lengths) cu.push_back(cu.back() + n);
  return cu;
}

struct Inputs {
  Tensor q, k, v;
  std::vector<int32_t> cu;
  double scale;
};
Inputs Make(Context& ctx, Dims d, const std::vector<int32_t>& lengths, DType dtype) {
  std::vector<int32_t> cu = Offsets(lengths);
  int64_t T = cu.back();
  return {Random(ctx, {T, d.H, d.C}, dtype, 1), Random(ctx, {T, d.G, d.C}, dtype, 2),
          Random(ctx, {T, d.G, d.V}, dtype, 3), cu, 1 / std::sqrt(static_cast<double>(d.C))};
}
Tensor Forward(Context& ctx, const Inputs& in) {
  return Attention(ctx, in.q, in.k, in.v, in.cu, in.scale).out_THV;
}

// Straight from the formula, in doubles: out and log-sum-exp.
AttentionResult Reference(const Inputs& in) {
  Tensor q = OnHost(in.q, DType::kF64), k = OnHost(in.k, DType::kF64);
  Tensor v = OnHost(in.v, DType::kF64);
  int64_t H = q.dim(1), G = k.dim(1), C = q.dim(2), V = v.dim(2);
  AttentionResult result{HostTensor({q.dim(0), H, V}, DType::kF64),
                         HostTensor({q.dim(0), H}, DType::kF64)};
  std::fill_n(result.out_THV.data<double>(), result.out_THV.size(), 0.0);
  for (size_t s = 0; s + 1 < in.cu.size(); ++s) {
    for (int64_t t = in.cu[s]; t < in.cu[s + 1]; ++t) {
      for (int64_t h = 0; h < H; ++h) {
        int64_t g = h / (H / G);
        std::vector<double> weight;
        for (int64_t u = in.cu[s]; u <= t; ++u) {
          const double *a = q.row<double>(t * H + h), *b = k.row<double>(u * G + g);
          weight.push_back(std::exp(in.scale * std::inner_product(a, a + C, b, 0.0)));
        }
        double sum = std::accumulate(weight.begin(), weight.end(), 0.0);
        result.lse_TH.data<double>()[t * H + h] = std::log(sum);
        for (size_t u = 0; u < weight.size(); ++u) {
          for (int64_t i = 0; i < V; ++i) {
            result.out_THV.row<double>(t * H + h)[i] +=
                weight[u] / sum * v.row<double>((in.cu[s] + u) * G + g)[i];
          }
        }
      }
    }
  }
  return result;
}

TEST(Attention, AgreesWithTheFormula) {
  Context ctx(TestDevice(), 2);
  for (Dims d : kDims) {
    for (const auto& lengths : kLengths) {
      for (DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
        Inputs in = Make(ctx, d, lengths, dtype);
        AttentionResult got = Attention(ctx, in.q, in.k, in.v, in.cu, in.scale);
        AttentionResult expected = Reference(in);
        double bound = dtype == DType::kF64 ? 1e-13 : dtype == DType::kF32 ? 1e-5 : 1e-2;
        EXPECT_EQ(got.out_THV.dtype(), dtype);
        EXPECT_LT(Gap(got.out_THV, expected.out_THV), bound);
        EXPECT_LT(Gap(got.lse_TH, expected.lse_TH), std::min(bound, 1e-5));
      }
    }
  }
}

TEST(Attention, GivesASequenceTheSameBitsInEveryPackAndOnAnyThreads) {
  for (Dims d : kDims) {
    Context one(TestDevice(), 1), three(TestDevice(), 3, one.allocator());
    Inputs in = Make(one, d, {65, 0, 1, 130, 63}, DType::kF32);
    Tensor packed = Forward(three, in);
    EXPECT_TRUE(SameBits(packed, Forward(one, in)));
    for (size_t s = 0; s + 1 < in.cu.size(); ++s) {
      int32_t a = in.cu[s], b = in.cu[s + 1];
      Inputs alone{in.q.Slice(a, b), in.k.Slice(a, b), in.v.Slice(a, b), {0, b - a}, in.scale};
      EXPECT_TRUE(SameBits(Forward(one, alone), packed.Slice(a, b))) << s;
    }
  }
}

// A cache in which page i of a sequence stands somewhere else than at i, and the rest is rubbish.
struct Cache {
  Tensor k, v;
  KvLayout layout;
  std::vector<std::vector<int32_t>> pages;
  std::vector<int32_t> cu;

  Cache(Context& ctx, const Inputs& in, int64_t page_size, KvLayout how) : layout(how), cu(in.cu) {
    int32_t count = 1;
    for (size_t s = 0; s + 1 < cu.size(); ++s) {
      pages.emplace_back();
      for (int64_t t = 0; t < cu[s + 1] - cu[s]; t += page_size) pages.back().push_back(count++);
    }
    for (auto& list : pages) {
      for (auto& page : list) page = count - page;
    }
    int64_t G = in.k.dim(1), C = in.k.dim(2), V = in.v.dim(2);
    Tensor k_host = OnHost(Random(ctx, {count * page_size, G, C}, in.k.dtype(), 77));
    Tensor v_host = OnHost(Random(ctx, {count * page_size, G, V}, in.k.dtype(), 78));
    if (layout == KvLayout::kByHead) {
      k = k_host.Reshape({count, G, C, page_size});
      v = v_host.Reshape({count, G, page_size, V});
      WriteByHead(ctx, in.k, in.v, Slots(page_size), k, v);
      return;
    }
    Tensor k_from = OnHost(in.k), v_from = OnHost(in.v);
    for (size_t s = 0; s + 1 < cu.size(); ++s) {
      for (int64_t t = 0; t < cu[s + 1] - cu[s]; ++t) {
        int64_t slot = pages[s][t / page_size] * page_size + t % page_size, from = cu[s] + t;
        CopyTo(k_from.Slice(from, from + 1), k_host.Slice(slot, slot + 1));
        CopyTo(v_from.Slice(from, from + 1), v_host.Slice(slot, slot + 1));
      }
    }
    k = OnDevice(ctx, k_host).Reshape({count, page_size, G, C});
    v = OnDevice(ctx, v_host).Reshape({count, page_size, G, V});
  }

  std::vector<int64_t> Slots(int64_t page_size) const {
    std::vector<int64_t> slots;
    for (size_t s = 0; s + 1 < cu.size(); ++s) {
      for (int64_t t = 0; t < cu[s + 1] - cu[s]; ++t) {
        slots.push_back(pages[s][t / page_size] * page_size + t % page_size);
      }
    }
    return slots;
  }

  // Queries [from, to) of every sequence, cut off at its end; out, on the host, receives their
  // rows.
  void Run(Context& ctx, const Inputs& in, int32_t from, int32_t to, const Tensor& out) const {
    PagedKv kv{k, v, {}, {}, layout};
    std::vector<int32_t> chunk_cu = {0}, rows;
    for (size_t s = 0; s + 1 < cu.size(); ++s) {
      int32_t length = cu[s + 1] - cu[s], a = std::min(from, length), b = std::min(to, length);
      kv.pages_S.push_back(pages[s]);
      kv.length_S.push_back(b);
      chunk_cu.push_back(chunk_cu.back() + b - a);
      for (int32_t t = a; t < b; ++t) rows.push_back(cu[s] + t);
    }
    Tensor q = HostTensor({chunk_cu.back(), in.q.dim(1), in.q.dim(2)}, in.q.dtype());
    Tensor q_from = OnHost(in.q);
    for (size_t i = 0; i < rows.size(); ++i) {
      CopyTo(q_from.Slice(rows[i], rows[i] + 1), q.Slice(i, i + 1));
    }
    Tensor part = OnHost(PagedAttention(ctx, OnDevice(ctx, q), kv, chunk_cu, in.scale));
    for (size_t i = 0; i < rows.size(); ++i) {
      CopyTo(part.Slice(i, i + 1), out.Slice(rows[i], rows[i] + 1));
    }
  }
};

TEST(PagedAttention, GivesTheBitsOfAttentionForEveryChunkingAndPageSize) {
  // An emulated GPU takes its time: there, only the last tokens come one by one.
  const bool cpu = TestDevice().is_cpu();
  const std::vector<std::pair<int32_t, int32_t>> pages_and_chunks =
      cpu ? std::vector<std::pair<int32_t, int32_t>>{{64, 1},
                                                     {16, 1},
                                                     {16, 37},
                                                     {128, 64},
                                                     {1, 200}}
          : std::vector<std::pair<int32_t, int32_t>>{{64, 148}, {16, 61}, {128, 64}, {1, 200}};
  for (Dims d : kDims) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
      for (int threads : cpu ? std::vector{1, 2} : std::vector{1}) {
        Context ctx(TestDevice(), threads);
        Inputs in = Make(ctx, d, {150, 0, 1, 64, 70}, dtype);
        Tensor whole = Forward(ctx, in);
        for (auto [page_size, chunk] : pages_and_chunks) {
          for (KvLayout layout : {KvLayout::kByToken, KvLayout::kByHead}) {
            if (layout == KvLayout::kByHead && (!cpu || threads == 1)) continue;
            Cache cache(ctx, in, page_size, layout);
            Tensor out = HostTensor(whole.shape(), dtype);
            for (int32_t t = 0, n; t < 150; t += n) {
              n = t < 148 ? chunk : 1;
              cache.Run(ctx, in, t, t + n, out);
            }
            EXPECT_TRUE(SameBits(out, whole)) << "pages of " << page_size << ", chunks of " << chunk
                                              << ", layout " << static_cast<int>(layout);
          }
        }
      }
    }
  }
}

TEST(Attention, BackwardAgreesWithFiniteDifferences) {
  if (!TestDevice().is_cpu()) GTEST_SKIP() << "compared with the CPU's in GradientsAreTheCpus";
  Context ctx(TestDevice(), 2);
  for (auto [d, lengths] : {std::pair{Dims{2, 2, 5, 3}, std::vector<int32_t>{3, 0, 70}},
                            {Dims{4, 2, 6, 4}, {5, 9}},
                            {Dims{3, 1, 2, 7}, {66}}}) {
    Inputs in = Make(ctx, d, lengths, DType::kF64);
    AttentionResult saved = Attention(ctx, in.q, in.k, in.v, in.cu, in.scale);
    Tensor dout = Random(ctx, saved.out_THV.shape(), DType::kF64, 9);
    auto [dq, dk, dv] = AttentionBackward(ctx, dout, in.q, in.k, in.v, saved, in.cu, in.scale);
    auto loss = [&] { return Inner(dout, Forward(ctx, in)); };
    EXPECT_LT(Gap(dq, NumericGradient(ctx, in.q, loss)), 1e-6);
    EXPECT_LT(Gap(dk, NumericGradient(ctx, in.k, loss)), 1e-6);
    EXPECT_LT(Gap(dv, NumericGradient(ctx, in.v, loss)), 1e-6);
  }
}

// The CPU's are checked by finite differences; in f64 another order of sums is all that differs.
TEST(Attention, GradientsAreTheCpus) {
  Context ctx(TestDevice()), cpu;
  for (Dims d : kDims) {
    auto gradients = [&](Context& on, Context& from) {
      Inputs in = Make(from, d, {130, 0, 70, 1}, DType::kF64);
      Tensor dout = OnDevice(on, OnHost(Random(from, {201, d.H, d.V}, DType::kF64, 9)));
      for (Tensor* t : {&in.q, &in.k, &in.v}) *t = OnDevice(on, OnHost(*t));
      AttentionResult saved = Attention(on, in.q, in.k, in.v, in.cu, in.scale);
      auto [dq, dk, dv] = AttentionBackward(on, dout, in.q, in.k, in.v, saved, in.cu, in.scale);
      return std::array{saved.out_THV, saved.lse_TH, dq, dk, dv};
    };
    auto got = gradients(ctx, cpu), want = gradients(cpu, cpu);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_LT(Gap(got[i], want[i]), 1e-12) << i;
  }
}

TEST(Attention, BackwardInF32AndBf16FollowsF64OnAnyThreads) {
  Context one(TestDevice(), 1), three(TestDevice(), 3, one.allocator());
  for (Dims d : kDims) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      auto gradients = [&](Context& ctx, DType type) {
        Inputs in = Make(ctx, d, {130, 0, 70, 1}, dtype);
        Tensor dout = Random(ctx, {201, d.H, d.V}, dtype, 9);
        in.q = As(ctx, in.q, type), in.k = As(ctx, in.k, type), in.v = As(ctx, in.v, type);
        AttentionResult saved = Attention(ctx, in.q, in.k, in.v, in.cu, in.scale);
        auto [dq, dk, dv] =
            AttentionBackward(ctx, As(ctx, dout, type), in.q, in.k, in.v, saved, in.cu, in.scale);
        return std::array{dq, dk, dv};
      };
      auto narrow = gradients(three, dtype), alone = gradients(one, dtype);
      auto wide = gradients(three, DType::kF64);
      for (int i = 0; i < 3; ++i) {
        EXPECT_TRUE(SameBits(narrow[i], alone[i]));
        EXPECT_LT(Gap(narrow[i], wide[i]), dtype == DType::kF32 ? 1e-5 : 1e-2);
      }
    }
  }
}

// On a GPU cuDNN's kernels, where it has some.
TEST(Attention, TheFastModeFollowsF64) {
  Context ctx(TestDevice()), cpu;
  ctx.numerics = Numerics::kFast;
  for (Dims d : {Dims{4, 4, 64, 64}, {4, 2, 128, 128}, {2, 2, 192, 128}}) {
    Inputs in = Make(ctx, d, {130, 0, 70, 1}, DType::kBF16), wide = in;
    for (Tensor* t : {&wide.q, &wide.k, &wide.v}) *t = As(cpu, *t, DType::kF64);
    Tensor dout = Random(ctx, {201, d.H, d.V}, DType::kBF16, 9);
    AttentionResult saved = Attention(ctx, in.q, in.k, in.v, in.cu, in.scale);
    AttentionResult expected = Attention(cpu, wide.q, wide.k, wide.v, in.cu, in.scale);
    EXPECT_LT(Gap(saved.out_THV, expected.out_THV), 1e-2);
    EXPECT_LT(Gap(saved.lse_TH, expected.lse_TH), 1e-3);
    auto [dq, dk, dv] = AttentionBackward(ctx, dout, in.q, in.k, in.v, saved, in.cu, in.scale);
    auto [wide_dq, wide_dk, wide_dv] = AttentionBackward(cpu, As(cpu, dout, DType::kF64), wide.q,
                                                         wide.k, wide.v, expected, in.cu, in.scale);
    EXPECT_LT(Gap(dq, wide_dq), 1e-2);
    EXPECT_LT(Gap(dk, wide_dk), 1e-2);
    EXPECT_LT(Gap(dv, wide_dv), 1e-2);
  }
}

// The third sequence comes in a call of its own (kernels/cuda/cudnn_pack.h).
TEST(Attention, TheFastModeTakesLongPacksInParts) {
  if (!OnGpu()) GTEST_SKIP() << "too much for a CPU";
  Context fast(TestDevice()), own(TestDevice(), 1, fast.allocator());
  fast.numerics = Numerics::kFast;
  Inputs in = Make(fast, {8, 2, 64, 64}, {6200, 6150, 6160}, DType::kBF16);
  Tensor dout = Random(fast, in.q.shape(), DType::kBF16, 9);
  auto gradients = [&](Context& ctx) {
    AttentionResult saved = Attention(ctx, in.q, in.k, in.v, in.cu, in.scale);
    auto [dq, dk, dv] = AttentionBackward(ctx, dout, in.q, in.k, in.v, saved, in.cu, in.scale);
    return std::array{saved.out_THV, dq, dk, dv};
  };
  auto got = gradients(fast), again = gradients(fast), want = gradients(own);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_LT(Gap(got[i], want[i]), 2e-2) << i;
    EXPECT_TRUE(SameBits(got[i], again[i])) << i;
  }
}

TEST(PagedAttention, TheFastModeFollowsF64) {
  Context ctx(TestDevice()), cpu;
  ctx.numerics = Numerics::kFast;
  for (Dims d : {Dims{4, 4, 64, 64}, {4, 2, 128, 128}, {2, 2, 192, 128}}) {
    Inputs in = Make(ctx, d, {70, 70, 70}, DType::kBF16);
    Cache cache(ctx, in, 64, KvLayout::kByToken);
    Tensor expected = Reference(in).out_THV, out = HostTensor(expected.shape(), DType::kBF16);
    for (int32_t t : {9, 69}) {
      cache.Run(ctx, in, t, t + 1, out);
      for (int64_t row : {t, 70 + t, 140 + t}) {
        EXPECT_LT(Gap(out.Slice(row, row + 1), expected.Slice(row, row + 1)), 1e-2) << row;
      }
    }
  }
}

TEST(Attention, SurvivesScoresThatWouldOverflow) {
  Context ctx(TestDevice());
  Inputs in = Make(ctx, {2, 2, 16, 8}, {100}, DType::kF32);
  in.scale = 100;
  Inputs wide = in;
  wide.q = As(ctx, in.q, DType::kF64), wide.k = As(ctx, in.k, DType::kF64);
  wide.v = As(ctx, in.v, DType::kF64);
  EXPECT_LT(Gap(Forward(ctx, in), Forward(ctx, wide)), 1e-2);
}

TEST(Attention, ReadsViewsOfWiderRows) {
  Context ctx(TestDevice(), 2);
  Inputs in = Make(ctx, {4, 2, 24, 16}, {90}, DType::kF32);
  Tensor both = ctx.Zeros({90, 2, 50}, DType::kF32);
  CopyTo(in.k, both.Columns(3, 27));
  CopyTo(in.v, both.Columns(30, 46));
  Inputs views = in;
  views.k = both.Columns(3, 27), views.v = both.Columns(30, 46);
  EXPECT_TRUE(SameBits(Forward(ctx, views), Forward(ctx, in)));
}

TEST(Attention, RefusesWhatDoesNotFit) {
  Context ctx(TestDevice());
  Inputs in = Make(ctx, {4, 2, 8, 8}, {10}, DType::kF32);
  in.cu = {0, 9};
  EXPECT_THROW(Forward(ctx, in), ShapeError);
  in.cu = {0, 12, 10};
  EXPECT_THROW(Forward(ctx, in), ShapeError);
  in = Make(ctx, {4, 3, 8, 8}, {10}, DType::kF32);
  EXPECT_THROW(Forward(ctx, in), ShapeError);
  in = Make(ctx, {4, 2, 8, 8}, {10}, DType::kF32);
  PagedKv kv{.k_PSGC = ctx.Zeros({4, 48, 2, 8}, DType::kF32),
             .v_PSGV = ctx.Zeros({4, 48, 2, 8}, DType::kF32),
             .pages_S = {},
             .length_S = {}};
  std::vector<int32_t> pages = {0};
  kv.pages_S = {pages};
  kv.length_S = {10};
  EXPECT_THROW(PagedAttention(ctx, in.q, kv, in.cu, 1), ShapeError)
      << "48 does not fit tiles of 64";
  kv.k_PSGC = kv.v_PSGV = ctx.Zeros({4, 4, 2, 8}, DType::kF32);
  EXPECT_THROW(PagedAttention(ctx, in.q, kv, in.cu, 1), ShapeError) << "10 tokens in a page of 4";
}

}  // namespace
}  // namespace hone::kernels
