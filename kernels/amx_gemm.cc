#include "kernels/amx_gemm.h"

#include "kernels/amx_panels.h"
#include "runtime/error.h"

#ifdef HONE_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/scratch.h"

namespace hone::kernels {
namespace {

using namespace amx;

constexpr int64_t kBlockK = 512;    // of a panel that is walked at once
constexpr int64_t kBlockRows = 64;  // of A, packed by the thread that multiplies them
constexpr int64_t kTallRows = 256;  // where B leaves the second cache with each block of rows
constexpr int64_t kSecondCache = 3 << 18;  // packed elements of 2 bytes
constexpr int64_t kBlockOfB = 1 << 20;     // elements, packed by all threads together

// Rows [0, rows) of a block of C, panels [begin, end) of the packed block of B.
template <class T>
void MultiplyBlock(int64_t rows, int64_t cols, int64_t kc, MatrixView<T> a,
                   const uint16_t* b_packed, int64_t begin, int64_t end, float* c, int64_t c_stride,
                   bool load) {
  const int64_t steps = (kc + kStep - 1) / kStep, panel_size = steps * kStepSize<T>;
  uint16_t* a_packed = Scratch<uint16_t, 0>((rows + kPanel - 1) / kPanel * panel_size);
  for (int64_t m = 0; m < rows; m += kPanel) {
    PackPanel<T, true>(a.transposed ? a.data + m : a.data + m * a.stride, a.stride, !a.transposed,
                       std::min(kPanel, rows - m), kc, a_packed + m / kPanel * panel_size);
  }
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t m = 0; m < rows; m += kPanel) {
      MultiplySquare<T>(steps, a_packed + m / kPanel * panel_size, b_packed + n * panel_size,
                        rows - m, cols - n * kPanel, c + m * c_stride + n * kPanel, c_stride, load);
    }
  }
}

// c (+)= a · b for a block of B: packed by all threads, then met by A's rows, a block a thread.
// With few rows, the panels of B are shared out too.
template <class T>
void MultiplyByBlock(ThreadPool& pool, int64_t M, int64_t cols, int64_t kc, MatrixView<T> a,
                     MatrixView<T> b, float* c, int64_t c_stride, bool load) {
  const int64_t panels = (cols + kPanel - 1) / kPanel, steps = (kc + kStep - 1) / kStep;
  const int64_t panel_size = steps * kStepSize<T>;
  uint16_t* b_packed = Scratch<uint16_t, 1>(panels * panel_size);
  pool.ParallelFor(panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* from = b.transposed ? b.data + n * kPanel * b.stride : b.data + n * kPanel;
      PackPanel<T, false>(from, b.stride, b.transposed, std::min(kPanel, cols - n * kPanel), kc,
                          b_packed + n * panel_size);
    }
  });
  const int64_t height = panels * panel_size > kSecondCache ? kTallRows : kBlockRows;
  const int64_t blocks = (M + height - 1) / height;
  const int64_t cuts = std::clamp<int64_t>(2 * pool.threads() / blocks, 1, panels);
  pool.ParallelFor(blocks * cuts, 1, [&](int64_t begin, int64_t end) {
    Tiles tiles;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m = i / cuts * height, cut = i % cuts;
      MatrixView<T> rows = a;
      rows.data += a.transposed ? m : m * a.stride;
      MultiplyBlock<T>(std::min(height, M - m), cols, kc, rows, b_packed, panels * cut / cuts,
                       panels * (cut + 1) / cuts, c + m * c_stride, c_stride, load);
    }
  });
}

bool AskForTiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl, Linux 5.16 on
  return __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool HasAmx() {
  static const bool has = AskForTiles();
  return has;
}

// Packing an element takes as long as the multiplications that the unit saves in `kRepaid` others.
template <class T>
bool AmxPays(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t kRepaid = kParts<T> == 1 ? 24 : 70;
  return K >= kStep && M * N >= kRepaid * (M + N);
}

template <class T>
void AmxGemm(ThreadPool& pool, int64_t M, int64_t N, int64_t K, MatrixView<T> a_MK,
             MatrixView<T> b_KN, float* c_MN, int64_t c_stride, bool accumulate) {
  const int64_t block_n = kBlockOfB / std::min(K, kBlockK) / kPanel * kPanel;
  for (int64_t n = 0; n < N; n += block_n) {
    for (int64_t k = 0; k < K; k += kBlockK) {
      MatrixView<T> a = a_MK, b = b_KN;
      a.data += a.transposed ? k * a.stride : k;
      b.data += b.transposed ? n * b.stride + k : k * b.stride + n;
      MultiplyByBlock<T>(pool, M, std::min(block_n, N - n), std::min(kBlockK, K - k), a, b,
                         c_MN + n, c_stride, accumulate || k > 0);
    }
  }
}

#else  // no such unit in the instruction set that this build is for

namespace hone::kernels {

bool HasAmx() { return false; }
template <class T>
bool AmxPays(int64_t, int64_t, int64_t) {
  return false;
}

template <class T>
void AmxGemm(ThreadPool&, int64_t, int64_t, int64_t, MatrixView<T>, MatrixView<T>, float*, int64_t,
             bool) {
  throw DeviceError("[gemm] this build has no AMX (HONE_CPU_ARCH)");
}

#endif

template bool AmxPays<float>(int64_t, int64_t, int64_t);
template bool AmxPays<BF16>(int64_t, int64_t, int64_t);
template void AmxGemm<float>(ThreadPool&, int64_t, int64_t, int64_t, MatrixView<float>,
                             MatrixView<float>, float*, int64_t, bool);
template void AmxGemm<BF16>(ThreadPool&, int64_t, int64_t, int64_t, MatrixView<BF16>,
                            MatrixView<BF16>, float*, int64_t, bool);

}  // namespace hone::kernels
