// A config that says only what differs from another file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/config.h"
#include "runtime/error.h"
#include "runtime/file_system.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

using ::testing::HasSubstr;

class ConfigExtendsTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) const {
    LocalFileSystem().WriteAtomically(folder_ / name, text);
  }
  Config Read(const std::string& name) const { return Config::FromFile(folder_ / name); }
  std::string ErrorOf(const std::string& name) const {
    try {
      Read(name);
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "no error";
  }
  TemporaryFolder folder_;
};

TEST_F(ConfigExtendsTest, MergesMapsAndNamedLists) {
  LocalFileSystem().MakeDirs(folder_ / "base");
  Write("base/common.yaml",
        "run: {seed: 1, dir: runs}\nplain: [1, 2, 3]\n"
        "stages:\n  - {name: a, lr: {peak: 1, warmup: 5}, steps: 3}\n  - {name: b, steps: 4}\n");
  Write("own.yaml",
        "extends: base/common.yaml\nrun: {name: own, seed: 2}\nplain: [9]\n"
        "stages:\n  - {name: a, lr: {peak: 7}}\n  - {name: c, steps: 5}\n");
  ConfigReader root(Read("own.yaml"));
  std::string name, dir;
  int64_t seed = 0;
  root.Map("run").Required("name", &name);
  root.Map("run").Required("dir", &dir);
  root.Map("run").Required("seed", &seed);
  EXPECT_EQ(name, "own");
  EXPECT_EQ(dir, "runs");
  EXPECT_EQ(seed, 2);
  std::vector<int64_t> plain;
  root.Required("plain", &plain);
  EXPECT_EQ(plain, std::vector<int64_t>{9});
  std::vector<std::pair<std::string, int64_t>> stages;
  for (ConfigReader* stage : root.List("stages")) {
    stages.emplace_back();
    stage->Required("name", &stages.back().first);
    stage->Required("steps", &stages.back().second);
    if (stages.back().first != "a") continue;
    int64_t peak = 0, warmup = 0;
    stage->Map("lr").Required("peak", &peak);
    stage->Map("lr").Required("warmup", &warmup);
    EXPECT_EQ(peak, 7);
    EXPECT_EQ(warmup, 5);
  }
  const std::vector<std::pair<std::string, int64_t>> expected = {{"a", 3}, {"b", 4}, {"c", 5}};
  EXPECT_EQ(stages, expected);
  root.Finish();  // `extends` itself is gone
}

TEST_F(ConfigExtendsTest, ErrorsSayWhichFileAndLineAValueCameFrom) {
  Write("common.yaml", "a:\n  good: 1\n  other: text\n");
  Write("own.yaml", "extends: common.yaml\na:\n  good: words\n");
  ConfigReader root(Read("own.yaml"));
  int64_t value = 0;
  try {
    root.Map("a").Required("good", &value);
    ADD_FAILURE() << "words were read as a number";
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), HasSubstr("own.yaml:3"));
  }
  try {
    root.Map("a").Required("other", &value);
    ADD_FAILURE() << "text was read as a number";
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), HasSubstr("common.yaml:3"));
  }
}

TEST_F(ConfigExtendsTest, TwoEntriesOfOneNameAreRefused) {
  Write("common.yaml", "stages:\n  - {name: a}\n");
  Write("own.yaml", "extends: common.yaml\nstages:\n  - {name: b}\n  - {name: b}\n");
  EXPECT_THAT(ErrorOf("own.yaml"), HasSubstr("own.yaml:4: 'b' is the name of another entry"));
  Write("common.yaml", "stages:\n  - {name: a}\n  - {name: a}\n");
  Write("own.yaml", "extends: common.yaml\nstages:\n  - {name: b}\n");
  EXPECT_THAT(ErrorOf("own.yaml"), HasSubstr("common.yaml:3: 'a' is the name of another entry"));
}

TEST_F(ConfigExtendsTest, MissingFilesAndCirclesAreRefused) {
  Write("alone.yaml", "extends: nowhere.yaml\n");
  EXPECT_THAT(ErrorOf("alone.yaml"), HasSubstr("alone.yaml:1: extends"));
  EXPECT_THAT(ErrorOf("alone.yaml"), HasSubstr("nowhere.yaml"));
  Write("one.yaml", "extends: two.yaml\n");
  Write("two.yaml", "extends: one.yaml\n");
  EXPECT_THAT(ErrorOf("one.yaml"), HasSubstr("extend each other"));
}

}  // namespace
}  // namespace hone::runtime
