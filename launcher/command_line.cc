#include "launcher/command_line.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>

namespace hone::launcher {
namespace {

int FromEnvironment(std::initializer_list<const char*> names, int otherwise) {
  for (const char* name : names) {
    if (const char* value = std::getenv(name)) return std::atoi(value);
  }
  return otherwise;
}

}  // namespace

bool ParseArguments(CLI::App& app, const std::vector<std::string>& args, int* code) {
  // One value a flag: CLI11's lists would take the positional argument behind them too.
  for (CLI::Option* option : app.get_options()) option->allow_extra_args(false);
  // CLI11 takes the arguments last first.
  std::vector<std::string> reversed(args.rbegin(), args.rend());
  try {
    app.parse(reversed);
    return true;
  } catch (const CLI::ParseError& e) {
    *code = app.exit(e) == 0 ? 0 : 2;
    return false;
  }
}

std::string IsPositive(const std::string& text) {
  double value = 0;
  const bool fine = CLI::detail::lexical_cast(text, value) && value > 0 && std::isfinite(value);
  return fine ? "" : "a number above 0 is wanted, not " + text;
}

int RankFromEnvironment() {
  return FromEnvironment({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}, 0);
}

int WorldSizeFromEnvironment() {
  return FromEnvironment({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"}, 1);
}

int LocalRankFromEnvironment() {
  return FromEnvironment({"OMPI_COMM_WORLD_LOCAL_RANK", "HONE_LOCAL_RANK", "SLURM_LOCALID"}, 0);
}

}  // namespace hone::launcher
