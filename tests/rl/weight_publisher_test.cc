// Weights from learner ranks to a worker: every way gives the same bytes, and nothing else passes.
#include "rl/rollout/weight_publisher.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>

#include "parallel/mesh.h"
#include "rl/rollout/weight_snapshot.h"
#include "rl/rollout/wire.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"
#include "tests/rl/rollout_testing.h"

namespace hone::rl {
namespace {

using testing::HasSubstr;

constexpr char kSecret[] = "s3cret";

std::string BytesOf(const SlabIndex& slabs) {
  std::string all;
  for (const SlabTensor& s : slabs) {
    all.append(static_cast<const char*>(s.tensor.raw()), static_cast<size_t>(s.tensor.bytes()));
  }
  return all;
}

void ExpectFetchFails(WeightSync& sync, const WeightVersion& version, const SlabIndex& target,
                      const std::string& why) {
  try {
    sync.Fetch(version, target);
    ADD_FAILURE() << "fetched, not refused for: " << why;
  } catch (const CommError& e) {
    EXPECT_THAT(e.what(), HasSubstr(why));
  }
}

class WeightPublisherTest : public testing::Test {
 protected:
  WeightPublisherTest() : source_(MakeModel(ctx_, MoeModel(), 3)) {
    options_.secret = kSecret;
    sync_options_.secret = kSecret;
  }
  // What a fresh model holds after fetching.
  std::string Fetched(const WeightVersion& version, bool shared_memory) {
    auto target = MakeModel(ctx_, MoeModel(), 99);
    WeightSync::Options options = sync_options_;
    options.shared_memory = shared_memory;
    WeightSync(options).Fetch(version, target->State());
    EXPECT_EQ(WeightDigest(target->State()), version.digest);
    return BytesOf(target->State());
  }
  proto::ManifestReply Manifest(const std::string& endpoint, int64_t version) {
    Security security{kSecret, "", "", ""};
    auto stub = proto::WeightServer::NewStub(Connect(endpoint, security));
    grpc::ClientContext context;
    Prepare(context, security, std::chrono::seconds(10));
    proto::ManifestRequest request;
    request.set_version(version);
    proto::ManifestReply reply;
    EXPECT_TRUE(stub->Manifest(&context, request, &reply).ok());
    return reply;
  }
  int64_t ServedBytes(const std::string& endpoint, int64_t version) {
    int64_t bytes = 0;
    proto::ManifestReply manifest = Manifest(endpoint, version);
    for (const proto::SlabInfo& slab : manifest.slabs()) bytes += slab.bytes();
    return bytes;
  }

  Context ctx_;
  std::unique_ptr<model::TransformerStage> source_;
  parallel::GroupPtr alone_ = parallel::MakeSingleGroup();
  WeightPublisher::Options options_;
  WeightSync::Options sync_options_;
};

TEST_F(WeightPublisherTest, SharedMemoryAndStreamGiveTheSameBytes) {
  std::string expected = BytesOf(source_->State());
  for (bool offered : {true, false}) {
    options_.shared_memory = offered;
    WeightPublisher publisher(options_);
    WeightVersion version = publisher.Publish(*alone_, 5, source_->State());
    EXPECT_EQ(version.version, 5);
    EXPECT_EQ(version.digest, WeightDigest(source_->State()));
    EXPECT_EQ(version.endpoints, std::vector<std::string>{publisher.address()});
    EXPECT_EQ(Manifest(publisher.address(), 5).shared_memory().empty(), !offered);
    for (bool wanted : {true, false}) EXPECT_TRUE(Fetched(version, wanted) == expected);
  }
}

// Slabs of more than one chunk of the stream, of odd sizes, and empty ones.
TEST_F(WeightPublisherTest, StreamsWhatDoesNotFitAChunk) {
  SlabIndex slabs, targets;
  for (int64_t size : {3'000'001, 0, 7, 1'100'000}) {
    Slab slab = Slab::Whole(fmt::format("t{}", size), {size});
    Tensor from = ctx_.Empty({size}, DType::kF32);
    for (int64_t i = 0; i < size; ++i) from.data<float>()[i] = static_cast<float>(i) * 0.5f;
    slabs.push_back({slab, from});
    targets.push_back({slab, ctx_.Zeros({size}, DType::kF32)});
  }
  WeightPublisher publisher(options_);
  WeightVersion version = publisher.Publish(*alone_, 1, slabs);
  sync_options_.shared_memory = false;
  WeightSync(sync_options_).Fetch(version, targets);
  EXPECT_TRUE(BytesOf(slabs) == BytesOf(targets));
}

// Serves what it is told, as protobuf writes it.
class OddServer final : public proto::WeightServer::Service {
 public:
  OddServer() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address = "127.0.0.1:" + std::to_string(port);
  }
  grpc::Status Manifest(grpc::ServerContext*, const proto::ManifestRequest*,
                        proto::ManifestReply* reply) override {
    *reply = manifest;
    return grpc::Status::OK;
  }
  grpc::Status Stream(grpc::ServerContext*, const proto::ManifestRequest*,
                      grpc::ServerWriter<proto::WeightChunk>* writer) override {
    for (const std::string& piece : pieces) {
      proto::WeightChunk chunk;
      chunk.set_data(piece);
      writer->Write(chunk);
    }
    return grpc::Status::OK;
  }

  std::string address;
  proto::ManifestReply manifest;
  std::vector<std::string> pieces;

 private:
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(WeightPublisherTest, ReadsChunksOfAnySizeAndRefusesWhatIsNone) {
  WeightPublisher publisher(options_);
  WeightVersion version = publisher.Publish(*alone_, 1, source_->State());
  OddServer server;
  server.manifest = Manifest(publisher.address(), 1);
  server.manifest.clear_shared_memory();
  version.endpoints = {server.address};
  const WeightSnapshot snapshot(source_->State());
  const std::string bytes(snapshot.bytes(), static_cast<size_t>(snapshot.size()));
  ASSERT_GT(bytes.size(), 20000u);
  server.pieces = {bytes.substr(0, 1), bytes.substr(1, 126), bytes.substr(127, 128),
                   bytes.substr(255, 16384), bytes.substr(16639)};
  EXPECT_EQ(Fetched(version, false), BytesOf(source_->State()));

  auto target = MakeModel(ctx_, MoeModel());
  WeightSync sync(sync_options_);
  std::swap(server.pieces[1], server.pieces[2]);
  ExpectFetchFails(sync, version, target->State(), "the bytes were changed on the way");
  server.pieces.pop_back();
  ExpectFetchFails(sync, version, target->State(), "it ended early");
  server.pieces.emplace_back();  // a message without data
  ExpectFetchFails(sync, version, target->State(), "is no chunk of weights");
}

TEST_F(WeightPublisherTest, APublishedVersionDoesNotChangeAndOldOnesAreGone) {
  WeightPublisher publisher(options_);
  std::string first = BytesOf(source_->State());
  WeightVersion one = publisher.Publish(*alone_, 1, source_->State());
  source_->Initialize(4);
  std::string second = BytesOf(source_->State());
  WeightVersion two = publisher.Publish(*alone_, 2, source_->State());
  EXPECT_NE(one.digest, two.digest);
  for (bool shared : {true, false}) {
    EXPECT_TRUE(Fetched(one, shared) == first);
    EXPECT_TRUE(Fetched(two, shared) == second);
  }
  publisher.Publish(*alone_, 3, source_->State());
  auto target = MakeModel(ctx_, MoeModel());
  WeightSync sync(sync_options_);
  ExpectFetchFails(sync, one, target->State(), "weights 1 are gone");
  EXPECT_TRUE(Fetched(two, true) == second);
}

TEST_F(WeightPublisherTest, PinnedVersionsStayUntilPinnedAnewOrReleased) {
  WeightPublisher publisher(options_);
  const std::string first = BytesOf(source_->State());
  WeightVersion reference = publisher.Publish(*alone_, 1, source_->State(), "reference");
  source_->Initialize(4);
  const std::string second = BytesOf(source_->State());
  WeightVersion policy;
  for (int64_t v : {2, 3, 4}) policy = publisher.Publish(*alone_, v, source_->State());
  for (bool shared : {true, false}) {
    EXPECT_TRUE(Fetched(reference, shared) == first);
    EXPECT_TRUE(Fetched(policy, shared) == second);
  }
  EXPECT_TRUE(BytesOf(publisher.Pinned("reference")) == first);
  auto target = MakeModel(ctx_, MoeModel());
  WeightSync sync(sync_options_);
  // Pinned anew: the policy's two are untouched.
  WeightVersion later = publisher.Publish(*alone_, 5, source_->State(), "reference");
  ExpectFetchFails(sync, reference, target->State(), "weights 1 are gone");
  EXPECT_TRUE(Fetched(later, true) == second);
  EXPECT_TRUE(Fetched(policy, true) == second);
  publisher.Release("reference");
  ExpectFetchFails(sync, later, target->State(), "weights 5 are gone");
  EXPECT_TRUE(publisher.Pinned("reference").empty());
}

// A model with slabs on one rank only that the policy has not, as a reward model's value head:
// every rank takes part in saying who serves what.
TEST_F(WeightPublisherTest, PinnedWeightsMayHaveOtherSlabsOnOneRankOnly) {
  const SlabIndex policy = source_->State();
  parallel::RunThreadRanks(2, [&](const parallel::GroupPtr& world) {
    WeightPublisher publisher(options_);
    publisher.Publish(*world, 1, policy);
    Context ctx;
    SlabIndex mine = policy;
    if (world->rank() == 1) {
      mine.push_back({Slab::Whole("value_head.weight", {1, 8}), ctx.Zeros({1, 8}, DType::kF32)});
    }
    WeightVersion pinned = publisher.Publish(*world, 2, mine, "reward/helpful");
    WeightVersion again = publisher.Publish(*world, 3, policy);
    EXPECT_EQ(pinned.endpoints.size(), 2u);
    EXPECT_NE(pinned.digest, again.digest);
    world->Barrier();
  });
}

// The digest, the bytes and the weights that arrive do not depend on how the learner is laid out.
TEST_F(WeightPublisherTest, TheLayoutLeavesTheDigest) {
  std::string expected = BytesOf(source_->State());
  std::string digest = WeightDigest(source_->State());
  struct Layout {
    int pp, dp, ep;
  };
  for (const Layout& l : {Layout{1, 2, 1}, Layout{1, 2, 2}, Layout{2, 1, 1}, Layout{2, 2, 2}}) {
    std::string name = fmt::format("pp{} dp{} ep{}", l.pp, l.dp, l.ep);
    int ranks = l.pp * l.dp;
    parallel::RunThreadRanks(ranks, [&](parallel::GroupPtr world) {
      Context ctx;
      parallel::Mesh mesh({l.pp, l.dp, l.ep}, world);
      auto options = model::SplitLayers(MoeModel(), l.pp, {});
      model::TransformerStage stage(ctx, MoeModel(), options[static_cast<size_t>(mesh.pp_index())],
                                    mesh.ep());
      stage.Initialize(3);
      WeightPublisher publisher(options_);
      for (int64_t v = 1; v <= 2; ++v) {  // the second time by what the first found out
        WeightVersion version = publisher.Publish(*world, v, stage.State());
        EXPECT_EQ(version.digest, digest) << name;
        EXPECT_EQ(version.endpoints.size(), static_cast<size_t>(ranks));
        if (world->rank() == 0) {
          EXPECT_TRUE(Fetched(version, true) == expected) << name;
          EXPECT_TRUE(Fetched(version, false) == expected) << name;
          int64_t total = 0, most = 0;
          for (const std::string& endpoint : version.endpoints) {
            int64_t served = ServedBytes(endpoint, v);
            total += served;
            most = std::max(most, served);
          }
          EXPECT_EQ(total, static_cast<int64_t>(expected.size())) << name << ": each once";
          // Replicas share the serving; a stage's weights only its own ranks have.
          if (l.pp == 1) {
            EXPECT_LT(most, total * 6 / 10) << name;
          }
        }
        world->Barrier();
      }
    });
  }
}

TEST_F(WeightPublisherTest, ARankWithoutWeightsTakesPart) {
  parallel::RunThreadRanks(2, [&](parallel::GroupPtr world) {
    WeightPublisher publisher(options_);
    for (int64_t v = 1; v <= 3; ++v) {
      WeightVersion version =
          publisher.Publish(*world, v, world->rank() == 0 ? source_->State() : SlabIndex{});
      EXPECT_EQ(version.digest, WeightDigest(source_->State()));
      world->Barrier();
    }
  });
}

TEST_F(WeightPublisherTest, ChangedBytesAreRefused) {
  WeightPublisher publisher(options_);
  WeightVersion version = publisher.Publish(*alone_, 1, source_->State());
  auto target = MakeModel(ctx_, MoeModel());
  WeightSync sync(sync_options_);
  sync.Fetch(version, target->State());
  // One bit of what is served flips, as memory may.
  int file = open(Manifest(publisher.address(), 1).shared_memory().c_str(), O_RDWR);
  ASSERT_GE(file, 0);
  off_t at = kNonceBytes + 12345;
  unsigned char byte;
  ASSERT_EQ(pread(file, &byte, 1, at), 1);
  byte ^= 0x10;
  ASSERT_EQ(pwrite(file, &byte, 1, at), 1);
  close(file);
  for (bool shared : {true, false}) {
    sync_options_.shared_memory = shared;
    WeightSync again(sync_options_);
    ExpectFetchFails(again, version, target->State(), "the bytes were changed on the way");
  }
}

TEST_F(WeightPublisherTest, RefusesStrangersAndNamesWhatFailed) {
  auto publisher = std::make_unique<WeightPublisher>(options_);
  WeightVersion version = publisher->Publish(*alone_, 1, source_->State());
  auto target = MakeModel(ctx_, MoeModel());
  for (const char* secret : {"", "wrong!"}) {
    sync_options_.secret = secret;
    WeightSync stranger(sync_options_);
    ExpectFetchFails(stranger, version, target->State(), "wrong secret");
  }
  sync_options_.secret = kSecret;
  WeightSync sync(sync_options_);
  SlabIndex more = target->State();
  more.push_back({Slab::Whole("no.such.tensor", {3}), ctx_.Zeros({3}, DType::kF32)});
  ExpectFetchFails(sync, version, more, "another model or layout");
  publisher.reset();
  ExpectFetchFails(sync, version, target->State(), version.endpoints[0]);
  options_.listen = "0.0.0.0:0";
  EXPECT_THROW(WeightPublisher{options_}, ConfigError);
}

TEST_F(WeightPublisherTest, APathThatMeansAnotherFileIsNotMapped) {
  WeightSnapshot one(source_->State()), two(source_->State());
  MappedSnapshot right(one.path(), one.nonce(), one.size());
  ASSERT_NE(right.bytes(), nullptr);
  EXPECT_EQ(std::memcmp(right.bytes(), one.bytes(), static_cast<size_t>(one.size())), 0);
  EXPECT_EQ(MappedSnapshot(two.path(), one.nonce(), one.size()).bytes(), nullptr);
  EXPECT_EQ(MappedSnapshot(one.path(), one.nonce(), one.size() - 4).bytes(), nullptr);
  EXPECT_EQ(MappedSnapshot("/dev/zero", one.nonce(), one.size()).bytes(), nullptr);
  EXPECT_EQ(MappedSnapshot("/nonexistent", one.nonce(), one.size()).bytes(), nullptr);
}

TEST(WeightDigestTest, SeesNamesRowsAndBytesNotCutsNorOrder) {
  Context ctx;
  Tensor whole = ctx.Empty({6, 4}, DType::kF32);
  for (int64_t i = 0; i < 24; ++i) whole.data<float>()[i] = static_cast<float>(i);
  auto rows = [&](int64_t begin, int64_t end, const std::string& name = "w") {
    Slab slab{name, {6, 4}, {begin, 0}, {end - begin, 4}};
    return SlabTensor{slab, whole.Slice(begin, end)};
  };
  std::string digest = WeightDigest({rows(0, 6)});
  EXPECT_EQ(WeightDigest({rows(2, 6), rows(0, 2)}), digest);
  EXPECT_EQ(CombineDigests({WeightDigest({rows(3, 6)}), WeightDigest({rows(0, 3)})}), digest);
  EXPECT_NE(WeightDigest({rows(0, 6, "v")}), digest);
  EXPECT_NE(WeightDigest({rows(0, 5)}), digest);
  // The same rows in other places.
  SlabTensor moved{{"w", {6, 4}, {0, 0}, {2, 4}}, whole.Slice(2, 4)};
  EXPECT_NE(WeightDigest({moved}), WeightDigest({rows(2, 4)}));
  std::swap(whole.data<float>()[3], whole.data<float>()[4]);
  EXPECT_NE(WeightDigest({rows(0, 6)}), digest);
  EXPECT_THROW(CombineDigests({"short"}), CommError);
}

}  // namespace
}  // namespace hone::rl
