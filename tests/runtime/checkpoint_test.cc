// Checkpoints through the interface: every layout saves, every other loads, and damage is named.
#include "runtime/checkpoint/checkpoint.h"

#include <gmock/gmock.h>

#include <atomic>
#include <fstream>

#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct TensorInfo {
  std::string name;
  Shape shape;
  DType dtype = DType::kF32;
};
const std::vector<TensorInfo> kTensors = {
    {"model/embed", {12, 5}},
    {"model/layers.0/experts", {4, 6, 7}, DType::kBF16},
    {"model/norm", {9}},
    {"optimizer/exp_avg/embed", {12, 5}, DType::kF64},
    {"optimizer/count", {}, DType::kF64},
};

// Rank r of n holds the r-th part of dim `dim` (parts may be empty); tensors with fewer dims are
// held whole by everyone.
SlabIndex Layout(Context& ctx, int r, int n, size_t dim, bool filled) {
  SlabIndex index;
  for (const TensorInfo& t : kTensors) {
    Slab slab = Slab::Whole(t.name, t.shape);
    if (dim < t.shape.size()) {
      int64_t begin = t.shape[dim] * r / n, end = t.shape[dim] * (r + 1) / n;
      slab.offset[dim] = begin;
      slab.extent[dim] = end - begin;
    }
    index.push_back(filled ? FilledSlab(ctx, slab, t.dtype) : EmptySlab(ctx, slab, t.dtype));
  }
  return index;
}

void Flip(const std::string& path, int64_t at, char mask) {
  auto file = LocalFileSystem().Open(path, OpenMode::kReadWrite);
  char byte;
  file->Read(at, &byte, 1);
  byte = static_cast<char>(byte ^ mask);
  file->Write(at, &byte, 1);
}

// Saves the layout (n, dim) to `dir` and returns every rank's error.
std::vector<std::string> Save(FileSystem& fs, const std::string& dir, int n, size_t dim,
                              CheckpointWriter::Options options = {}) {
  return RunRanks(n, [&](std::shared_ptr<Rendezvous> ranks) {
    Context ctx;
    CheckpointWriter writer(fs, ranks, options);
    std::string metadata = ranks->rank() == 0 ? R"({"step": 7})" : "";
    writer.Save(dir, {Layout(ctx, ranks->rank(), n, dim, true), metadata});
    writer.Wait();
  });
}

void ExpectLoads(const std::string& dir, int n, size_t dim) {
  CheckpointReader reader(LocalFileSystem(), dir);
  EXPECT_EQ(reader.metadata(), R"({"step": 7})");
  for (int r = 0; r < n; ++r) {
    Context ctx;
    SlabIndex index = Layout(ctx, r, n, dim, false);
    reader.Load(index);
    for (const SlabTensor& st : index) ExpectFilled(st);
  }
}

TEST(CheckpointTest, AnyLayoutSavesAndAnyOtherLoads) {
  TemporaryFolder folder;
  const std::vector<std::pair<int, size_t>> layouts = {{1, 0}, {2, 0}, {3, 1}, {5, 2}, {4, 9}};
  for (auto [save_n, save_dim] : layouts) {
    for (bool asynchronous : {false, true}) {
      std::string dir = folder / fmt::format("{}-{}-{}", save_n, save_dim, asynchronous);
      auto errors = Save(LocalFileSystem(), dir, save_n, save_dim, {asynchronous, 0});
      ASSERT_THAT(errors, Each(""));
      for (auto [load_n, load_dim] : layouts) ExpectLoads(dir, load_n, load_dim);
    }
  }
}

TEST(CheckpointTest, CompressedLoadsToo) {
  TemporaryFolder folder;
  ASSERT_THAT(Save(LocalFileSystem(), folder / "c", 3, 0, {true, 1}), Each(""));
  ExpectLoads(folder / "c", 2, 1);
  CheckpointReader(LocalFileSystem(), folder / "c").Verify();
}

TEST(CheckpointTest, SlabsHeldByManyAreWrittenOnceByTheLowest) {
  TemporaryFolder folder;
  ASSERT_THAT(Save(LocalFileSystem(), folder / "c", 3, 9), Each(""));
  CheckpointReader reader(LocalFileSystem(), folder / "c");
  EXPECT_EQ(reader.slabs().size(), kTensors.size());
  for (const auto& info : reader.slabs()) EXPECT_EQ(info.shard, "shard-00000.h5");
  EXPECT_THAT(LocalFileSystem().List(folder / "c"), ElementsAre("index.h5", "shard-00000.h5"));
}

TEST(CheckpointTest, AsynchronousSaveKeepsTheValuesOfTheCall) {
  TemporaryFolder folder;
  Context ctx;
  SlabIndex index = {FilledSlab(ctx, Slab::Whole("model/w", {64, 64}))};
  CheckpointWriter writer(LocalFileSystem(), std::make_shared<SingleRank>(), {});
  bool committed = false;
  writer.Save(folder / "c", {index, "{}"}, [&] { committed = true; });
  FillZero(index[0].tensor.raw(), Device::Cpu(), index[0].tensor.bytes(), nullptr);
  writer.Wait();
  EXPECT_TRUE(committed);
  SlabIndex loaded = {EmptySlab(ctx, Slab::Whole("model/w", {64, 64}))};
  CheckpointReader(LocalFileSystem(), folder / "c").Load(loaded);
  ExpectFilled(loaded[0]);
}

TEST(CheckpointTest, StridedTensorsAndOtherDTypes) {
  TemporaryFolder folder;
  Context ctx;
  Tensor wide = ctx.Zeros({6, 10}, DType::kF32);
  Tensor view = wide.Columns(2, 7);
  SlabTensor filled = FilledSlab(ctx, Slab::Whole("model/w", {6, 5}));
  CopyTo(filled.tensor, view);
  for (bool asynchronous : {false, true}) {
    CheckpointWriter writer(LocalFileSystem(), std::make_shared<SingleRank>(), {asynchronous, 0});
    writer.Save(folder / "c", {{{filled.slab, view}}, ""});
    writer.Wait();
    CheckpointReader reader(LocalFileSystem(), folder / "c");
    EXPECT_EQ(reader.metadata(), "");
    for (DType dtype : {DType::kF64, DType::kBF16}) {
      SlabIndex loaded = {EmptySlab(ctx, filled.slab, dtype)};
      reader.Load(loaded);
      ExpectFilled(loaded[0]);
    }
  }
}

TEST(CheckpointTest, LazySlabsAreMadeOneAfterTheOther) {
  TemporaryFolder folder;
  Context ctx;
  CheckpointContents contents{{FilledSlab(ctx, Slab::Whole("model/first", {3}))}, "{}"};
  std::atomic<int> made = 0, alive = 0, most = 0;
  for (int i = 0; i < 5; ++i) {
    Slab slab = Slab::Whole("model/rows", {5, 1 << 18});
    slab.offset[0] = i;
    slab.extent[0] = 1;
    contents.lazy.push_back({slab, DType::kF32, [&, slab, i] {
                               EXPECT_EQ(made++, i);
                               most = std::max<int>(most, ++alive);
                               Tensor t = FilledSlab(ctx, slab, DType::kF32).tensor;
                               std::shared_ptr<void> end(nullptr, [&, t](void*) { --alive; });
                               return Tensor(t.raw(), t.shape(), t.dtype(), t.device(), end);
                             }});
  }
  CheckpointWriter::Options options;
  options.ahead_bytes = 1 << 20;  // one
  CheckpointWriter writer(LocalFileSystem(), std::make_shared<SingleRank>(), options);
  writer.Save(folder / "lazy", contents);
  writer.Wait();
  EXPECT_EQ(made, 5);
  EXPECT_EQ(alive, 0);
  EXPECT_LE(most, 2);
  for (const char* name : {"model/first", "model/rows"}) {
    const Shape shape = name == std::string("model/rows") ? Shape{5, 1 << 18} : Shape{3};
    SlabTensor got = EmptySlab(ctx, Slab::Whole(name, shape));
    CheckpointReader(LocalFileSystem(), folder / "lazy").Load({got});
    ExpectFilled(got);
  }
  contents.lazy[3].tensor = [&] { return ctx.Zeros({2}, DType::kF32); };
  made = 0;
  EXPECT_THROW(
      {
        writer.Save(folder / "wrong", contents);
        writer.Wait();
      },
      CheckpointError);
}

// A piece of 72 MB, of which only runs are read, and one that is no run.
TEST(CheckpointTest, PartsOfALargePieceAreReadWithoutTheWhole) {
  TemporaryFolder folder;
  Context ctx;
  const Shape shape = {9, 4, 1 << 21};
  SlabTensor whole = EmptySlab(ctx, Slab::Whole("model/stack", shape), DType::kU8);
  uint8_t* bytes = whole.tensor.data<uint8_t>();
  for (int64_t i = 0; i < whole.tensor.size(); ++i)
    bytes[i] = static_cast<uint8_t>(i * 7 + i / 251);
  CheckpointWriter writer(LocalFileSystem(), std::make_shared<SingleRank>(), {});
  writer.Save(folder / "large", {{whole}, "{}"});
  writer.Wait();
  const std::vector<std::pair<Shape, Shape>> boxes = {{{3, 0, 0}, {1, 4, 1 << 21}},
                                                      {{2, 1, 0}, {1, 2, 1 << 21}},
                                                      {{8, 3, 5}, {1, 1, 100}},
                                                      {{1, 0, 0}, {3, 4, 1 << 21}},
                                                      {{0, 2, 0}, {9, 1, 3000}}};
  const CheckpointReader reader(LocalFileSystem(), folder / "large");
  for (const auto& [offset, extent] : boxes) {
    Slab slab{"model/stack", shape, offset, extent};
    SlabTensor got = EmptySlab(ctx, slab, DType::kU8), want = EmptySlab(ctx, slab, DType::kU8);
    reader.Load({got});
    CopySlab(whole, want);
    EXPECT_EQ(ToVector<uint8_t>(got.tensor), ToVector<uint8_t>(want.tensor)) << slab.ToString();
  }
  // A changed byte anywhere in the piece is seen before any of it is used.
  const CheckpointSlabInfo& info = reader.slabs()[0];
  Flip(folder / "large/shard-00000.h5", info.position + 50'000'000, 0x10);
  SlabTensor got = EmptySlab(ctx, {"model/stack", shape, {0, 0, 0}, {1, 4, 1 << 21}}, DType::kU8);
  const CheckpointReader again(LocalFileSystem(), folder / "large");
  for (int time = 0; time < 2; ++time) EXPECT_THROW(again.Load({got}), CheckpointError) << time;
}

TEST(CheckpointTest, EmptyTensorsAndTensorsWithoutElementsOnARank) {
  TemporaryFolder folder;
  Context ctx;
  CheckpointWriter writer(LocalFileSystem(), std::make_shared<SingleRank>(), {});
  writer.Save(folder / "c", {{EmptySlab(ctx, Slab::Whole("model/none", {0, 4}))}, "{}"});
  writer.Wait();
  CheckpointReader reader(LocalFileSystem(), folder / "c");
  reader.Load({EmptySlab(ctx, Slab::Whole("model/none", {0, 4}))});
  EXPECT_EQ(reader.Tensors()[0].global_shape, (Shape{0, 4}));
}

TEST(CheckpointTest, LoadNamesWhatDoesNotFit) {
  TemporaryFolder folder;
  Context ctx;
  ASSERT_THAT(Save(LocalFileSystem(), folder / "c", 2, 0), Each(""));
  CheckpointReader reader(LocalFileSystem(), folder / "c");
  auto load = [&](const std::string& name, Shape shape) {
    return MessageOf<CheckpointError>(
        [&] { reader.Load({EmptySlab(ctx, Slab::Whole(name, shape))}); });
  };
  EXPECT_THAT(load("model/embedd", {12, 5}),
              HasSubstr("'model/embedd'; the nearest is 'model/embed'"));
  EXPECT_THAT(load("model/embed", {12, 6}),
              AllOf(HasSubstr("model/embed"), HasSubstr("[12, 5]"), HasSubstr("[12, 6]")));
}

TEST(CheckpointTest, APartThatNobodyHoldsIsRefusedWhenSaving) {
  TemporaryFolder folder;
  Context ctx;
  Slab half = Slab::Whole("model/w", {8});
  half.extent[0] = 4;
  CheckpointWriter writer(LocalFileSystem(), std::make_shared<SingleRank>(), {false, 0});
  SlabIndex index = {FilledSlab(ctx, half)};
  EXPECT_THAT(MessageOf<CheckpointError>([&] {
                writer.Save(folder / "c", {index, "{}"});
              }),
              HasSubstr("model/w[4:8] of [8]"));
  EXPECT_FALSE(LocalFileSystem().Exists(folder / "c"));
}

TEST(CheckpointTest, SavingAgainReplacesInOneStep) {
  TemporaryFolder folder;
  ASSERT_THAT(Save(LocalFileSystem(), folder / "c", 4, 0), Each(""));
  ASSERT_THAT(Save(LocalFileSystem(), folder / "c", 2, 1), Each(""));
  ExpectLoads(folder / "c", 3, 0);
  EXPECT_THAT(LocalFileSystem().List(folder.path()), ElementsAre("c"));
}

// Damage
// -------------------------------------------------------------------------------------------

class DamagedCheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_THAT(Save(LocalFileSystem(), folder_ / "c", 2, 0), Each("")); }
  std::string Shard() const { return folder_ / "c/shard-00001.h5"; }
  std::string OpenError() const {
    return MessageOf<CheckpointError>(
        [&] { CheckpointReader reader(LocalFileSystem(), folder_ / "c"); });
  }
  // What a reader that wants everything says; "" if it finds no fault.
  std::string LoadError() const {
    try {
      Context ctx;
      CheckpointReader reader(LocalFileSystem(), folder_ / "c");
      reader.Load(Layout(ctx, 0, 1, 0, false));
      return "";
    } catch (const CheckpointError& e) {
      return e.what();
    }
  }
  TemporaryFolder folder_;
};

TEST_F(DamagedCheckpointTest, MissingShard) {
  LocalFileSystem().Remove(Shard());
  EXPECT_THAT(OpenError(),
              AllOf(HasSubstr("shard-00001.h5 is missing"), HasSubstr("model/embed[6:12")));
}

TEST_F(DamagedCheckpointTest, TruncatedShard) {
  auto file = LocalFileSystem().Open(Shard(), OpenMode::kReadWrite);
  file->Truncate(file->Size() - 1);
  EXPECT_THAT(OpenError(), AllOf(HasSubstr("shard-00001.h5 has"), HasSubstr("model/embed[6:12")));
}

TEST_F(DamagedCheckpointTest, AFlippedBitNamesItsTensor) {
  CheckpointReader reader(LocalFileSystem(), folder_ / "c");
  for (const CheckpointSlabInfo& info : reader.slabs()) {
    std::string path = folder_ / ("c/" + info.shard);
    Flip(path, info.position + info.bytes / 2, 0x10);
    for (const std::string& error :
         {LoadError(), MessageOf<CheckpointError>([&] { reader.Verify(); })}) {
      EXPECT_THAT(error, AllOf(HasSubstr(info.shard), HasSubstr(info.slab.ToString())));
    }
    Flip(path, info.position + info.bytes / 2, 0x10);
  }
  EXPECT_EQ(LoadError(), "");
  CheckpointReader(LocalFileSystem(), folder_ / "c").Verify();
}

TEST_F(DamagedCheckpointTest, NoFlippedBitOfAShardGoesUnseen) {
  int64_t size = LocalFileSystem().Open(Shard(), OpenMode::kRead)->Size();
  for (int64_t at = 0; at < size; at += 13) {
    Flip(Shard(), at, static_cast<char>(1 << (at % 8)));
    EXPECT_THAT(LoadError(), HasSubstr("shard-00001.h5")) << "byte " << at << " of " << size;
    Flip(Shard(), at, static_cast<char>(1 << (at % 8)));
  }
  EXPECT_EQ(LoadError(), "");
}

TEST_F(DamagedCheckpointTest, VerifyNamesEveryDamagedPiece) {
  CheckpointReader reader(LocalFileSystem(), folder_ / "c");
  std::vector<std::string> names;
  for (const CheckpointSlabInfo& info : reader.slabs()) {
    if (info.slab.name != "model/embed") continue;
    Flip(folder_ / ("c/" + info.shard), info.position, 1);
    names.push_back(info.slab.ToString());
  }
  ASSERT_EQ(names.size(), 2u);
  EXPECT_THAT(MessageOf<CheckpointError>([&] { reader.Verify(); }),
              AllOf(HasSubstr(names[0]), HasSubstr(names[1])));
}

TEST_F(DamagedCheckpointTest, ShardsSwapped) {
  LocalFileSystem().Exchange(folder_ / "c/shard-00000.h5", Shard());
  EXPECT_THAT(LoadError(), HasSubstr("shard-0000"));
}

TEST_F(DamagedCheckpointTest, IndexMissingOrChanged) {
  std::string index = folder_ / "c/index.h5";
  int64_t size = LocalFileSystem().Open(index, OpenMode::kRead)->Size();
  for (int64_t at = 0; at < size; at += 41) {
    Flip(index, at, static_cast<char>(1 << (at % 8)));
    EXPECT_THAT(OpenError(), HasSubstr("index.h5 is changed")) << "byte " << at << " of " << size;
    Flip(index, at, static_cast<char>(1 << (at % 8)));
  }
  for (int64_t end : {size - 1, size / 2, int64_t{100}, int64_t{0}}) {
    LocalFileSystem().Open(index, OpenMode::kReadWrite)->Truncate(end);
    EXPECT_THAT(OpenError(), HasSubstr("index.h5 is changed"));
  }
  LocalFileSystem().Remove(index);
  EXPECT_THAT(OpenError(), HasSubstr("index.h5 is missing"));
  LocalFileSystem().RemoveAll(folder_ / "c");
  EXPECT_THAT(OpenError(), HasSubstr("does not exist"));
}

// Folders of steps
// -----------------------------------------------------------------------------------

class StepFoldersTest : public ::testing::Test {
 protected:
  void Make(const std::string& name, bool index = true) {
    LocalFileSystem().MakeDirs(folder_ / name);
    if (index) LocalFileSystem().WriteAtomically(folder_ / (name + "/index.h5"), "x");
  }
  std::vector<int64_t> Steps() { return ListCheckpointSteps(LocalFileSystem(), folder_.path()); }
  TemporaryFolder folder_;
};

TEST_F(StepFoldersTest, ListsWholeOnesInOrder) {
  for (int64_t step : {20, 100, 1000000, 3}) Make(CheckpointStepName(step));
  Make("step-000007.tmp");
  Make("step-000008", false);
  Make("step-00009x");
  Make("step-9");
  EXPECT_EQ(CheckpointStepName(100), "step-000100");
  EXPECT_THAT(Steps(), ElementsAre(3, 20, 100, 1000000));
  EXPECT_TRUE(ListCheckpointSteps(LocalFileSystem(), folder_ / "none").empty());
}

TEST_F(StepFoldersTest, PruneKeepsLastEveryAndProtected) {
  for (int64_t step = 10; step <= 100; step += 10) Make(CheckpointStepName(step));
  Make("step-000110.tmp");
  Make("other.tmp");
  PruneCheckpoints(LocalFileSystem(), folder_.path(), 2, 40, 30);
  EXPECT_THAT(Steps(), ElementsAre(30, 40, 80, 90, 100));
  EXPECT_FALSE(LocalFileSystem().Exists(folder_ / "step-000110.tmp"));
  EXPECT_TRUE(LocalFileSystem().Exists(folder_ / "other.tmp"));
}

TEST_F(StepFoldersTest, APruneThatIsCutShortLeavesNoHalfCheckpoint) {
  for (int64_t step : {1, 2, 3}) Make(CheckpointStepName(step));
  FaultyFileSystem faulty(LocalFileSystem(),
                          [](const std::string& op, const std::string&, int64_t) {
                            return op == "remove" ? "gone away" : "";
                          });
  EXPECT_THROW(PruneCheckpoints(faulty, folder_.path(), 1, 0), IoError);
  EXPECT_THAT(Steps(), ElementsAre(3));
  PruneCheckpoints(LocalFileSystem(), folder_.path(), 1, 0);
  EXPECT_THAT(LocalFileSystem().List(folder_.path()), ElementsAre("step-000003"));
}

}  // namespace
}  // namespace hone::runtime
