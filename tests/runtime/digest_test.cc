#include "runtime/digest.h"

#include <gtest/gtest.h>

#include "runtime/rendezvous.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

// XXH3-128 of no bytes, as xxHash's own specification gives it.
TEST(DigestTest, KnownAnswer) { EXPECT_EQ(DigestOf(""), "99aa06d3014798d86001c324468d497f"); }

TEST(DigestTest, PartsGiveTheDigestOfTheWhole) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * 7);
  for (size_t step : {1u, 17u, 999u, 5000u}) {
    DigestStream stream;
    for (size_t at = 0; at < text.size(); at += step) {
      std::string part = text.substr(at, step);
      stream.Add(part.data(), static_cast<int64_t>(part.size()));
    }
    EXPECT_EQ(stream.Finish(), DigestOf(text));
  }
  std::string other = text;
  other[2500] ^= 1;
  EXPECT_NE(DigestOf(other), DigestOf(text));
}

TEST(RendezvousTest, AgreeOrThrowGivesAllRanksTheFirstError) {
  auto errors = RunRanks(4, [](std::shared_ptr<Rendezvous> ranks) {
    AgreeOrThrow(*ranks, "");
    AgreeOrThrow(*ranks, ranks->rank() >= 2 ? fmt::format("disk {}", ranks->rank()) : "");
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "rank 2: disk 2");
  SingleRank single;
  EXPECT_EQ(MessageOf<CheckpointError>([&] { AgreeOrThrow(single, "disk full"); }), "disk full");
}

}  // namespace
}  // namespace hone::runtime
