// The subcommands of the `hone` program: each parses its own arguments and returns the exit code.
// Exit codes: 0 done, 1 failed, 2 bad usage or config, 75 stopped early and can be resumed.
#pragma once

#include <string>
#include <vector>

namespace hone::launcher {

using Arguments = std::vector<std::string>;  // without program and subcommand

int RunCommand(const Arguments& args);
int TrainCommand(const Arguments& args);
int WorkerCommand(const Arguments& args);
int CheckpointCommand(const Arguments& args);
int CheckCommand(const Arguments& args);
int PlanCommand(const Arguments& args);
int SubmitCommand(const Arguments& args);
int StatusCommand(const Arguments& args);
int EvalCommand(const Arguments& args);
int GenerateCommand(const Arguments& args);
int ImportCommand(const Arguments& args);
int ExportCommand(const Arguments& args);
int ServeCommand(const Arguments& args);
int BenchCommand(const Arguments& args);

}  // namespace hone::launcher
