#include "kernels/cuda/cudnn_pack.h"

#include <gtest/gtest.h>

namespace hone::kernels::cudnn {
namespace {

TEST(CudnnPack, SizesAreFewAndLargeEnough) {
  std::vector<int64_t> sizes;
  for (int64_t n = 0; n <= 16; ++n) sizes.push_back(RoundUp(n, 1));
  EXPECT_EQ(sizes,
            (std::vector<int64_t>{1, 1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16}));
  EXPECT_EQ(PaddedLength(1), 128);
  EXPECT_EQ(PaddedLength(129), 256);  // not 192
  EXPECT_EQ(PaddedLength(257), 384);
  EXPECT_EQ(PaddedLength(4096), 4096);
}

TEST(CudnnPack, CutsAPackSoThatScoresFit) {
  const int64_t square = int64_t{256} * 256 * 2 * 5;  // a sequence of up to 256 tokens, 5 heads
  EXPECT_EQ(ScoreBytes(5, 200, 5), 6 * square);
  const std::vector<int32_t> cu = {0, 200, 400, 600, 700, 1300, 1301, 1301};
  EXPECT_EQ(CutPack(cu, 5, 100 * square), (std::vector<size_t>{0, 7}));
  EXPECT_EQ(CutPack(cu, 5, 3 * square), (std::vector<size_t>{0, 3, 4, 5, 7}));
  EXPECT_EQ(CutPack(cu, 5, 0), (std::vector<size_t>{0, 1, 2, 3, 4, 5, 6, 7}));  // one at least
  EXPECT_EQ(CutPack(std::vector<int32_t>{0}, 5, 0), (std::vector<size_t>{0, 0}));
}

TEST(CudnnPack, EmptySequencesOnlyWhereCudnnTakesThem) {
  const std::vector<int32_t> cu = {0, 0, 7, 7, 7, 9, 12, 20, 21, 21};
  const PackedSequences none = SequencesOf(cu, false);
  EXPECT_EQ(none.lengths, (std::vector<int32_t>{7, 2, 3, 8, 1}));
  EXPECT_EQ(none.begin, (std::vector<int64_t>{0, 7, 9, 12, 20, 21}));
  EXPECT_EQ(none.longest(), 8);
  const PackedSequences filled = SequencesOf(cu, true);
  EXPECT_EQ(filled.lengths, (std::vector<int32_t>{7, 2, 3, 8, 1, 0}));
  EXPECT_EQ(filled.begin, (std::vector<int64_t>{0, 7, 9, 12, 20, 21, 21}));
  EXPECT_EQ(SequencesOf(std::vector<int32_t>{3, 3}, false).size(), 0);
  for (bool may_be_empty : {false, true}) {
    const PackedSequences pack = SequencesOf(cu, may_be_empty);
    EXPECT_GE(ScoreBytes(9, 8, 5), pack.size() * 5 * PaddedLength(8) * PaddedLength(8) * 2);
  }
}

}  // namespace
}  // namespace hone::kernels::cudnn
