// Real workers, as processes of their own, against a coordinator and weights of this process. A
// test program that includes this is its own `hone worker` and `hone verify-helper`: it has no main
// of its own.
#pragma once

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <set>
#include <thread>

#include "data/tokenizer.h"
#include "rl/reward/verifier_pool.h"
#include "rl/rollout/weight_publisher.h"
#include "rl/rollout/worker.h"
#include "rl/rollout/worker_config.h"
#include "runtime/error.h"
#include "tests/device.h"
#include "tests/rl/rollout_testing.h"

namespace hone::rl {

using std::chrono::milliseconds;

inline constexpr char kSecret[] = "s3cret";
inline constexpr int64_t kPrompts = 24, kGroup = 6;

// This program started again as `hone worker` is.
class WorkerProcess {
 public:
  WorkerProcess(const std::string& coordinator, const std::string& log,
                const std::string& secret = kSecret) {
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      int file = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
      dup2(file, 1);
      dup2(file, 2);
      execl("/proc/self/exe", "worker", "worker", coordinator.c_str(), secret.c_str(), nullptr);
      _exit(127);
    }
  }
  ~WorkerProcess() {
    if (pid_ > 0) Kill();
  }
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;
  void Kill() {
    Signal(SIGKILL);
    Wait();
  }
  void Signal(int signal) const { kill(pid_, signal); }
  // Its exit code; a test fails that waits for too long.
  int Wait() {
    for (int i = 0; i < 2000; ++i) {
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      }
      std::this_thread::sleep_for(milliseconds(10));
    }
    ADD_FAILURE() << "worker " << pid_ << " does not end";
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
    return 124;
  }

 private:
  pid_t pid_;
};

inline std::atomic<bool> stop_requested{false};

inline int WorkerMain(char** argv) {
  std::signal(SIGTERM, [](int) { stop_requested = true; });
  WorkerOptions options;
  options.coordinator = argv[2];
  options.secret = argv[3];
  options.patience_seconds = 10;
  options.device = TestDevice();
  return RunWorker(options, stop_requested);
}

class WorkerTest : public testing::Test {
 protected:
  WorkerTest() : model_(MakeModel(ctx_, MoeModel())) { engine_.max_tokens = kContext; }

  void StartPool(int64_t prompts_per_lease = 2, const std::string& digest = "") {
    WorkerConfig config;
    config.model = MoeModel();
    config.tokenizer = "byte";
    config.engine = engine_;
    Coordinator::Options options;
    options.secret = kSecret;
    options.worker_config = WriteWorkerConfig(config);
    options.model_digest =
        digest.empty() ? ModelDigest(config.model, data::LoadTokenizer("byte", {})->Digest())
                       : digest;
    options.heartbeat = milliseconds(100);
    options.prompts_per_lease = prompts_per_lease;
    options.vocab_size = kVocabulary;
    options.device = ctx_.device();
    options.colocated = engine_.lazy_cache;
    publishing_.secret = kSecret;
    publisher_ = std::make_unique<WeightPublisher>(publishing_);
    coordinator_ = std::make_unique<Coordinator>(runtime::LocalFileSystem(), options);
    version_ = publisher_->Publish(*alone_, 1, model_->State());
    coordinator_->Publish(version_);
  }
  void StartWorkers(int count) {
    for (int i = 0; i < count; ++i) {
      workers_.push_back(std::make_unique<WorkerProcess>(coordinator_->address(), Log()));
    }
  }
  void StopPool() {
    coordinator_->Shutdown();
    for (auto& w : workers_) EXPECT_EQ(w->Wait(), 0) << LogText();
    workers_.clear();
    coordinator_.reset();
    publisher_.reset();
  }
  RolloutPlan Plan() const {
    RolloutPlan plan = TinyPlan(kPrompts, kGroup, 80);
    plan.weight_digest = version_.digest;
    plan.stop_ids = {258};
    return plan;
  }
  std::vector<Sample> Finish(const RolloutPlan& plan,
                             const std::function<void(const Coordinator::Progress&)>& look = {}) {
    return coordinator_->Finish(plan.stage, plan.rollout, std::chrono::seconds(30),
                                [&](const Coordinator::Progress& p) {
                                  if (look) look(p);
                                  return true;
                                });
  }
  std::vector<Sample> DrawWith(int workers) {
    StartPool();
    coordinator_->Begin(Plan());
    StartWorkers(workers);
    std::vector<Sample> samples = Finish(Plan());
    StopPool();
    return samples;
  }
  // What one undisturbed worker draws.
  const std::vector<Sample>& Expected() {
    static const std::vector<Sample> expected = DrawWith(1);
    return expected;
  }
  void ExpectTheSame(const std::vector<Sample>& samples, const std::string& where) {
    const std::vector<Sample>& expected = Expected();
    ASSERT_EQ(samples.size(), expected.size()) << where;
    for (size_t i = 0; i < samples.size(); ++i) {
      EXPECT_TRUE(SameSample(samples[i], expected[i])) << where << ", sample " << i;
    }
  }
  std::string Log() const { return folder_ / "log"; }
  std::string LogText() const { return runtime::LocalFileSystem().ReadAll(Log()); }

  Context ctx_{TestDevice()};
  WeightPublisher::Options publishing_;
  runtime::TemporaryFolder folder_;
  std::unique_ptr<model::TransformerStage> model_;
  parallel::GroupPtr alone_ = parallel::MakeSingleGroup();
  EngineConfig engine_;
  std::unique_ptr<WeightPublisher> publisher_;
  std::unique_ptr<Coordinator> coordinator_;
  WeightVersion version_;
  std::vector<std::unique_ptr<WorkerProcess>> workers_;
};

}  // namespace hone::rl

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "verify-helper") return hone::rl::VerifyHelperMain();
  if (argc > 3 && std::string(argv[1]) == "worker") return hone::rl::WorkerMain(argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
