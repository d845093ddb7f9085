// The usual blocked algorithm (Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", 2008). B is cut into panels of kTileCols columns and kPackedK of k, packed so
// that the micro-kernel reads it in order; A into blocks of kBlockM rows, packed likewise. A panel
// of B is packed just before its first use; with few rows (decoding) that is its only use, and all
// panels share one place, which stays in the first cache.
#include "kernels/gemm.h"

#include <algorithm>
#include <type_traits>

#include "kernels/amx_gemm.h"
#include "kernels/micro_kernel.h"
#include "kernels/scratch.h"
#include "kernels/vec_math.h"

namespace hone::kernels {
namespace {

constexpr int64_t kBlockM = 12 * kTileRows;
constexpr int64_t kBlockN = 1024;
constexpr int64_t kFewElements = 1 << 18;  // of a left operand that is packed whole
constexpr int64_t kWorthWaking = 1500000;  // multiply-adds; less is not worth a thread's wake-up

// Rows [0, rows) and k in [0, kc) of A, kPackedStride apart.
template <class T>
void PackRows(MatrixView<T> a, int64_t rows, int64_t kc, Acc<T>* to) {
  for (int64_t m = 0; m < rows; ++m) LoadRow(a.data + m * a.stride, to + m * kPackedStride, kc);
}

// The same of a transposed A: groups of kTileRows rows, each
// [kc][kTileRows].
template <class T>
void PackColumns(MatrixView<T> a, int64_t rows, int64_t kc, Acc<T>* to) {
  for (int64_t m = 0; m < rows; m += kTileRows, to += kTileRows * kPackedStride) {
    const T* from = a.data + m;
    if (rows - m >= kTileRows) {
      for (int64_t k = 0; k < kc; ++k) LoadRow(from + k * a.stride, to + k * kTileRows, kTileRows);
    } else {
      for (int64_t k = 0; k < kc; ++k) LoadRow(from + k * a.stride, to + k * kTileRows, rows - m);
    }
  }
}

// A block of A as tiles read it: `row` elements from tile to tile's row, and `step` from k to k + 1
// where a tile's rows are neighbours, else 0.
template <class A>
struct LeftBlock {
  const A* data;
  int64_t row, step;
};
// A transposed A has a tile's rows beside each other already: it is read where it stands, unless
// its elements must be widened.
template <class T>
LeftBlock<Acc<T>> PackBlock(MatrixView<T> a, int64_t rows, int64_t kc, Acc<T>* to) {
  if (!a.transposed) {
    PackRows(a, rows, kc, to);
    return {to, kPackedStride, 0};
  }
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return {a.data, 1, a.stride};
  } else {
    PackColumns(a, rows, kc, to);
    return {to, kPackedStride, kTileRows};
  }
}

// Rows [0, rows) and k in [0, kc) of `from`, rows ≤ kWidth, as columns of `to`; missing rows are 0.
template <class T>
void PackTransposed(const T* from, int64_t stride, int64_t rows, int64_t kc, Acc<T>* to) {
  using A = Acc<T>;
  using S = Simd<A>;
  constexpr int64_t kW = S::kWidth, kP = kTileCols<A>;
  A edge[kW * kW] = {};
  for (int64_t k = 0; k < kc; k += kW) {
    int64_t count = std::min(kW, kc - k);
    typename S::Vector square[kW];
    bool whole = rows == kW && count == kW;
    if constexpr (std::is_same_v<T, A>) {
      if (whole) LoadTransposed<A>(from + k, stride, square);
    } else if (whole) {
      Unroll<kW>([&](auto r) { square[r] = LoadVector(from + r * stride + k); });
      Transpose<A>(square);
    }
    if (!whole) {
      for (int64_t r = 0; r < rows; ++r) LoadRow(from + r * stride + k, edge + r * kW, count);
      LoadTransposed<A>(edge, kW, square);
    }
    if (count == kW) {
      Unroll<kW>([&](auto j) { S::Store(to + (k + j) * kP, square[j]); });
    } else {
      for (int64_t j = 0; j < count; ++j) S::Store(to + (k + j) * kP, square[j]);
    }
  }
}

// Columns [0, cols) of B, cols ≤ kTileCols, as [kc][kTileCols]; the columns beyond hold anything.
template <class T>
void PackPanel(MatrixView<T> b, int64_t kc, int64_t cols, Acc<T>* to) {
  constexpr int64_t kW = Simd<Acc<T>>::kWidth, kP = kTileCols<Acc<T>>;
  if (b.transposed) {
    for (int64_t n = 0; n < cols; n += kW) {
      PackTransposed(b.data + n * b.stride, b.stride, std::min(kW, cols - n), kc, to + n);
    }
  } else if (cols == kP) {
    for (int64_t k = 0; k < kc; ++k) LoadRow(b.data + k * b.stride, to + k * kP, kP);
  } else {
    for (int64_t k = 0; k < kc; ++k) {
      LoadRow(b.data + k * b.stride, to + k * kP, cols);
      std::fill(to + k * kP + cols, to + (k + 1) * kP, Acc<T>(0));
    }
  }
}

template <class T>
MatrixView<T> From(MatrixView<T> x, int64_t i, int64_t j) {
  x.data += x.transposed ? j * x.stride + i : i * x.stride + j;
  return x;
}

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <class A>
void FillRows(int64_t M, int64_t N, A* c, int64_t c_stride) {
  for (int64_t m = 0; m < M; ++m) std::fill_n(c + m * c_stride, N, A(0));
}

// Walks C in blocks. `panel_at(m0, n0, k0, n, cols, kc)` gives rows [k0, k0 + kc) and columns [n, n
// + cols) of B, packed.
template <class T, class PanelAt>
void ForEachTile(int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, Acc<T>* c_MN,
                 int64_t c_stride, bool accumulate, PanelAt panel_at) {
  using A = Acc<T>;
  constexpr int64_t kP = kTileCols<A>;
  if (K == 0 && !accumulate) FillRows(M, N, c_MN, c_stride);
  A* a_packed = Scratch<A, 0>(kBlockM * kPackedStride);
  for (int64_t n0 = 0; n0 < N; n0 += kBlockN) {
    int64_t n1 = std::min(N, n0 + kBlockN);
    for (int64_t k0 = 0; k0 < K; k0 += kPackedK) {
      int64_t kc = std::min(kPackedK, K - k0);
      bool load = accumulate || k0 > 0;
      for (int64_t m0 = 0; m0 < M; m0 += kBlockM) {
        int64_t m1 = std::min(M, m0 + kBlockM);
        MatrixView<T> a = From(a_MK, m0, k0);
        const LeftBlock<A> left = PackBlock(a, m1 - m0, kc, a_packed);
        for (int64_t n = n0; n < n1; n += kP) {
          int64_t cols = std::min(kP, n1 - n);
          const A* panel = panel_at(m0, n0, k0, n, cols, kc);
          for (int64_t m = m0; m < m1; m += kTileRows) {
            MultiplyTile<A>(std::min<int64_t>(kTileRows, m1 - m), cols, kc,
                            left.data + (m - m0) * left.row, left.step, panel, kP,
                            c_MN + m * c_stride + n, c_stride, load,
                            reinterpret_cast<const char*>(panel));
          }
        }
      }
    }
  }
}

}  // namespace

template <class T>
void GemmSerial(int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
                Acc<T>* c_MN, int64_t c_stride, bool accumulate) {
  using A = Acc<T>;
  A* b_packed = Scratch<A, 1>(kBlockN * kPackedK);
  ForEachTile<T>(M, N, K, a_MK, c_MN, c_stride, accumulate,
                 [&](int64_t m0, int64_t n0, int64_t k0, int64_t n, int64_t cols, int64_t kc) {
                   A* panel = b_packed + (M > kBlockM ? (n - n0) * kPackedK : 0);
                   if (m0 == 0) PackPanel(From(b_KN, k0, n), kc, cols, panel);
                   return panel;
                 });
}

template <class T>
void Gemm(ThreadPool& pool, int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
          Acc<T>* c_MN, int64_t c_stride, bool accumulate) {
  int64_t threads = pool.threads();
  // Packing an element of B costs about what 12 rows of A cost.
  if (threads == 1 || (M + 12) * N * K < kWorthWaking) {
    return GemmSerial(M, N, K, a_MK, b_KN, c_MN, c_stride, accumulate);
  }
  auto by_rows = [&](int64_t unit, int64_t grain) {
    pool.ParallelFor((M + unit - 1) / unit, grain, [&](int64_t begin, int64_t end) {
      int64_t m0 = begin * unit, m1 = std::min(M, end * unit);
      GemmSerial(m1 - m0, N, K, From(a_MK, m0, 0), b_KN, c_MN + m0 * c_stride, c_stride,
                 accumulate);
    });
  };
  // Blocks as threads come for them, where packing B again for each costs little: not where K is
  // long, as in a weight's gradient. There, and with few rows, each thread takes its share at once
  // of the longer side, so that what all of them pack is the other.
  if (M >= threads * 2 * kBlockM && !(a_MK.transposed && K > M)) return by_rows(kBlockM, 2);
  const int64_t tiles = (M + kTileRows - 1) / kTileRows;
  if (M > N) return by_rows(kTileRows, (tiles + threads - 1) / threads);
  constexpr int64_t kP = kTileCols<Acc<T>>;
  int64_t panels = (N + kP - 1) / kP;
  pool.ParallelFor(panels, (panels + threads - 1) / threads, [&](int64_t begin, int64_t end) {
    int64_t n0 = begin * kP, n1 = std::min(N, end * kP);
    GemmSerial(M, n1 - n0, K, a_MK, From(b_KN, 0, n0), c_MN + n0, c_stride, accumulate);
  });
}

template <class T>
void Gemm(Context& ctx, int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK, MatrixView<T> b_KN,
          Acc<T>* c_MN, int64_t c_stride, bool accumulate) {
  const Product<T> product{M, N, a_MK, b_KN, c_MN, c_stride, accumulate};
  GemmEach<T>(ctx, Common::kLeft, K, {&product, 1});
}

template <class T>
void GemmEach(Context& ctx, Common common, int64_t K, std::span<const Product<T>> products) {
  if (products.empty()) return;
  if constexpr (std::is_same_v<Acc<T>, float>) {
    if (ctx.numerics != Numerics::kBatchInvariant && AmxPays(common, K, products) && HasAmx()) {
      return AmxGemmEach(ctx.pool(), ctx.numerics, common, K, products);
    }
  }
  for (const Product<T>& p : products) {
    Gemm<T>(ctx.pool(), p.M, p.N, K, p.a_MK, p.b_KN, p.c_MN, p.c_stride, p.accumulate);
  }
}

template <class T>
void PackLeft(int64_t M, int64_t K, MatrixView<T> a_MK, Acc<T>* to) {
  for (int64_t k0 = 0; k0 < K; k0 += kPackedK, to += M * kPackedStride) {
    PackRows(From(a_MK, 0, k0), M, std::min(kPackedK, K - k0), to);
  }
}

template <class A>
int64_t PackedRightSize(int64_t K, int64_t N) {
  return K * RoundUp(N, kTileCols<A>);
}

template <class T>
RightOperand<Acc<T>> PackRight(int64_t M, int64_t K, int64_t N, MatrixView<T> b_KN, Acc<T>* to) {
  using A = Acc<T>;
  constexpr int64_t kP = kTileCols<A>;
  if constexpr (std::is_same_v<T, A>) {
    bool in_place = M <= kTileRows && !b_KN.transposed && N % Simd<A>::kWidth == 0;
    if (in_place) return {b_KN.data, b_KN.stride, 0};
  }
  for (int64_t n = 0; n < N; n += kP) {
    PackPanel(From(b_KN, 0, n), K, std::min(kP, N - n), to + n * K);
  }
  return {to, kP, K};
}

// The tiles of a packed panel's rows [k0, k0 + kc) share the work of asking for the rows that come
// after them in memory: a panel that comes out of the memory, as weights do when few tokens meet
// them, is then there when its turn comes.
template <class A>
void GemmPacked(int64_t M, int64_t N, int64_t K, LeftOperand<A> left_MK, RightOperand<A> right_KN,
                A* c_MN, int64_t c_stride, bool accumulate) {
  constexpr int64_t kP = kTileCols<A>, kWide = kWideTileCols<A>;
  if (K == 0 && !accumulate) FillRows(M, N, c_MN, c_stride);
  const bool packed = right_KN.panel_k > 0, few = M <= kFewRows && !packed;
  // Tiles of about the same height: a low last one would cost more than its share.
  const int64_t tiles = (M + kTileRows - 1) / kTileRows;
  const int64_t height = tiles == 0 ? 1 : (M + tiles - 1) / tiles;
  const int64_t next_k = right_KN.step, next_n = packed ? right_KN.panel_k : 1;
  for (int64_t n = 0, cols; n < N; n += cols) {
    cols = few && N - n >= kWide ? kWide : std::min(kP, N - n);
    for (int64_t k0 = 0; k0 < K; k0 += kPackedK) {
      const int64_t kc = std::min(kPackedK, K - k0);
      const bool load = accumulate || k0 > 0;
      const A* left = left_MK.data + k0 / kPackedK * left_MK.chunk;
      const A* panel = right_KN.data + k0 * next_k + n * next_n;
      if (cols == kWide) {
        MultiplyWideTile<A>(M, kc, left, panel, right_KN.step, c_MN + n, c_stride, load,
                            reinterpret_cast<const char*>(panel));
        continue;
      }
      const char* ahead = reinterpret_cast<const char*>(packed ? panel + kc * kP : panel);
      for (int64_t m = 0; m < M; m += height, ahead += packed ? kc * kLineBytes : 0) {
        MultiplyTile<A>(std::min(height, M - m), cols, kc, left + m * kPackedStride, 0, panel,
                        right_KN.step, c_MN + m * c_stride + n, c_stride, load, ahead);
      }
    }
  }
}

template <class T>
void GemmWithPacked(ThreadPool& pool, int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK,
                    const Acc<T>* packed_KN, Acc<T>* c_MN, int64_t c_stride, bool accumulate) {
  using A = Acc<T>;
  constexpr int64_t kP = kTileCols<A>;
  auto columns = [&](int64_t n_begin, int64_t n_end) {
    if (PackedLeftSize(M, K) <= kFewElements && !a_MK.transposed) {
      A* a_packed = Scratch<A, 0>(PackedLeftSize(M, K));
      PackLeft(M, K, a_MK, a_packed);
      return GemmPacked<A>(M, n_end - n_begin, K, {a_packed, M * kPackedStride},
                           {packed_KN + n_begin * K, kP, K}, c_MN + n_begin, c_stride, accumulate);
    }
    ForEachTile<T>(M, n_end - n_begin, K, a_MK, c_MN + n_begin, c_stride, accumulate,
                   [&](int64_t, int64_t, int64_t k0, int64_t n, int64_t, int64_t) {
                     return packed_KN + (n_begin + n) * K + k0 * kP;
                   });
  };
  int64_t threads = pool.threads(), panels = (N + kP - 1) / kP;
  if (threads == 1 || M * N * K < kWorthWaking) return columns(0, N);
  pool.ParallelFor(panels, (panels + threads - 1) / threads,
                   [&](int64_t begin, int64_t end) { columns(begin * kP, std::min(N, end * kP)); });
}

#define HONE_GEMM(T)                                                                             \
  template void Gemm<T>(Context&, int64_t, int64_t, int64_t, MatrixView<T>, MatrixView<T>,       \
                        Acc<T>*, int64_t, bool);                                                 \
  template void GemmEach<T>(Context&, Common, int64_t, std::span<const Product<T>>);             \
  template void Gemm<T>(ThreadPool&, int64_t, int64_t, int64_t, MatrixView<T>, MatrixView<T>,    \
                        Acc<T>*, int64_t, bool);                                                 \
  template void GemmSerial<T>(int64_t, int64_t, int64_t, MatrixView<T>, MatrixView<T>, Acc<T>*,  \
                              int64_t, bool);                                                    \
  template void PackLeft<T>(int64_t, int64_t, MatrixView<T>, Acc<T>*);                           \
  template RightOperand<Acc<T>> PackRight<T>(int64_t, int64_t, int64_t, MatrixView<T>, Acc<T>*); \
  template void GemmWithPacked<T>(ThreadPool&, int64_t, int64_t, int64_t, MatrixView<T>,         \
                                  const Acc<T>*, Acc<T>*, int64_t, bool);
#define HONE_GEMM_PACKED(A)                                                                   \
  template int64_t PackedRightSize<A>(int64_t, int64_t);                                      \
  template void GemmPacked<A>(int64_t, int64_t, int64_t, LeftOperand<A>, RightOperand<A>, A*, \
                              int64_t, bool);
HONE_GEMM(float)
HONE_GEMM(double)
HONE_GEMM(BF16)
HONE_GEMM_PACKED(float)
HONE_GEMM_PACKED(double)
#undef HONE_GEMM
#undef HONE_GEMM_PACKED

}  // namespace hone::kernels
