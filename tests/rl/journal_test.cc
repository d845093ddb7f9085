// The journal over a file system that fails, and over files cut and changed byte by byte.
#include "rl/rollout/journal.h"

#include <filesystem>

#include "runtime/error.h"
#include "tests/rl/rollout_testing.h"

namespace hone::rl {
namespace {

using runtime::LocalFileSystem;
using testing::HasSubstr;

class JournalTest : public testing::Test {
 protected:
  JournalTest() : path_(folder_ / "rl/rollout-000003.bin") {
    for (int64_t i = 0; i < 8; ++i) samples_.push_back(FinishedSample(plan_, i % 4, i / 4, 2 + i));
  }
  static JournalHeader Header(const std::string& weights = "w1", const std::string& plan = "p1") {
    return {"rl", 3, 17, weights, plan};
  }
  // `groups` commits of two samples each.
  void Write(size_t groups) {
    Journal journal(LocalFileSystem(), path_, Header());
    for (size_t g = 0; g < groups; ++g) {
      journal.Append(samples_[2 * g]);
      journal.Append(samples_[2 * g + 1]);
      journal.Commit();
      sizes_.push_back(std::filesystem::file_size(path_));
    }
  }
  void ExpectRecovered(size_t count, const JournalHeader& header = Header()) {
    Journal journal(LocalFileSystem(), path_, header);
    ASSERT_EQ(journal.recovered().size(), count);
    for (size_t i = 0; i < count; ++i) {
      EXPECT_TRUE(SameSample(journal.recovered()[i], samples_[i])) << i;
    }
  }
  std::string Bytes() const { return LocalFileSystem().ReadAll(path_); }
  void Put(const std::string& bytes) { LocalFileSystem().WriteAtomically(path_, bytes); }

  runtime::TemporaryFolder folder_;
  std::string path_;
  RolloutPlan plan_ = TinyPlan(4, 2);
  std::vector<Sample> samples_;
  std::vector<uintmax_t> sizes_;  // of the file after each commit
};

TEST_F(JournalTest, RecoversWhatWasCommittedAndNoMore) {
  {
    Journal journal(LocalFileSystem(), path_, Header());
    EXPECT_TRUE(journal.recovered().empty());
    journal.Append(samples_[0]);
    journal.Append(samples_[1]);
    journal.Commit();
    journal.Append(samples_[2]);  // not committed
  }
  ExpectRecovered(2);
  EXPECT_EQ(ReadJournal(LocalFileSystem(), path_).size(), 2u);
  {
    Journal journal(LocalFileSystem(), path_, Header());
    journal.Append(samples_[2]);
    journal.Commit();
  }
  ExpectRecovered(3);
}

// Cut anywhere, the file gives the groups that are whole, and goes on from there.
TEST_F(JournalTest, ATornTailIsDropped) {
  Write(3);
  std::string whole = Bytes();
  for (size_t cut = 0; cut < whole.size(); cut += 3) {
    Put(whole.substr(0, cut));
    size_t groups = 0;
    while (groups < sizes_.size() && sizes_[groups] <= cut) ++groups;
    ExpectRecovered(2 * groups);
    if (groups > 0) {
      EXPECT_EQ(std::filesystem::file_size(path_), sizes_[groups - 1]);
    }
    Journal journal(LocalFileSystem(), path_, Header());
    for (size_t i = 2 * groups; i < 8; ++i) journal.Append(samples_[i]);
    journal.Commit();
    ExpectRecovered(8);
  }
}

// As a power cut leaves it: the file has its length, but the last commit's bytes are not there.
TEST_F(JournalTest, ATailOfZerosOrOldBytesIsDropped) {
  Write(3);
  std::string whole = Bytes();
  for (size_t from = sizes_[1]; from < whole.size(); from += 5) {
    std::string torn = whole;
    for (size_t i = from; i < torn.size() && i < from + 64; ++i) torn[i] = 0;
    if (torn == whole) continue;
    Put(torn);
    ExpectRecovered(4);
  }
}

TEST_F(JournalTest, DamageInTheMiddleIsAnErrorThatNamesThePlace) {
  Write(3);
  std::string whole = Bytes();
  for (size_t at = sizes_[0]; at < sizes_[1]; ++at) {  // lengths and checks included
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
    Put(damaged);
    try {
      Journal journal(LocalFileSystem(), path_, Header());
      FAIL() << "byte " << at << " was changed and " << journal.recovered().size() << " recovered";
    } catch (const DataError& e) {
      EXPECT_THAT(e.what(), HasSubstr(path_));
      EXPECT_THAT(e.what(), HasSubstr("damaged at offset " + std::to_string(sizes_[0])));
    }
  }
  Put("no journal at all");
  EXPECT_THROW(Journal(LocalFileSystem(), path_, Header()), DataError);
}

TEST_F(JournalTest, AnotherDigestSetsTheFileAside) {
  for (const JournalHeader& other : {Header("w2", "p1"), Header("w1", "p2")}) {
    LocalFileSystem().RemoveAll(folder_ / "rl");
    Write(2);
    std::string old = Bytes();
    ExpectRecovered(0, other);
    EXPECT_EQ(LocalFileSystem().ReadAll(path_ + ".stale"), old);
    ExpectRecovered(0, Header());  // and the new file is the other's now
  }
}

// Config changed, tried, changed back and so on: whatever was drawn is still somewhere.
TEST_F(JournalTest, NoFileWithSamplesIsOverwritten) {
  Write(1);
  const std::string first = Bytes();
  ExpectRecovered(0, Header("w1", "p2"));
  ExpectRecovered(0, Header());  // that one held nothing: not kept
  EXPECT_FALSE(LocalFileSystem().Exists(path_ + ".stale-2"));
  Write(2);
  const std::string second = Bytes();
  ExpectRecovered(0, Header("w2"));
  EXPECT_EQ(LocalFileSystem().ReadAll(path_ + ".stale"), first);
  EXPECT_EQ(LocalFileSystem().ReadAll(path_ + ".stale-2"), second);
}

TEST_F(JournalTest, WhatCannotBeDrawnAgainIsLeftWhereItIs) {
  constexpr auto kRefuse = Journal::Otherwise::kRefuse;
  auto refusal = [&](const JournalHeader& header) {
    return runtime::MessageOf([&] { Journal(LocalFileSystem(), path_, header, kRefuse); });
  };
  EXPECT_THAT(refusal(Header()), HasSubstr(path_ + " does not hold"));
  Write(2);
  const std::string whole = Bytes();
  EXPECT_THAT(refusal(Header("w1", "p2")), HasSubstr("undo the change"));
  EXPECT_THAT(refusal(Header("w2")), HasSubstr("weights w2"));
  EXPECT_EQ(Bytes(), whole);
  EXPECT_FALSE(LocalFileSystem().Exists(path_ + ".stale"));
  EXPECT_EQ(Journal(LocalFileSystem(), path_, Header(), kRefuse).recovered().size(), 4u);
}

TEST_F(JournalTest, WithoutAWeightDigestNothingIsTakenOver) {
  {
    Journal journal(LocalFileSystem(), path_, Header(""));
    journal.Append(samples_[0]);
    journal.Commit();
  }
  ExpectRecovered(0, Header(""));
}

// The disk fills at every possible place: what was committed before stays, the failed commit is
// reported, and it can be made again once there is room.
TEST_F(JournalTest, AFailedCommitLosesNothingThatWasCommitted) {
  for (int64_t fail_at = 1; fail_at < 12; ++fail_at) {
    LocalFileSystem().RemoveAll(folder_ / "rl");
    int64_t operations = 0;
    bool failing = true;
    runtime::FaultyFileSystem faulty(
        LocalFileSystem(), [&](const std::string& op, const std::string&, int64_t) -> std::string {
          bool counts = op == "write" || op == "sync";
          return failing && counts && ++operations == fail_at ? "no space left" : "";
        });
    size_t committed = 0;
    try {
      Journal journal(faulty, path_, Header());
      for (size_t i = 0; i < 4; ++i) {
        journal.Append(samples_[i]);
        journal.Commit();
        committed = i + 1;
      }
      EXPECT_GE(fail_at, 11);  // header and four commits: ten operations
    } catch (const IoError& e) {
      EXPECT_THAT(e.what(), HasSubstr("no space left"));
    }
    failing = false;
    Journal journal(faulty, path_, Header());
    // A sync that failed may or may not have reached the disk; a write that failed has not.
    EXPECT_GE(journal.recovered().size(), committed);
    EXPECT_LE(journal.recovered().size(), committed + 1);
    for (size_t i = journal.recovered().size(); i < 4; ++i) journal.Append(samples_[i]);
    journal.Commit();
    ExpectRecovered(4);
  }
}

TEST(SampleBytes, ComeBackAsTheyWere) {
  RolloutPlan plan = TinyPlan(2, 1);
  Sample s = FinishedSample(plan, 1, 0, 5);
  s.routing_TLK = {3, 1, 4, 1, 5};
  s.finish = FinishReason::kLength;
  s.tokens[7].source = TokenSource::kEnvironment;
  s.tokens[8].logp = -1e-40f;  // subnormal
  EXPECT_TRUE(SameSample(DecodeSample(EncodeSample(s)), s));
  std::string bytes = EncodeSample(s);
  EXPECT_THROW(DecodeSample(bytes.substr(0, bytes.size() - 3)), DataError);
  EXPECT_THROW(DecodeSample("\xff\xff\xff"), DataError);
}

}  // namespace
}  // namespace hone::rl
