// timeout: 300
// What a GPU machine is checked with, where there is none: the script gpu_check, its programs
// replaced by stand-ins; gpu_runs on the CPU, and with `hone` itself on the emulated GPU.
#include <gmock/gmock.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/launcher/program.h"
#include "tests/read_json.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

using nlohmann::json;
using testing::HasSubstr;

const std::string kSource = std::string(HONE_SOURCE_DIR);

class GpuCheckTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const { return folder_ / name; }

  // A program that is this shell script.
  void StandIn(const std::string& name, const std::string& script) {
    const std::string path = Path(name);
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path) << "#!/bin/sh\n" << script << "\n";
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  }
  static std::string Prints(const std::string& name, double value) {
    return "echo '" +
           json({{"name", name}, {"value", value}, {"unit", "GB/s"}, {"wanted", ""}}).dump() + "'";
  }
  // What gpu_bench does when it is asked for its parts.
  static std::string Lists(const std::string& parts) {
    return "[ $1 = --list ] && { echo " + parts + "; exit; }\n";
  }
  void AllStandIns(const std::string& bin = "programs",
                   const std::string& tests = "programs/tests") {
    StandIn(bin + "/hone", R"(echo '{"cpu": "some", "cuda": {
      "usable_gpus": 1,
      "obstacle": ""}}')");
    StandIn(tests + "/kernels_a_test", "[ $HONE_TEST_DEVICE = cuda ]");
    StandIn(tests + "/gpu_bench", Lists("memory") + Prints("memory.copy", 4000.5));
    StandIn(tests + "/gpu_runs", "[ -x $2 ] && [ -f $4 ] && " + Prints("r1_tiny.f32", 433));
    StandIn("python", "[ $1 = -c ] || { [ -f $1 ] && " + Prints("torch.train", 2.5) + "; }");
  }

  // The exit code of gpu_check; rows_ are what it wrote.
  int Check(int seconds, const std::string& python) {
    return Check({"HONE_PROGRAMS=" + Path("programs"), "HONE_BENCH_PYTHON=" + python},
                 kSource + "/tests/gpu_check/gpu_check", seconds);
  }
  int Check(const Words& environment, const std::string& script, int seconds) {
    Words command = {"env", "HONE_CHECK_SECONDS=" + std::to_string(seconds)};
    command.insert(command.end(), environment.begin(), environment.end());
    command.insert(command.end(), {script, Path("out")});
    Program program(command, Path("output"));
    const int code = program.Wait(std::chrono::seconds(60));
    const json report = ParseJson(ReadFile(Path("out/gpu_check.json")));
    EXPECT_EQ(report.at("machine").at("cpu"), "some");
    for (const json& row : report.at("results")) rows_[row.at("name")] = row;
    return code;
  }
  std::string Outcome(const std::string& name) const {
    auto row = rows_.find(name);
    return row == rows_.end() ? "no row" : row->second.value("outcome", "measured");
  }

  // The exit code of gpu_runs; rows_ are what it printed.
  int Runs(const std::string& hone, const Words& more) {
    Words command = {"env",
                     "HONE_EMULATED_STREAMS=lazy",
                     std::string(HONE_BINARY_DIR) + "/tests/gpu_runs",
                     "--hone",
                     hone,
                     "--config",
                     kSource + "/configs/r1_tiny.yaml",
                     "--folder",
                     Path("runs"),
                     "--small"};
    command.insert(command.end(), more.begin(), more.end());
    Program program(command, Path("output"));
    const int code = program.Wait(std::chrono::seconds(200));
    std::istringstream lines(program.output());
    for (std::string line; std::getline(lines, line);) {
      const json row = ParseJson(line);
      rows_[row.at("name")] = row;
    }
    return code;
  }
  double Value(const std::string& name) const {
    auto row = rows_.find(name);
    if (row != rows_.end() && row->second.at("value").is_number()) return row->second.at("value");
    ADD_FAILURE() << "no value of " << name;
    return -1;
  }

  runtime::TemporaryFolder folder_;
  std::map<std::string, json> rows_;
};

TEST_F(GpuCheckTest, WhatPassesIsWrittenDown) {
  AllStandIns();
  EXPECT_EQ(Check(60, Path("python")), 0);
  EXPECT_EQ(Outcome("kernels_a_test"), "passed");
  EXPECT_EQ(rows_["memory.copy"], json({{"kind", "benchmark"},
                                        {"name", "memory.copy"},
                                        {"outcome", "measured"},
                                        {"value", "4000.5"},
                                        {"unit", "GB/s"},
                                        {"wanted", ""}}));
  EXPECT_EQ(Outcome("r1_tiny.f32"), "measured");
  EXPECT_EQ(Outcome("torch.train"), "measured");
  EXPECT_THAT(ReadFile(Path("out/gpu_check.md")),
              HasSubstr("| benchmark | memory.copy | measured | 4000.5 | GB/s |  |"));
}

// By the places that CMakeLists.txt and packaging.cmake give them.
TEST_F(GpuCheckTest, FindsItsPartsInTheBundle) {
  AllStandIns("bundle/bin", "bundle/libexec/tests");
  std::filesystem::create_directories(Path("bundle/share/hone/gpu_check"));
  std::filesystem::copy(kSource + "/configs", Path("bundle/share/hone/configs"));
  std::filesystem::copy(kSource + "/tests/gpu_check/torch_gpu.py",
                        Path("bundle/share/hone/gpu_check"));
  std::filesystem::copy(kSource + "/tests/gpu_check/gpu_check", Path("bundle/bin"));
  EXPECT_EQ(Check({"HONE_BENCH_PYTHON=" + Path("python")}, Path("bundle/bin/gpu_check"), 60), 0);
  for (const char* name : {"memory.copy", "r1_tiny.f32", "torch.train"}) {
    EXPECT_EQ(Outcome(name), "measured") << name;
  }
  EXPECT_EQ(Outcome("kernels_a_test"), "passed");
}

TEST_F(GpuCheckTest, WhatFailsOrHangsIsNamedAndStopsNothing) {
  AllStandIns();
  StandIn("programs/tests/kernels_a_test", "exit 3");
  for (const char* name : {"kernels_b_hangs", "kernels_c_hangs"}) {
    StandIn(fmt::format("programs/tests/{}_test", name), "exec sleep 100");
  }
  StandIn("programs/tests/kernels_d_test", "");
  StandIn("programs/tests/gpu_bench",
          Lists("memory fp8 attention decode") +
              fmt::format(R"(
      memory() {{ {}; }}
      fp8() {{ exec sleep 100; }}
      attention() {{ {}; kill -ABRT $$; }}
      decode() {{ grep -q memory.copy $1 && {}; }}
      $2 $4)",
                          Prints("memory.copy", 1), Prints("forward", 2), Prints("tokens", 3)));
  EXPECT_EQ(Check(30, R"(no "such\ python)"), 1);
  EXPECT_EQ(Outcome("kernels_a_test"), "FAILED");
  for (const char* name : {"kernels_b_hangs_test", "kernels_c_hangs_test", "gpu_bench.fp8"}) {
    EXPECT_EQ(Outcome(name), "FAILED");
    EXPECT_THAT(rows_[name]["unit"], HasSubstr("no answer for ")) << name;
  }
  EXPECT_EQ(Outcome("kernels_d_test"), "passed");
  for (const char* name : {"memory.copy", "forward", "tokens", "r1_tiny.f32"}) {
    EXPECT_EQ(Outcome(name), "measured") << name;
  }
  EXPECT_EQ(Outcome("gpu_bench.attention"), "FAILED");
  EXPECT_EQ(rows_["gpu_bench.attention"]["unit"], "see gpu_bench.attention.log");
  EXPECT_EQ(Outcome("PyTorch side by side"), "not run");
}

// Each part of gpu_bench is a process of its own; what it is compared with comes from a file.
TEST_F(GpuCheckTest, PartsOfTheBenchmark) {
  auto bench = [&](const Words& more) {
    Words command = {std::string(HONE_BINARY_DIR) + "/tests/gpu_bench", "--device", "cpu"};
    command.insert(command.end(), {"--small", "--rounds", "1"});
    command.insert(command.end(), more.begin(), more.end());
    Program program(command, Path("output"));
    const int code = program.Wait(std::chrono::seconds(60));
    return std::pair(code, program.output());
  };
  EXPECT_THAT(bench({"--list"}).second, HasSubstr("memory\ngemm\nfp8\n"));
  EXPECT_EQ(bench({"--list", "--only", "decode.fast"}).second, "decode.fast\n");
  auto of_roofline = [&](Words words) {
    words.insert(words.end(), {"--only", "decode.fast"});
    auto [code, lines] = bench(words);
    EXPECT_EQ(code, 0) << lines;
    EXPECT_THAT(lines, HasSubstr("decode.tokens.fast"));
    const json row = ParseJson(lines.substr(lines.rfind('\n', lines.size() - 2) + 1));
    EXPECT_EQ(row.at("name"), "decode.of_roofline.fast");
    return row;
  };
  EXPECT_EQ(of_roofline({}).at("outcome"), "not run");
  std::ofstream(Path("rates")) << bench({"--only", "memory"}).second << R"({"name": "gemm.bf16)";
  EXPECT_GT(of_roofline({"--rates", Path("rates")}).at("value"), 0);
  auto [code, error] = bench({"--only", "fp9"});
  EXPECT_EQ(code, 1);
  EXPECT_THAT(error, HasSubstr("there is no part 'fp9'"));
}

TEST_F(GpuCheckTest, PyTorchOutOfTimeIsNoFailure) {
  AllStandIns();
  StandIn("python", "[ $1 = -c ] || { " + Prints("torch.train", 2.5) + "; exec sleep 100; }");
  EXPECT_EQ(Check(5, Path("python")), 0);
  EXPECT_EQ(Outcome("torch.train"), "measured");
  EXPECT_EQ(Outcome("torch_gpu"), "not run");
  EXPECT_EQ(rows_["torch_gpu"]["unit"], "out of time");
}

TEST_F(GpuCheckTest, LibrariesOfPyTorchsWheelsAreFound) {
  AllStandIns();
  StandIn("hone", R"(case :$LD_LIBRARY_PATH: in
      *:/a/lib:/b/lib:*) obstacle= ;;
      *) obstacle="libnccl.so.2 is missing" ;;
    esac
    echo '{"cpu": "some", "cuda": {
      "usable_gpus": 1,'
    echo "\"obstacle\": \"$obstacle\"}}")");
  StandIn("python", R"(case $2 in *nvidia*) echo /a/lib:/b/lib ;; esac)");
  EXPECT_EQ(Check(60, Path("programs/python")), 0);
  EXPECT_EQ(Outcome("kernels_a_test"), "passed");
}

TEST_F(GpuCheckTest, RunsThatEndEarlyCountAsFarAsTheyCame) {
  const std::string one_step = R"(mkdir -p $4
    echo '{"stage": "skill", "step": 1, "loss": 2.5}' > $4/metrics.jsonl
    printf '{"stage": "sk' >> $4/metrics.jsonl
    )";
  StandIn("hone", one_step + "exec sleep 100");
  EXPECT_EQ(Runs(Path("hone"), {"--only", "f32,bf16", "--seconds", "1"}), 0);
  EXPECT_THAT(rows_["r1_tiny.f32"].at("unit"),
              testing::ContainsRegex("out of time after 0\\.[123] s"))
      << "a third: bf16 gets two";
  EXPECT_THAT(rows_["r1_tiny.bf16"].at("unit"), HasSubstr("out of time"));
  EXPECT_EQ(Value("r1_tiny.f32"), 1);
  EXPECT_EQ(Value("r1_tiny.f32.loss"), 2.5);
  EXPECT_EQ(Outcome("r1_tiny.fp8.loss"), "not run");
  EXPECT_EQ(Outcome("r1_tiny.f32.skill.peak"), "not run");
  StandIn("hone", one_step + "exit 3");
  EXPECT_EQ(Runs(Path("hone"), {"--only", "f32"}), 1);
  EXPECT_EQ(Outcome("r1_tiny.f32"), "FAILED");
  EXPECT_EQ(Value("r1_tiny.f32.loss"), 2.5);
}

TEST_F(GpuCheckTest, RunsOnTheCpu) {
  ASSERT_EQ(Runs(HoneProgram(), {"--device", "cpu"}), 0) << ReadFile(Path("output"));
  for (const char* run :
       {"f32", "bf16", "fp8", "f32_seed_2", "f32_seed_3", "batch_invariant", "turns"}) {
    EXPECT_EQ(Value(fmt::format("r1_tiny.{}", run)), 8) << run;
  }
  EXPECT_GT(Value("r1_tiny.seeds.loss_apart"), 0);
  EXPECT_GT(Value("r1_tiny.bf16.loss_apart"), 0);
  EXPECT_GT(Value("r1_tiny.fp8.loss_apart"), 0);
  EXPECT_NE(Value("r1_tiny.fp8.loss"), Value("r1_tiny.bf16.loss")) << "the products were fp8's";
  EXPECT_GT(Value("r1_tiny.fp8.logprob_gap.mean"), 0) << "workers sample without it";
  EXPECT_EQ(Value("r1_tiny.batch_invariant.logprob_gap.largest"), 0);
  EXPECT_EQ(Value("r1_tiny.turns.logprob_gap.largest"), 0);
  EXPECT_EQ(Value("turns.skill.apart"), 0);
  EXPECT_EQ(Value("turns.reasoning_rl.apart"), 0);
  EXPECT_GT(Value("batch_invariant.reasoning_rl.time"), 0);
  EXPECT_EQ(Outcome("publication.host_bytes"), "not run");
  EXPECT_GT(Value("publication.turns.time"), 0);
  for (const char* stage : {"skill", "reasoning_rl"}) {  // packs are planned full
    const double peak = Value(fmt::format("r1_tiny.f32.{}.peak", stage));
    EXPECT_TRUE(peak > 0.6 && peak <= 1) << stage << " " << peak;
  }
}

// Learner and worker are processes that share the emulated device and its memory.
TEST_F(GpuCheckTest, RunsOnTheEmulatedGpu) {
  const std::string hone = std::string(HONE_BINARY_DIR) + "/tests/gpu_check/hone_emulated";
  if (!std::filesystem::exists(hone)) GTEST_SKIP() << "this machine has no emulator";
  ASSERT_EQ(Runs(hone, {"--only", "batch_invariant,turns"}), 0) << ReadFile(Path("output"));
  EXPECT_EQ(Value("r1_tiny.batch_invariant"), 8);
  EXPECT_EQ(Value("r1_tiny.turns"), 8);
  EXPECT_EQ(Value("r1_tiny.turns.logprob_gap.largest"), 0);
  EXPECT_EQ(Value("turns.reasoning_rl.apart"), 0);
  EXPECT_GT(Value("publication.host_bytes"), 0);
  EXPECT_LE(Value("publication.host_bytes"), 3 * 2 * 16) << "digests, of three publications";
}

}  // namespace
}  // namespace hone::launcher
