// emulated: ascending
// Weights that are published on the learner's device: another process copies them from there, and
// nothing of them passes the host. This program is its own other process.
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <iostream>
#include <thread>

#include "rl/rollout/weight_publisher.h"
#include "rl/rollout/wire.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"
#include "runtime/host_traffic.h"
#include "runtime/shareable_memory.h"
#include "tests/device.h"
#include "tests/rl/rollout_testing.h"

namespace hone::rl {
namespace {

using testing::HasSubstr;

constexpr char kSecret[] = "s3cret";
constexpr int64_t kDigestBytes = 16;  // what of a digest comes to the host
constexpr auto kDeadline = std::chrono::seconds(60);

WeightSync::Options SyncOptions() {
  WeightSync::Options options;
  options.secret = kSecret;
  return options;
}

// ---- The other process --------------------------------------------------------------------------

// Fetches a version as a worker does; prints its digest and what passed the host.
void FetchMain(const WeightVersion& version) {
  Context ctx(TestDevice());
  auto target = MakeModel(ctx, MoeModel(), 99);
  const int64_t before = runtime::HostTraffic();
  WeightSync sync(SyncOptions());
  sync.Fetch(version, target->State());
  const int64_t traffic = runtime::HostTraffic() - before;
  std::cout << WeightDigest(target->State()) << " " << traffic << " " << sync.host_bytes()
            << std::endl;
}

// Borrows the memory of a version, says so, and reads it when told to.
void BorrowMain(const WeightVersion& version) {
  Security security{kSecret, "", "", ""};
  auto stub = proto::WeightServer::NewStub(Connect(version.endpoints[0], security));
  proto::ManifestRequest request;
  request.set_version(version.version);
  grpc::ClientContext context;
  Prepare(context, security, kDeadline);
  auto call = stub->Lend(&context, request);
  proto::Loan loan;
  Check<CommError>(call->Read(&loan), "[test] no loan");
  auto memory = runtime::OpenShareable(TestDevice(), loan.handle());
  std::cout << "borrowed" << std::endl;
  std::string go;
  std::getline(std::cin, go);
  Context ctx(TestDevice());
  SlabIndex slabs;
  char* at = static_cast<char*>(memory.get());
  for (const SlabTensor& s : MakeModel(ctx, MoeModel())->State()) {
    slabs.push_back({s.slab, Tensor(at, s.tensor.shape(), s.tensor.dtype(), TestDevice())});
    at += s.tensor.bytes();
  }
  std::cout << WeightDigest(slabs) << std::endl;
  memory.reset();
  context.TryCancel();
  call->Finish();
}

int OtherMain(char** argv) {
  const WeightVersion version = {std::stoll(argv[2]), argv[3], {argv[4]}};
  try {
    argv[1] == std::string("fetch") ? FetchMain(version) : BorrowMain(version);
  } catch (const Error& e) {
    std::cout << e.what() << std::endl;
  }
  return 0;
}

class OtherProcess {
 public:
  OtherProcess(const std::string& what, const WeightVersion& version) {
    int in[2], out[2];
    if (pipe(in) != 0 || pipe(out) != 0) throw IoError("[test] no pipe");
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(in[0], 0);
      dup2(out[1], 1);
      for (int end : {in[0], in[1], out[0], out[1]}) close(end);
      execl("/proc/self/exe", "other", what.c_str(), std::to_string(version.version).c_str(),
            version.digest.c_str(), version.endpoints[0].c_str(), nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_ = in[1];
    from_ = out[0];
  }
  ~OtherProcess() {
    close(to_);
    close(from_);
    if (pid_ > 0) kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  OtherProcess(const OtherProcess&) = delete;
  OtherProcess& operator=(const OtherProcess&) = delete;
  std::string Line() {
    std::string line;
    for (char c; read(from_, &c, 1) == 1 && c != '\n';) line.push_back(c);
    return line;
  }
  void Tell() { EXPECT_EQ(write(to_, "\n", 1), 1); }

 private:
  pid_t pid_;
  int to_, from_;
};

// ---- The tests ----------------------------------------------------------------------------------

class DevicePublicationTest : public testing::Test {
 protected:
  DevicePublicationTest() : model_(MakeModel(ctx_, MoeModel(), 3)) {
    options_.secret = kSecret;
    options_.place = ctx_.device();
  }
  void SetUp() override {
    if (ctx_.device().is_cpu()) GTEST_SKIP() << "there is no device but the host";
  }
  int64_t ModelBytes() const {
    int64_t bytes = 0;
    for (const SlabTensor& s : model_->State()) bytes += s.tensor.bytes();
    return bytes;
  }
  // Of the device, by what its allocator says when it is asked for too much.
  double FreeMiB() {
    try {
      ctx_.Empty({int64_t{1} << 50}, DType::kU8);
    } catch (const DeviceError& error) {
      const std::string says = error.what();
      return std::stod(says.substr(says.find(": ") + 2));
    }
    return -1;
  }
  std::string Fetched(const WeightVersion& version) {
    return OtherProcess("fetch", version).Line();
  }

  Context ctx_{TestDevice()};
  std::unique_ptr<model::TransformerStage> model_;
  parallel::GroupPtr alone_ = parallel::MakeSingleGroup();
  WeightPublisher::Options options_;
};

TEST_F(DevicePublicationTest, NothingButADigestPassesTheHost) {
  WeightPublisher publisher(options_);
  const int64_t before = runtime::HostTraffic();
  const WeightVersion version = publisher.Publish(*alone_, 1, model_->State());
  EXPECT_EQ(runtime::HostTraffic() - before, kDigestBytes);
  EXPECT_EQ(publisher.host_bytes(), kDigestBytes);
  EXPECT_EQ(Fetched(version), fmt::format("{} {} {}", version.digest, kDigestBytes, kDigestBytes));
  EXPECT_EQ(publisher.host_bytes(), kDigestBytes);
  // The same weights by way of the host: the same digest, and every byte is counted.
  options_.place = Device::Cpu();
  WeightPublisher by_host(options_);
  const WeightVersion same = by_host.Publish(*alone_, 1, model_->State());
  EXPECT_EQ(same.digest, version.digest);
  EXPECT_EQ(by_host.host_bytes(), ModelBytes());
  const int64_t fetched = ModelBytes() + kDigestBytes;
  EXPECT_EQ(Fetched(same), fmt::format("{} {} {}", version.digest, fetched, fetched));
}

TEST_F(DevicePublicationTest, ChangedBytesAreRefused) {
  WeightPublisher publisher(options_);
  publisher.Publish(*alone_, 1, model_->State());
  const WeightVersion version = publisher.Publish(*alone_, 2, model_->State(), "reference");
  const Tensor some = publisher.Pinned("reference")[3].tensor;
  char byte = 0;
  char* at = static_cast<char*>(some.raw()) + some.bytes() / 2;
  runtime::CopyBytes(&byte, Device::Cpu(), at, ctx_.device(), 1, nullptr);
  byte ^= 0x10;
  runtime::CopyBytes(at, ctx_.device(), &byte, Device::Cpu(), 1, nullptr);
  EXPECT_THAT(Fetched(version), HasSubstr("the bytes were changed on the way"));
}

// A process cannot open its own memory: it is served as one on another machine.
TEST_F(DevicePublicationTest, WhatCannotBeOpenedIsStreamed) {
  WeightPublisher publisher(options_);
  const WeightVersion version = publisher.Publish(*alone_, 1, model_->State());
  auto target = MakeModel(ctx_, MoeModel(), 99);
  WeightSync sync(SyncOptions());
  sync.Fetch(version, target->State());
  EXPECT_EQ(WeightDigest(target->State()), version.digest);
  EXPECT_EQ(sync.host_bytes(), ModelBytes() + kDigestBytes);
  EXPECT_EQ(publisher.host_bytes(), ModelBytes() + kDigestBytes);
  Context host;
  auto on_host = MakeModel(host, MoeModel(), 98);
  WeightSync to_host(SyncOptions());
  to_host.Fetch(version, on_host->State());
  EXPECT_EQ(WeightDigest(on_host->State()), version.digest);
  EXPECT_EQ(to_host.host_bytes(), 0) << "a CPU's weights are on the host anyway";
}

TEST_F(DevicePublicationTest, WhereTheDriverLendsNothingItIsStreamed) {
  const std::string device = runtime::DescribeDevice(ctx_.device());
  if (device.find("emulated") == std::string::npos) GTEST_SKIP() << "a GPU lends: " << device;
  WeightPublisher publisher(options_);
  const WeightVersion version = publisher.Publish(*alone_, 1, model_->State());
  setenv("HONE_EMULATED_IPC", "none", 1);
  const std::string fetched = Fetched(version);
  unsetenv("HONE_EMULATED_IPC");
  const int64_t bytes = ModelBytes() + kDigestBytes;
  EXPECT_EQ(fetched, fmt::format("{} {} {}", version.digest, bytes, bytes));
}

TEST_F(DevicePublicationTest, ASnapshotDoesNotChangeAndMakesRoomForTheNext) {
  options_.versions = 1;
  WeightPublisher publisher(options_);
  const WeightVersion first = publisher.Publish(*alone_, 1, model_->State());
  const WeightVersion reference = publisher.Publish(*alone_, 2, model_->State(), "reference");
  EXPECT_EQ(reference.digest, first.digest);
  model_->Initialize(8);
  const WeightVersion next = publisher.Publish(*alone_, 3, model_->State());
  EXPECT_NE(next.digest, first.digest);
  EXPECT_EQ(WeightDigest(publisher.Pinned("reference")), reference.digest);
  EXPECT_THAT(Fetched(reference), testing::StartsWith(reference.digest));
  EXPECT_THAT(Fetched(next), testing::StartsWith(next.digest));
  EXPECT_THAT(Fetched(first), HasSubstr("weights 1 are gone"));
}

// What is lent stays until it is given back, though its version is gone; the emulated GPU reports
// memory that is freed while another process has it open.
TEST_F(DevicePublicationTest, WhatIsLentStays) {
  options_.versions = 1;
  WeightPublisher publisher(options_);
  const WeightVersion first = publisher.Publish(*alone_, 1, model_->State());
  OtherProcess borrower("borrow", first);
  EXPECT_EQ(borrower.Line(), "borrowed");
  model_->Initialize(8);
  for (int64_t v : {2, 3}) publisher.Publish(*alone_, v, model_->State());
  borrower.Tell();
  EXPECT_EQ(borrower.Line(), first.digest);
  // One that dies gives back what it had.
  const WeightVersion fourth = publisher.Publish(*alone_, 4, model_->State());
  auto dies = std::make_unique<OtherProcess>("borrow", fourth);
  EXPECT_EQ(dies->Line(), "borrowed");
  dies.reset();
  publisher.Publish(*alone_, 5, model_->State());
}

// To free device memory waits for all its work: no thread of a call does it.
TEST_F(DevicePublicationTest, WhatIsGivenBackIsFreedByTheNextPublication) {
  const std::string device = runtime::DescribeDevice(ctx_.device());
  if (device.find("emulated") == std::string::npos) GTEST_SKIP() << "others use it: " << device;
  options_.versions = 1;
  WeightPublisher publisher(options_);
  double free = 0;
  {
    OtherProcess borrower("borrow", publisher.Publish(*alone_, 1, model_->State()));
    EXPECT_EQ(borrower.Line(), "borrowed");
    publisher.Publish(*alone_, 2, model_->State());
    free = FreeMiB();
    borrower.Tell();
    borrower.Line();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // the call ends meanwhile
  EXPECT_EQ(FreeMiB(), free);
  for (int64_t v = 3; v < 100 && FreeMiB() <= free; ++v) {  // or a little later
    publisher.Publish(*alone_, v, model_->State());
  }
  EXPECT_GT(FreeMiB(), free);
}

}  // namespace
}  // namespace hone::rl

int main(int argc, char** argv) {
  if (argc == 5 && std::string(argv[0]) == "other") return hone::rl::OtherMain(argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
