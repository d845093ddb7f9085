// `hone train`: one learner rank, started by mpirun, srun, `hone run`, or alone.
#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>

#include "data/tokenizer.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/signals.h"
#include "parallel/comm/device_group.h"
#include "parallel/comm/process_group.h"
#include "parallel/comm/tcp_bootstrap.h"
#include "rl/learner.h"
#include "rl/run_directory.h"
#include "rl/stages/sample_pool.h"
#include "rl/stages/stages.h"

namespace hone::launcher {
namespace {

struct TrainOptions {
  std::string config, run_dir, until;
  std::vector<std::string> overrides;
  bool pool = false, tcp = false;
};

constexpr int kLockPatienceSeconds = 30;  // for a predecessor that is dying

// Rank 0 makes the run directory and becomes its writer; the others wait until it has.
void OpenRunDirectory(rl::RunDirectory& directory, const rl::RunConfig& config,
                      parallel::ProcessGroup& world) {
  std::string error;
  if (world.rank() == 0) {
    try {
      directory.Acquire(kLockPatienceSeconds);
      directory.fs().WriteAtomically(directory.config(), config.resolved_yaml);
    } catch (const Error& e) {
      error = e.what();
    }
  }
  error = world.AllGatherBytes(error)[0];
  Check(error.empty(), "{}", error);
}

bool NeedsPool(const rl::RunConfig& config) {
  for (const rl::StageConfig& s : config.stages) {
    if (s.kind == rl::StageKind::kGrpo || s.kind == rl::StageKind::kRejectionSampling || s.until) {
      return true;
    }
  }
  return !config.suites.empty();
}

// Ranks of a machine take its GPUs in turn.
Context MakeContext(const rl::TrainConfig& config) {
  Device device = Device::Cpu();
  if (config.device == Device::Type::kCuda) {
    int gpus = runtime::CudaDeviceCount();
    Check<ConfigError>(gpus > 0,
                       "[train] device: cuda, but hone finds no GPU here; `hone check` "
                       "says what it found");
    device = Device::Cuda(LocalRankFromEnvironment() % gpus);
  }
  Context ctx(device, config.threads);
  ctx.numerics = config.numerics;
  ctx.fp8 = config.fp8;
  return ctx;
}

parallel::GroupPtr OnDevice(const Context& ctx, const parallel::GroupPtr& world,
                            const rl::TrainConfig& config) {
  if (ctx.device().is_cpu() || world->size() == 1) return world;
  std::string why;
  parallel::GroupOptions options{.deadline = std::chrono::seconds(config.deadline_seconds)};
  parallel::GroupPtr group = parallel::MakeDeviceGroup(ctx, world, options, &why);
  if (world->rank() == 0) std::cerr << "hone: communication by " << why << "\n";
  return group;
}

int Train(const TrainOptions& options, const rl::RunConfig& config,
          const parallel::GroupPtr& world) {
  const std::atomic<bool>& stop = StopFlag();
  rl::RunDirectory directory(runtime::LocalFileSystem(), options.run_dir);
  OpenRunDirectory(directory, config, *world);
  Context ctx = MakeContext(config.train);
  parallel::Mesh mesh(config.mesh, OnDevice(ctx, world, config.train));
  rl::Learner learner(ctx, mesh, config, directory.fs());
  std::shared_ptr<const data::Tokenizer> tokenizer =
      data::LoadTokenizer(config.tokenizer, config.special_tokens);
  std::unique_ptr<rl::SamplePool> pool;
  if (options.pool || (config.rollout.workers > 0 && NeedsPool(config))) {
    std::string secret = world->AllGatherBytes(
        world->rank() == 0 ? directory.Secret(config.rollout.own_certificate()) : "")[0];
    pool = std::make_unique<rl::SamplePool>(learner, directory, secret, stop);
  }
  std::unique_ptr<runtime::MetricsWriter> metrics;
  if (world->rank() == 0) {
    metrics = std::make_unique<runtime::MetricsWriter>(directory.fs(), directory.metrics());
  }
  learner.BeginStage({});
  learner.SelfCheck();  // of configs and sums; weights are checked by the stages that load them
  rl::RunState state;
  rl::Environment env{config, directory, learner, tokenizer, state, metrics, pool.get(), stop};
  env.export_model = [](const std::string& from, const std::string& to) {
    Check(ExportCommand({from, to}) == 0, "[export] {} could not be exported", from);
  };
  rl::RunStages(env, options.until);
  return 0;
}

// Why a rank cannot begin, and what it then ends with; 0 when it can.
struct Refusal {
  int code = 0;
  std::string why;
};

Refusal WhatIsWrong(const TrainOptions& options, rl::RunConfig* config) {
  try {
    *config = rl::LoadRunConfig(options.config, options.overrides);
    config->mesh.Validate(options.tcp ? parallel::TcpOptionsFromEnvironment().size
                                      : WorldSizeFromEnvironment());
    rl::CheckRun(*config, options.pool);
    return {};
  } catch (const Error& e) {
    return {e.exit_code(), e.what()};
  }
}

// When any rank cannot begin none does: all end with the code of the first such rank, and rank 0
// says why. Only after asking the others, since the launcher kills all when one ends.
int Refuse(const Refusal& mine, parallel::ProcessGroup& world) {
  std::vector<std::string> reasons = world.AllGatherBytes(mine.why);
  std::vector<std::string> codes = world.AllGatherBytes(std::to_string(mine.code));
  for (int r = 0; r < world.size(); ++r) {
    if (codes[r] == "0") continue;
    if (world.rank() == 0) {
      std::cerr << "hone: " << (r == 0 ? "" : fmt::format("rank {}: ", r)) << reasons[r] << "\n";
    }
    return std::stoi(codes[r]);
  }
  return 0;
}

parallel::GroupPtr MakeWorld(const TrainOptions& options, parallel::GroupOptions group_options) {
  if (options.tcp) {
    return parallel::MakeTcpGroup(parallel::TcpOptionsFromEnvironment(), group_options);
  }
  return parallel::StartedByMpi() ? parallel::MakeMpiGroup(group_options)
                                  : parallel::MakeSingleGroup();
}

}  // namespace

int TrainCommand(const Arguments& args) {
  StopFlag();  // a signal while the ranks still start is a stop, too
  TrainOptions options;
  CLI::App app("One learner rank: what mpirun and srun start", "hone train");
  app.add_option("config", options.config, "the run's config (YAML)")->required();
  app.add_option("--run-dir", options.run_dir, "the run directory")->required();
  app.add_option("--set", options.overrides, "key=value, e.g. stages.base.steps=20");
  app.add_option("--until", options.until, "the last stage to run");
  app.add_flag("--pool", options.pool, "serve a rollout pool even if the config starts no workers");
  app.add_flag(
      "--tcp", options.tcp,
      "meet the other ranks over TCP: HONE_MASTER, HONE_RANK, HONE_SIZE, or SLURM's variables");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;

  rl::RunConfig config;
  Refusal refusal = WhatIsWrong(options, &config);
  parallel::GroupOptions group_options;
  group_options.deadline = std::chrono::seconds(config.train.deadline_seconds);
  parallel::GroupPtr world = MakeWorld(options, group_options);
  if (int code = Refuse(refusal, *world)) return code;
  try {
    return Train(options, config, world);
  } catch (const StoppedEarly& e) {
    if (world->rank() == 0) std::cerr << "hone: " << e.what() << "\n";
    return e.exit_code();
  } catch (const std::exception& e) {
    std::cerr << fmt::format("hone: rank {}: {}\n", world->rank(), e.what());
    // Ending without MPI_Finalize makes mpirun end the other ranks, which may be waiting for this
    // one.
    auto* error = dynamic_cast<const Error*>(&e);
    std::_Exit(error ? error->exit_code() : 1);
  }
}

}  // namespace hone::launcher
