// The strict config reader: what is refused, and how the refusal reads.
#include "runtime/config.h"

#include <gmock/gmock.h>

#include <cstdlib>

#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kText = R"(run: {name: tiny, seed: 18446}
mesh:
  pp: 2          # a comment
stages:
  - name: base
    steps: 400
    lr: 3e-4
    data: [a, "b"]
    shuffle: true
  - name: sft
    steps: 7
)";

struct Stage {
  std::string name, path = "none";
  int64_t steps = 0;
  double lr = 1.0;
  bool shuffle = false;
  std::vector<std::string> data;
  void Read(ConfigReader& r) {
    r.Required("name", &name);
    r.Required("steps", &steps);
    r.Optional("lr", &lr);
    r.Optional("shuffle", &shuffle);
    r.Optional("data", &data);
    r.Optional("path", &path);
  }
};

struct Recipe {
  std::string name;
  int seed = 0, pp = 1, dp = 1, schedule = -1;
  std::vector<Stage> stages;

  explicit Recipe(const Config& config) {
    ConfigReader r(config);
    r.Map("run").Required("name", &name);
    r.Map("run").Optional("seed", &seed);
    r.Map("mesh").Optional("pp", &pp);
    r.Map("mesh").Optional("dp", &dp);
    schedule = r.Map("pipeline").OneOf("schedule", {"gpipe", "1f1b", "zb_h1"}, 1);
    for (ConfigReader* stage : r.List("stages")) stages.emplace_back().Read(*stage);
    r.Finish();
  }
};

Recipe ReadText(const std::string& text) { return Recipe(Config::FromString(text, "r.yaml")); }

std::string ErrorOf(const std::string& text) {
  return MessageOf<ConfigError>([&] { ReadText(text); });
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

TEST(ConfigTest, ReadsEveryType) {
  Recipe recipe = ReadText(kText);
  EXPECT_EQ(recipe.name, "tiny");
  EXPECT_EQ(recipe.seed, 18446);
  EXPECT_EQ(recipe.pp, 2);
  EXPECT_EQ(recipe.dp, 1);
  EXPECT_EQ(recipe.schedule, 1);
  ASSERT_EQ(recipe.stages.size(), 2u);
  EXPECT_EQ(recipe.stages[0].steps, 400);
  EXPECT_EQ(recipe.stages[0].lr, 3e-4);
  EXPECT_TRUE(recipe.stages[0].shuffle);
  EXPECT_THAT(recipe.stages[0].data, ElementsAre("a", "b"));
  EXPECT_EQ(recipe.stages[1].path, "none");
}

TEST(ConfigTest, AnUnknownKeyNamesFileLineAndTheNearest) {
  EXPECT_EQ(ErrorOf(Replaced(kText, "shuffle", "shufle")),
            "r.yaml:9: unknown key 'shufle' in stages.base; did you mean 'shuffle'?");
  EXPECT_EQ(ErrorOf(Replaced(kText, "mesh", "mseh")),
            "r.yaml:2: unknown key 'mseh' at the top; did you mean 'mesh'?");
  EXPECT_EQ(ErrorOf(Replaced(kText, "pp: 2", "telescope: 2")),
            "r.yaml:3: unknown key 'telescope' in mesh; known are: pp, dp");
}

TEST(ConfigTest, AMissingKeyNamesTheMap) {
  EXPECT_EQ(ErrorOf(Replaced(kText, "steps: 7", "lr: 7")),
            "r.yaml:10: key 'steps' is missing in stages.sft");
  EXPECT_EQ(ErrorOf(Replaced(kText, "steps: 7", "step: 7")),
            "r.yaml:10: key 'steps' is missing in stages.sft; is 'step' meant?");
}

TEST(ConfigTest, AWrongTypeNamesValueAndPlace) {
  EXPECT_EQ(ErrorOf(Replaced(kText, "400", "4e2")),
            "r.yaml:6: stages.base.steps: a whole number is wanted, not '4e2'");
  EXPECT_EQ(ErrorOf(Replaced(kText, "400", "\"400\"")),
            "r.yaml:6: stages.base.steps: a whole number is wanted, not the text \"400\"");
  EXPECT_THAT(ErrorOf(Replaced(kText, "400", "99999999999999999999")), HasSubstr("a whole number"));
  EXPECT_THAT(ErrorOf(Replaced(kText, "pp: 2", "pp: 5000000000")), HasSubstr("r.yaml:3: mesh.pp"));
  EXPECT_THAT(ErrorOf(Replaced(kText, "400", "40O")), HasSubstr("'40O'"));
  EXPECT_THAT(ErrorOf(Replaced(kText, "400", "")), HasSubstr("not nothing"));
  EXPECT_THAT(ErrorOf(Replaced(kText, "3e-4", "fast")), HasSubstr("a number is wanted"));
  EXPECT_THAT(ErrorOf(Replaced(kText, "3e-4", ".nan")), HasSubstr("a number is wanted"));
  EXPECT_THAT(ErrorOf(Replaced(kText, "true", "yes")), HasSubstr("true or false"));
  EXPECT_THAT(ErrorOf(Replaced(kText, "[a, \"b\"]", "a")), HasSubstr("a list is wanted"));
  EXPECT_THAT(ErrorOf(Replaced(kText, "[a, \"b\"]", "[a, [b]]")), HasSubstr("a single value"));
  EXPECT_THAT(ErrorOf(Replaced(kText, "{name: tiny, seed: 18446}", "tiny")),
              HasSubstr("r.yaml:1: run: a map is wanted, not 'tiny'"));
  EXPECT_THAT(ErrorOf(std::string(kText) + "  - tail\n"),
              HasSubstr("r.yaml:12: stages.2: a map is wanted, not 'tail'"));
  EXPECT_THAT(ErrorOf("- a\n"), HasSubstr("r.yaml:1: a config is a map"));
}

TEST(ConfigTest, BadYamlNamesTheLine) {
  EXPECT_THAT(ErrorOf("a: 1\nb: [1, 2\n"), AllOf(HasSubstr("r.yaml:"), HasSubstr("not YAML")));
  EXPECT_EQ(ErrorOf("run: {}\nmesh: {}\nrun: {}\n"), "r.yaml:3: key 'run' is there twice");
  EXPECT_THAT(ErrorOf("a: 1\n---\nb: 1\n"), HasSubstr("2 YAML documents"));
  EXPECT_THAT(MessageOf<ConfigError>([] { Config::FromFile("/no/such/file.yaml"); }),
              HasSubstr("/no/such/file.yaml"));
}

TEST(ConfigTest, OneOfListsItsWords) {
  EXPECT_EQ(ReadText(std::string(kText) + "pipeline: {schedule: zb_h1}\n").schedule, 2);
  EXPECT_EQ(ErrorOf(std::string(kText) + "pipeline: {schedule: zb_h}\n"),
            "r.yaml:12: pipeline.schedule: 'zb_h' is none of gpipe, 1f1b, zb_h1; did you mean "
            "'zb_h1'?");
}

TEST(ConfigTest, OverridesEnterListsByNameAndByNumber) {
  Config config = Config::FromString(kText, "r.yaml");
  Config before = config;
  config.Override("stages.base.steps=20");
  config.Override("stages.1.steps=21");
  config.Override("mesh.dp=3");
  config.Override("pipeline.schedule=gpipe");
  config.Override("stages.base.data=[x, y, z]");
  Recipe recipe(config);
  EXPECT_EQ(recipe.stages[0].steps, 20);
  EXPECT_EQ(recipe.stages[1].steps, 21);
  EXPECT_EQ(recipe.dp, 3);
  EXPECT_EQ(recipe.schedule, 0);
  EXPECT_THAT(recipe.stages[0].data, ElementsAre("x", "y", "z"));
  EXPECT_EQ(Recipe(before).stages[0].steps, 400) << "a copy keeps its own values";
}

TEST(ConfigTest, OverridesThatLeadNowhereAreNamed) {
  auto error = [](const std::string& assignment) {
    return MessageOf<ConfigError>([&] {
      Config config = Config::FromString(kText, "r.yaml");
      config.Override(assignment);
      Recipe recipe(config);
    });
  };
  EXPECT_THAT(error("stages.bass.steps=1"), AllOf(HasSubstr("no 'bass'"), HasSubstr("'base'")));
  EXPECT_THAT(error("stages.2.steps=1"), HasSubstr("no '2' in the list at r.yaml:5"));
  EXPECT_THAT(error("mesh.pp.x=1"), HasSubstr("stands under '2' (r.yaml:3)"));
  EXPECT_THAT(error("mesh"), HasSubstr("path.to.key=value"));
  EXPECT_THAT(error("mesh..pp=1"), HasSubstr("empty part"));
  EXPECT_THAT(error("mesh.pp=[1"), AllOf(HasSubstr("--set mesh.pp=[1"), HasSubstr("not YAML")));
  EXPECT_EQ(error("stages.base.stepz=1"),
            "--set stages.base.stepz=1: unknown key 'stepz' in stages.base; did you mean 'steps'?");
  EXPECT_EQ(error("mesh.pp=two"),
            "--set mesh.pp=two: mesh.pp: a whole number is wanted, not 'two'");
}

TEST(ConfigTest, ExpandsEnvironmentInText) {
  ::setenv("HONE_CONFIG_TEST", "/here", 1);
  ::unsetenv("HONE_CONFIG_TEST_UNSET");
  std::string with = Replaced(kText, "steps: 7", "steps: 7\n    path: a${HONE_CONFIG_TEST}/$x");
  EXPECT_EQ(ReadText(with).stages[1].path, "a/here/$x");
  EXPECT_THAT(ErrorOf(Replaced(with, "_TEST}", "_TEST_UNSET}")),
              AllOf(HasSubstr("r.yaml:12: stages.sft.path"),
                    HasSubstr("HONE_CONFIG_TEST_UNSET is not set")));
}

TEST(ConfigTest, ToYamlReadsBackTheSame) {
  Config config = Config::FromString(Replaced(kText, "name: tiny", "name: \"007\""), "r.yaml");
  config.Override("mesh.pp=4");
  std::string yaml = config.ToYaml();
  Recipe again(Config::FromString(yaml, "again.yaml"));
  EXPECT_EQ(again.name, "007");
  EXPECT_EQ(again.pp, 4);
  EXPECT_THAT(again.stages[0].data, ElementsAre("a", "b"));
  EXPECT_EQ(Config::FromString(yaml).ToYaml(), yaml);
  EXPECT_THAT(yaml, Not(HasSubstr("comment")));
}

TEST(ConfigTest, KeysThatAreData) {
  Config config = Config::FromString("reward: {format: 1, accuracy: 2}\n");
  ConfigReader reader(config);
  ConfigReader& reward = reader.Map("reward");
  EXPECT_THAT(reward.Keys(), ElementsAre("format", "accuracy"));
  reader.Finish();
  EXPECT_TRUE(reader.IsMap("reward"));
  EXPECT_FALSE(reader.IsList("reward"));
  EXPECT_FALSE(reader.Has("rewards"));
}

TEST(ConfigTest, NearestWord) {
  EXPECT_EQ(NearestWord("lerning_rate", {"lr", "learning_rate", "leaving"}), "learning_rate");
  EXPECT_EQ(NearestWord("pipeilne", {"mesh", "pipeline"}), "pipeline");
  EXPECT_EQ(NearestWord("telescope", {"pp", "dp"}), "");
}

}  // namespace
}  // namespace hone::runtime
