// A process that saves without pause is killed at random moments: what it had saved is there,
// whole, and it goes on from there.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/philox.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

constexpr int64_t kElements = 50000;

SlabIndex State(Context& ctx, int64_t step) {
  SlabIndex index;
  for (const char* name : {"model/a", "model/b"}) {
    Tensor t = ctx.Empty({kElements}, DType::kF64);
    for (int64_t i = 0; i < kElements; ++i) t.data<double>()[i] = static_cast<double>(step * i);
    index.push_back({Slab::Whole(name, {kElements}), t});
  }
  return index;
}

// Goes on from the newest checkpoint; after each one that is committed writes its step to `pipe`.
// Prunes as it goes, and now and then saves a step that is there already.
[[noreturn]] void SaveForever(const std::string& dir, int pipe) {
  Context ctx;
  FileSystem& fs = LocalFileSystem();
  CheckpointWriter writer(fs, std::make_shared<SingleRank>(), {});
  std::vector<int64_t> steps = ListCheckpointSteps(fs, dir);
  int64_t step = steps.empty() ? 1 : steps.back();
  for (;; ++step) {
    writer.Save(dir + "/" + CheckpointStepName(step), {State(ctx, step), std::to_string(step)},
                [=] {
                  if (::write(pipe, &step, sizeof step) != sizeof step) _exit(1);
                  PruneCheckpoints(LocalFileSystem(), dir, 2, 50);
                });
  }
}

TEST(CheckpointKillTest, NothingThatWasSavedIsLost) {
  TemporaryFolder folder;
  RandomStream random({HashName("kill")});
  int64_t last_reported = 0;
  for (uint64_t kill = 0; kill < 50; ++kill) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    pid_t child = ::fork();
    if (child == 0) SaveForever(folder.path(), ends[1]);
    ::close(ends[1]);
    // Some saves later, and a while more: in the middle of anything.
    uint64_t saves = random.Below(4, 2 * kill);
    for (int64_t step; saves > 0 && ::read(ends[0], &step, sizeof step) == sizeof step; --saves) {
      last_reported = step;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random.Below(25000, 2 * kill + 1)));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    for (int64_t step; ::read(ends[0], &step, sizeof step) == sizeof step;) last_reported = step;
    ::close(ends[0]);

    std::vector<int64_t> steps = ListCheckpointSteps(LocalFileSystem(), folder.path());
    ASSERT_GE(steps.empty() ? 0 : steps.back(), last_reported);
    Context ctx;
    for (int64_t step : steps) {
      CheckpointReader reader(LocalFileSystem(), folder / CheckpointStepName(step));
      SlabIndex loaded = State(ctx, 0), want = State(ctx, step);
      reader.Load(loaded);
      ASSERT_EQ(reader.metadata(), std::to_string(step));
      ASSERT_EQ(ToVector<double>(loaded[1].tensor), ToVector<double>(want[1].tensor));
    }
  }
  EXPECT_GT(last_reported, 20);
  PruneCheckpoints(LocalFileSystem(), folder.path(), 1, 0);
  EXPECT_EQ(LocalFileSystem().List(folder.path()).size(), 1u);
}

}  // namespace
}  // namespace hone::runtime
