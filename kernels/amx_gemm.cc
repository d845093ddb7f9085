#include "kernels/amx_gemm.h"

#include "kernels/amx_bf16_parts.h"
#include "kernels/amx_fixed_point.h"
#include "runtime/error.h"

#ifdef HONE_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "kernels/scratch.h"

namespace hone::kernels {
namespace {

using namespace amx;

constexpr int64_t kBlockK = 512;    // of a panel that is walked at once
constexpr int64_t kBlockRows = 64;  // of A, packed by the thread that multiplies them
constexpr int64_t kTallRows = 256;  // where B leaves the second cache with each block of rows
constexpr int64_t kSecondCache = 3 << 19;  // bytes of packed panels
constexpr int64_t kBlockOfB = 1 << 20;     // elements, packed by all threads together

// Rows of a left operand, or columns of a right one: line i's k-th element is data[i · stride + k]
// when by_k, else data[k · stride + i].
template <class T>
struct Lines {
  const T* data;
  int64_t stride;
  bool by_k;
  size_t product;  // that they belong to; 0 when all have them
  int64_t first, count;
};

// The operands on one side, in runs of `length` lines; one that is common to all products once.
template <class T>
std::vector<Lines<T>> Cut(std::span<const Product<T>> products, bool left, bool common,
                          int64_t length) {
  std::vector<Lines<T>> runs;
  for (size_t i = 0; i < (common ? 1 : products.size()); ++i) {
    const Product<T>& p = products[i];
    const MatrixView<T>& x = left ? p.a_MK : p.b_KN;
    const int64_t lines = left ? p.M : p.N;
    for (int64_t at = 0; at < lines; at += length) {
      runs.push_back({x.data, x.stride, left != x.transposed, i, at, std::min(length, lines - at)});
    }
  }
  return runs;
}

// Panels of k in [k0, k0 + kc).
template <class Form, bool is_left>
void PackLines(const Lines<typename Form::Element>& lines, int64_t k0, int64_t kc, uint8_t* to) {
  const auto* from = lines.data + (lines.by_k ? k0 : k0 * lines.stride);
  for (int64_t i = 0; i < lines.count; i += kPanel, to += Form::PanelSize(kc)) {
    Form::template Pack<is_left>(from + (lines.first + i) * (lines.by_k ? lines.stride : 1),
                                 lines.stride, lines.by_k, std::min(kPanel, lines.count - i), kc,
                                 to);
  }
}

// A run of rows by panels of columns, which are packed one behind the other.
template <class Form, class T = typename Form::Element>
void MultiplyBlock(std::span<const Product<T>> products, const Lines<T>& rows,
                   std::span<const Lines<T>> panels, const uint8_t* b_packed, int64_t k0,
                   int64_t kc) {
  const int64_t panel_size = Form::PanelSize(kc);
  uint8_t* a_packed = Scratch<uint8_t, 0>((rows.count + kPanel - 1) / kPanel * panel_size);
  PackLines<Form, true>(rows, k0, kc, a_packed);
  for (const Lines<T>& panel : panels) {
    const Product<T>& p = products[std::max(rows.product, panel.product)];
    float* c = p.c_MN + rows.first * p.c_stride + panel.first;
    for (int64_t m = 0; m < rows.count; m += kPanel) {
      Form::Multiply(kc, a_packed + m / kPanel * panel_size, b_packed, rows.count - m, panel.count,
                     c + m * p.c_stride, p.c_stride, p.accumulate || k0 > 0);
    }
    b_packed += panel_size;
  }
}

// c (+)= a · b for some panels of B and some k: packed by all threads, then met by A's rows, a
// block a thread. With few rows, the panels are shared out too.
template <class Form, class T = typename Form::Element>
void MultiplyByPanels(ThreadPool& pool, Common common, std::span<const Product<T>> products,
                      std::span<const Lines<T>> panels, int64_t k0, int64_t kc) {
  const int64_t count = std::ssize(panels), panel_size = Form::PanelSize(kc);
  uint8_t* b_packed = Scratch<uint8_t, 1>(count * panel_size);
  pool.ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      PackLines<Form, false>(panels[n], k0, kc, b_packed + n * panel_size);
    }
  });
  const int64_t height = count * panel_size > kSecondCache ? kTallRows : kBlockRows;
  const auto blocks = Cut(products, true, common == Common::kLeft, height);
  if (blocks.empty()) return;
  const int64_t cuts = std::clamp<int64_t>(2 * pool.threads() / std::ssize(blocks), 1, count);
  pool.ParallelFor(std::ssize(blocks) * cuts, 1, [&](int64_t begin, int64_t end) {
    Tiles tiles;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t cut = i % cuts, n = count * cut / cuts, n_end = count * (cut + 1) / cuts;
      MultiplyBlock<Form>(products, blocks[i / cuts], panels.subspan(n, n_end - n),
                          b_packed + n * panel_size, k0, kc);
    }
  });
}

template <class Form, class T = typename Form::Element>
void MultiplyEach(ThreadPool& pool, Common common, int64_t K,
                  std::span<const Product<T>> products) {
  const auto panels = Cut(products, false, common == Common::kRight, kPanel);
  const size_t block = kBlockOfB / std::min(K, kBlockK) / kPanel;
  for (size_t n = 0; n < panels.size(); n += block) {
    const auto some = std::span(panels).subspan(n, std::min(block, panels.size() - n));
    for (int64_t k = 0; k < K; k += kBlockK) {
      MultiplyByPanels<Form>(pool, common, products, some, k, std::min(kBlockK, K - k));
    }
  }
}

bool AskForTiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl, Linux 5.16 on
  return __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-int8") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool HasAmx() {
  static const bool has = AskForTiles();
  return has;
}

// Packing an element takes as long as the multiplications that the unit saves in `kRepaid` others.
template <class T>
bool AmxPays(Common common, int64_t K, std::span<const Product<T>> products) {
  constexpr int64_t kRepaid = kParts<T> == 1 ? 24 : 70;
  int64_t M = 0, N = 0;
  for (const Product<T>& p : products) {
    M = common == Common::kLeft ? p.M : M + p.M;
    N = common == Common::kRight ? p.N : N + p.N;
  }
  return K >= kStep && M * N >= kRepaid * (M + N);
}

template <class T>
void AmxGemmEach(ThreadPool& pool, Numerics numerics, Common common, int64_t K,
                 std::span<const Product<T>> products) {
  if constexpr (std::is_same_v<T, float>) {
    if (numerics == Numerics::kFixedPoint) {
      return MultiplyEach<FixedPoint>(pool, common, K, products);
    }
  }
  MultiplyEach<Bf16Parts<T>>(pool, common, K, products);
}

#else  // no such unit in the instruction set that this build is for

namespace hone::kernels {

bool HasAmx() { return false; }
template <class T>
bool AmxPays(Common, int64_t, std::span<const Product<T>>) {
  return false;
}

template <class T>
void AmxGemmEach(ThreadPool&, Numerics, Common, int64_t, std::span<const Product<T>>) {
  throw DeviceError("[gemm] this build has no AMX (HONE_CPU_ARCH)");
}

#endif

#define HONE_AMX_GEMM(T)                                               \
  template bool AmxPays(Common, int64_t, std::span<const Product<T>>); \
  template void AmxGemmEach(ThreadPool&, Numerics, Common, int64_t, std::span<const Product<T>>);
HONE_AMX_GEMM(float)
HONE_AMX_GEMM(BF16)
#undef HONE_AMX_GEMM

}  // namespace hone::kernels
