// What the subcommands share in reading their arguments.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace hone::launcher {

// Parses; false when the program should end with *code now (help was printed, or the usage is
// wrong: 2).
bool ParseArguments(CLI::App& app, const std::vector<std::string>& args, int* code);

// For an option's check(): CLI::PositiveNumber takes nan.
std::string IsPositive(const std::string& text);

// As mpirun and srun tell it, before MPI is started: 0 of 1 otherwise.
int RankFromEnvironment();
int WorldSizeFromEnvironment();
int LocalRankFromEnvironment();  // among the ranks of this machine

}  // namespace hone::launcher
