// What survives when the file system fails in the middle of a save.
#include <gmock/gmock.h>

#include <atomic>
#include <filesystem>

#include "runtime/checkpoint/checkpoint.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kRanks = 3;
const Shape kShape = {30, 64, 64};

SlabTensor RowsOf(Context& ctx, int r, bool filled) {
  Slab slab = Slab::Whole("model/w", kShape);
  slab.offset[0] = kShape[0] / kRanks * r;
  slab.extent[0] = kShape[0] / kRanks;
  return filled ? FilledSlab(ctx, slab) : EmptySlab(ctx, slab);
}

std::vector<std::string> Save(FileSystem& fs, const std::string& dir, bool asynchronous = true,
                              std::atomic<int>* committed = nullptr) {
  return RunRanks(kRanks, [&](std::shared_ptr<Rendezvous> ranks) {
    Context ctx;
    CheckpointWriter writer(fs, ranks, {asynchronous, 0});
    writer.Save(dir, {{RowsOf(ctx, ranks->rank(), true)}, "{}"}, [&] {
      if (committed) ++*committed;
    });
    writer.Wait();
  });
}

void ExpectWhole(const std::string& dir) {
  Context ctx;
  CheckpointReader reader(LocalFileSystem(), dir);
  SlabIndex index = {EmptySlab(ctx, Slab::Whole("model/w", kShape))};
  reader.Load(index);
  ExpectFilled(index[0]);
}

class CheckpointFaultTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_THAT(Save(LocalFileSystem(), Step(1)), Each("")); }
  std::string Step(int64_t step) { return folder_ / CheckpointStepName(step); }

  // Saves step 2 with the fault: every rank gets the same error, which has `words`; step 1 is
  // untouched, step 2 is not there; the next prune leaves nothing behind; and without the fault it
  // works.
  void ExpectRefused(FaultyFileSystem::Fault fault, const std::vector<std::string>& words) {
    for (bool asynchronous : {true, false}) {
      FaultyFileSystem faulty(LocalFileSystem(), fault);
      std::atomic<int> committed = 0;
      std::vector<std::string> errors = Save(faulty, Step(2), asynchronous, &committed);
      for (const std::string& word : words) EXPECT_THAT(errors, Each(HasSubstr(word)));
      EXPECT_THAT(errors, Each(errors[0]));
      EXPECT_EQ(committed, 0);
      EXPECT_THAT(ListCheckpointSteps(LocalFileSystem(), folder_.path()), ElementsAre(1));
      ExpectWhole(Step(1));
      PruneCheckpoints(LocalFileSystem(), folder_.path(), 5, 0);
      EXPECT_THAT(LocalFileSystem().List(folder_.path()), ElementsAre("step-000001"));
    }
    EXPECT_THAT(Save(LocalFileSystem(), Step(2)), Each(""));
    ExpectWhole(Step(2));
  }

  TemporaryFolder folder_;
};

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_F(CheckpointFaultTest, FullDiskInTheMiddleOfAShard) {
  ExpectRefused(
      [](const std::string& op, const std::string&, int64_t bytes) {
        return op == "write" && bytes > 200000 ? "No space left on device" : "";
      },
      {"step-000002 was not saved", "step-000002.tmp/shard-0000", "No space left on device"});
}

TEST_F(CheckpointFaultTest, FullDiskAtEveryWrite) {
  // Not only large writes fail: headers, the index and its view do too, and each leaves half a
  // write.
  for (int64_t failing = 0;; ++failing) {
    std::atomic<int64_t> write = 0;
    FaultyFileSystem faulty(LocalFileSystem(),
                            [&](const std::string& op, const std::string&, int64_t) {
                              return op == "write" && write++ >= failing ? "disk full" : "";
                            });
    auto errors = Save(faulty, Step(2));
    if (write <= failing) {
      EXPECT_THAT(errors, Each(""));
      EXPECT_GT(failing, 8);
      break;
    }
    ASSERT_THAT(errors, Each(AllOf(HasSubstr("step-000002.tmp/"), HasSubstr("disk full"))));
    ExpectWhole(Step(1));
  }
}

TEST_F(CheckpointFaultTest, SyncFails) {
  ExpectRefused(
      [](const std::string& op, const std::string& path, int64_t) {
        return op == "sync" && Has(path, "shard-00001") ? "Input/output error" : "";
      },
      {"rank 1", "shard-00001.h5", "Input/output error"});
}

TEST_F(CheckpointFaultTest, CloseFails) {
  ExpectRefused(
      [](const std::string& op, const std::string& path, int64_t) {
        return op == "close" && Has(path, "shard-00002") ? "Disk quota exceeded" : "";
      },
      {"rank 2", "shard-00002.h5", "Disk quota exceeded"});
}

TEST_F(CheckpointFaultTest, OneRankCannotOpenItsShard) {
  ExpectRefused(
      [](const std::string& op, const std::string& path, int64_t) {
        return op == "open" && Has(path, "shard-00001") ? "Permission denied" : "";
      },
      {"rank 1", "shard-00001.h5", "Permission denied"});
}

TEST_F(CheckpointFaultTest, IndexCannotBeWritten) {
  ExpectRefused(
      [](const std::string& op, const std::string& path, int64_t) {
        return op == "write" && Has(path, "index.h5") ? "No space left on device" : "";
      },
      {"index.h5", "No space left on device"});
}

TEST_F(CheckpointFaultTest, ReadOnlyFolder) {
  ExpectRefused([](const std::string& op, const std::string&,
                   int64_t) { return op == "make folder" ? "Read-only file system" : ""; },
                {"step-000002.tmp", "Read-only file system"});
}

TEST_F(CheckpointFaultTest, RenameFails) {
  ExpectRefused([](const std::string& op, const std::string&,
                   int64_t) { return op == "rename" ? "Stale file handle" : ""; },
                {"step-000002.tmp", "Stale file handle"});
}

TEST_F(CheckpointFaultTest, NothingCanBeRemovedEither) {
  ExpectRefused(
      [](const std::string& op, const std::string&, int64_t) {
        return op == "rename" || op == "remove" ? "Input/output error" : "";
      },
      {"Input/output error"});
}

TEST_F(CheckpointFaultTest, ReplacingFailsAndTheOldOneStays) {
  FaultyFileSystem faulty(LocalFileSystem(),
                          [](const std::string& op, const std::string&, int64_t) {
                            return op == "exchange" ? "Input/output error" : "";
                          });
  EXPECT_THAT(Save(faulty, Step(1)), Each(HasSubstr("Input/output error")));
  ExpectWhole(Step(1));
}

TEST_F(CheckpointFaultTest, LeftoversOfAKilledSaveAreNoObstacle) {
  LocalFileSystem().MakeDirs(Step(2) + ".tmp");
  LocalFileSystem().WriteAtomically(Step(2) + ".tmp/shard-00009.h5", "half");
  EXPECT_THAT(Save(LocalFileSystem(), Step(2)), Each(""));
  EXPECT_THAT(LocalFileSystem().List(Step(2)),
              ElementsAre("index.h5", "shard-00000.h5", "shard-00001.h5", "shard-00002.h5"));
  ExpectWhole(Step(2));
}

TEST_F(CheckpointFaultTest, ReadErrorsNameTheFile) {
  FaultyFileSystem faulty(LocalFileSystem(),
                          [](const std::string& op, const std::string& path, int64_t) {
                            return op == "read" && Has(path, "shard-00002") ? "bad sector" : "";
                          });
  Context ctx;
  CheckpointReader reader(faulty, Step(1));
  reader.Load({RowsOf(ctx, 0, false)});
  EXPECT_THAT(MessageOf<Error>([&] { reader.Load({RowsOf(ctx, 2, false)}); }),
              AllOf(HasSubstr("shard-00002.h5"), HasSubstr("bad sector")));
}

TEST_F(CheckpointFaultTest, AnErrorInTheBackgroundIsReportedByTheNextSave) {
  bool full = true;
  FaultyFileSystem faulty(LocalFileSystem(),
                          [&](const std::string& op, const std::string&, int64_t) {
                            return op == "write" && full ? "No space left on device" : "";
                          });
  Context ctx;
  SlabIndex index = {FilledSlab(ctx, Slab::Whole("model/w", kShape))};
  CheckpointWriter writer(faulty, std::make_shared<SingleRank>(), {});
  writer.Save(Step(2), {index, "{}"});
  EXPECT_THAT(MessageOf<CheckpointError>([&] {
                writer.Save(Step(3), {index, "{}"});
              }),
              HasSubstr("step-000002 was not saved"));
  full = false;
  writer.Save(Step(3), {index, "{}"});
  writer.Wait();
  EXPECT_THAT(ListCheckpointSteps(LocalFileSystem(), folder_.path()), ElementsAre(1, 3));
}

TEST_F(CheckpointFaultTest, ATrulyReadOnlyFolder) {
  if (::geteuid() == 0) GTEST_SKIP() << "root writes to read-only folders";
  std::filesystem::permissions(
      folder_.path(), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  auto errors = Save(LocalFileSystem(), Step(2));
  std::filesystem::permissions(folder_.path(), std::filesystem::perms::owner_all);
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("step-000002.tmp"), HasSubstr("Permission denied"))));
  ExpectWhole(Step(1));
}

}  // namespace
}  // namespace hone::runtime
