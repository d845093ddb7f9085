// The usual blocked algorithm (Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", 2008). B is cut into panels of kPanel columns and kBlockK of k, packed so that
// the micro-kernel reads it in order; A into blocks of kBlockM rows, packed likewise. The
// micro-kernel keeps up to kRows × kPanel elements of C in registers while it walks down k. A panel
// of B is packed just before its first use, so with few rows (decoding) it goes from memory through
// the first cache once.
#include "kernels/gemm.h"

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "kernels/simd.h"
#include "kernels/vec_math.h"

namespace hone::kernels {
namespace {

constexpr int kRows = kSimdRegisters == 32 ? 14 : 6;
constexpr int64_t kBlockK = 256;
constexpr int64_t kBlockM = 12 * kRows;
constexpr int64_t kBlockN = 1024;
constexpr int64_t kRowStride =
    kBlockK + 16;  // of A packed by rows: rows start in different cache sets
template <class A>
constexpr int64_t kPanel = 2 * Simd<A>::kWidth;

// c[R, W vectors] (+)= a · b over kc. A is [R][kRowStride], or [kc][kRows] when kTransposed.
template <class A, int R, int W, bool kTransposed>
void MicroKernel(int64_t kc, const A* a, const A* b, A* c, int64_t c_stride, bool load) {
  using S = Simd<A>;
  constexpr int64_t kRow = kTransposed ? 1 : kRowStride, kStep = kTransposed ? kRows : 1;
  typename S::Vector sum[R][W];
  Unroll<R>([&](auto r) {
    Unroll<W>(
        [&](auto w) { sum[r][w] = load ? S::Load(c + r * c_stride + w * S::kWidth) : S::Zero(); });
  });
  for (int64_t k = 0; k < kc; ++k, a += kStep, b += kPanel<A>) {
    typename S::Vector row[W];
    Unroll<W>([&](auto w) { row[w] = S::Load(b + w * S::kWidth); });
    Unroll<R>([&](auto r) {
      auto x = S::Broadcast(a[r * kRow]);
      Unroll<W>([&](auto w) { sum[r][w] = S::Fma(x, row[w], sum[r][w]); });
    });
  }
  Unroll<R>([&](auto r) {
    Unroll<W>([&](auto w) { S::Store(c + r * c_stride + w * S::kWidth, sum[r][w]); });
  });
}

template <class A>
using MicroKernelFn = void (*)(int64_t, const A*, const A*, A*, int64_t, bool);

template <class A, int W, bool kTransposed>
constexpr auto KernelsByRows() {
  return []<int... r>(std::integer_sequence<int, r...>) {
    return std::array<MicroKernelFn<A>, kRows>{MicroKernel<A, r + 1, W, kTransposed>...};
  }
  (std::make_integer_sequence<int, kRows>{});
}
template <class A>
MicroKernelFn<A> KernelFor(int64_t rows, bool wide, bool transposed) {
  static constexpr std::array<MicroKernelFn<A>, kRows> kTable[2][2] = {
      {KernelsByRows<A, 1, false>(), KernelsByRows<A, 1, true>()},
      {KernelsByRows<A, 2, false>(), KernelsByRows<A, 2, true>()}};
  return kTable[wide][transposed][rows - 1];
}

// Rows [0, rows) and k in [0, kc) of A: row groups of kRows, each as the micro-kernel reads it.
template <class T>
void PackA(MatrixView<T> a, int64_t rows, int64_t kc, Acc<T>* to) {
  if (!a.transposed) {
    for (int64_t m = 0; m < rows; ++m) LoadRow(a.data + m * a.stride, to + m * kRowStride, kc);
    return;
  }
  for (int64_t m = 0; m < rows; m += kRows, to += kRows * kRowStride) {
    int64_t count = std::min<int64_t>(kRows, rows - m);
    const T* from = a.data + m;
    if (count == kRows) {
      for (int64_t k = 0; k < kc; ++k) LoadRow(from + k * a.stride, to + k * kRows, kRows);
    } else {
      for (int64_t k = 0; k < kc; ++k) LoadRow(from + k * a.stride, to + k * kRows, count);
    }
  }
}

template <class T>
auto LoadWide(const T* from) {
  using S = Simd<Acc<T>>;
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return S::Load(from);
  } else {
    Acc<T> wide[S::kWidth];
    LoadRow(from, wide, S::kWidth);
    return S::Load(wide);
  }
}

// Rows [0, rows) and k in [0, kc) of `from`, rows ≤ kWidth, as columns of `to`; missing rows are 0.
template <class T>
void PackTransposed(const T* from, int64_t stride, int64_t rows, int64_t kc, Acc<T>* to) {
  using A = Acc<T>;
  using S = Simd<A>;
  constexpr int64_t kW = S::kWidth, kP = kPanel<A>;
  A edge[kW * kW] = {};
  for (int64_t k = 0; k < kc; k += kW) {
    int64_t count = std::min(kW, kc - k);
    typename S::Vector square[kW];
    if (rows == kW && count == kW) {
      Unroll<kW>([&](auto r) { square[r] = LoadWide(from + r * stride + k); });
    } else {
      for (int64_t r = 0; r < rows; ++r) LoadRow(from + r * stride + k, edge + r * kW, count);
      Unroll<kW>([&](auto r) { square[r] = S::Load(edge + r * kW); });
    }
    Transpose<A>(square);
    if (count == kW) {
      Unroll<kW>([&](auto j) { S::Store(to + (k + j) * kP, square[j]); });
    } else {
      for (int64_t j = 0; j < count; ++j) S::Store(to + (k + j) * kP, square[j]);
    }
  }
}

// Columns [0, cols) of B, cols ≤ kPanel, as [kc][kPanel]; the columns beyond are 0.
template <class T>
void PackB(MatrixView<T> b, int64_t kc, int64_t cols, Acc<T>* to) {
  constexpr int64_t kW = Simd<Acc<T>>::kWidth, kP = kPanel<Acc<T>>;
  if (b.transposed) {
    for (int64_t n = 0; n < cols; n += kW) {
      PackTransposed(b.data + n * b.stride, b.stride, std::min(kW, cols - n), kc, to + n);
    }
  } else if (cols == kP) {
    for (int64_t k = 0; k < kc; ++k) LoadRow(b.data + k * b.stride, to + k * kP, kP);
  } else {
    std::fill(to, to + kc * kP, Acc<T>(0));
    for (int64_t k = 0; k < kc; ++k) LoadRow(b.data + k * b.stride, to + k * kP, cols);
  }
}

// One tile of C; a tile narrower than its vectors goes through a copy.
template <class A>
void Tile(int64_t rows, int64_t cols, int64_t kc, const A* a, bool a_transposed, const A* b, A* c,
          int64_t c_stride, bool load) {
  constexpr int64_t kW = Simd<A>::kWidth, kP = kPanel<A>;
  auto kernel = KernelFor<A>(rows, cols > kW, a_transposed);
  if (cols == kP || cols == kW) return kernel(kc, a, b, c, c_stride, load);
  A copy[kRows * kP];
  for (int64_t r = 0; load && r < rows; ++r) {
    std::copy_n(c + r * c_stride, cols, copy + r * kP);
    std::fill(copy + r * kP + cols, copy + (r + 1) * kP, A(0));
  }
  kernel(kc, a, b, copy, kP, load);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(copy + r * kP, cols, c + r * c_stride);
}

struct alignas(64) CacheLine {
  char bytes[64];
};
// Grows to the largest size asked for; one of each `slot` a thread.
template <class A, int slot>
A* Scratch(int64_t elements) {
  thread_local std::vector<CacheLine> memory;
  size_t lines = (elements * sizeof(A) + 63) / 64;
  if (memory.size() < lines) memory.resize(lines);
  return reinterpret_cast<A*>(memory.data());
}

template <class T>
MatrixView<T> From(MatrixView<T> x, int64_t i, int64_t j) {
  x.data += x.transposed ? j * x.stride + i : i * x.stride + j;
  return x;
}

}  // namespace

template <class T>
void GemmSerial(int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
                Acc<T>* c_MN, int64_t c_stride, bool accumulate) {
  using A = Acc<T>;
  constexpr int64_t kP = kPanel<A>;
  if (K == 0 && !accumulate) {
    for (int64_t m = 0; m < M; ++m) std::fill_n(c_MN + m * c_stride, N, A(0));
  }
  A* a_packed = Scratch<A, 0>(kBlockM * kRowStride);
  A* b_packed = Scratch<A, 1>(kBlockN * kBlockK);
  for (int64_t n0 = 0; n0 < N; n0 += kBlockN) {
    int64_t n1 = std::min(N, n0 + kBlockN);
    for (int64_t k0 = 0; k0 < K; k0 += kBlockK) {
      int64_t kc = std::min(kBlockK, K - k0);
      bool load = accumulate || k0 > 0;
      for (int64_t m0 = 0; m0 < M; m0 += kBlockM) {
        int64_t m1 = std::min(M, m0 + kBlockM);
        PackA(From(a_MK, m0, k0), m1 - m0, kc, a_packed);
        for (int64_t n = n0; n < n1; n += kP) {
          A* panel = b_packed + (M > kBlockM ? (n - n0) * kBlockK : 0);
          int64_t cols = std::min(kP, n1 - n);
          if (m0 == 0) PackB(From(b_KN, k0, n), kc, cols, panel);
          for (int64_t m = m0; m < m1; m += kRows) {
            Tile(std::min<int64_t>(kRows, m1 - m), cols, kc, a_packed + (m - m0) * kRowStride,
                 a_MK.transposed, panel, c_MN + m * c_stride + n, c_stride, load);
          }
        }
      }
    }
  }
}

template <class T>
void Gemm(ThreadPool& pool, int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
          Acc<T>* c_MN, int64_t c_stride, bool accumulate) {
  int64_t threads = pool.threads();
  if (threads == 1 || M * N * K < 32768) {
    return GemmSerial(M, N, K, a_MK, b_KN, c_MN, c_stride, accumulate);
  }
  if (M >= threads * 2 * kBlockM) {
    pool.ParallelFor((M + kBlockM - 1) / kBlockM, 2, [&](int64_t begin, int64_t end) {
      int64_t m0 = begin * kBlockM, m1 = std::min(M, end * kBlockM);
      GemmSerial(m1 - m0, N, K, From(a_MK, m0, 0), b_KN, c_MN + m0 * c_stride, c_stride,
                 accumulate);
    });
    return;
  }
  constexpr int64_t kP = kPanel<Acc<T>>;
  int64_t panels = (N + kP - 1) / kP;
  pool.ParallelFor(panels, (panels + threads - 1) / threads, [&](int64_t begin, int64_t end) {
    int64_t n0 = begin * kP, n1 = std::min(N, end * kP);
    GemmSerial(M, n1 - n0, K, a_MK, From(b_KN, 0, n0), c_MN + n0, c_stride, accumulate);
  });
}

#define HONE_GEMM(T)                                                                            \
  template void Gemm<T>(ThreadPool&, int64_t, int64_t, int64_t, MatrixView<T>, MatrixView<T>,   \
                        Acc<T>*, int64_t, bool);                                                \
  template void GemmSerial<T>(int64_t, int64_t, int64_t, MatrixView<T>, MatrixView<T>, Acc<T>*, \
                              int64_t, bool);
HONE_GEMM(float)
HONE_GEMM(double)
HONE_GEMM(BF16)
#undef HONE_GEMM

}  // namespace hone::kernels
