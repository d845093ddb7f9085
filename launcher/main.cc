// hone: turns a base language model into a reasoning model.
#include <algorithm>
#include <exception>
#include <functional>
#include <iostream>
#include <map>

#include "launcher/commands.h"
#include "rl/reward/verifier_pool.h"
#include "runtime/config.h"
#include "runtime/error.h"
#include "runtime/nvidia_library.h"

namespace {

using hone::launcher::Arguments;

struct Command {
  const char* name;
  const char* what;
  std::function<int(const Arguments&)> run;
};

const std::vector<Command>& Commands() {
  static const std::vector<Command> commands = {
      {"run", "the whole job on this machine; goes on where the run directory stands",
       hone::launcher::RunCommand},
      {"train", "one learner rank: what mpirun and srun start", hone::launcher::TrainCommand},
      {"worker", "one rollout worker", hone::launcher::WorkerCommand},
      {"check", "find what is wrong with a config before anything starts",
       hone::launcher::CheckCommand},
      {"plan", "memory, speed and layouts that fit, from the config alone",
       hone::launcher::PlanCommand},
      {"submit", "the run as a SLURM job", hone::launcher::SubmitCommand},
      {"status", "the stage pipeline in the terminal", hone::launcher::StatusCommand},
      {"eval", "scores of a model", hone::launcher::EvalCommand},
      {"generate", "one completion of one prompt", hone::launcher::GenerateCommand},
      {"serve", "an OpenAI-compatible endpoint", hone::launcher::ServeCommand},
      {"import", "a Hugging Face folder as a checkpoint", hone::launcher::ImportCommand},
      {"export", "a checkpoint as a Hugging Face folder", hone::launcher::ExportCommand},
      {"checkpoint", "ls, show or verify checkpoints", hone::launcher::CheckpointCommand},
      {"bench", "speed of training, rollout, communication and checkpoints",
       hone::launcher::BenchCommand},
  };
  return commands;
}

int Usage(std::ostream& out) {
  out << "hone turns a base language model into a reasoning model.\n\nusage: hone COMMAND …\n\n";
  for (const Command& c : Commands()) {
    out << "  " << c.name << std::string(12 - std::min<size_t>(11, std::string(c.name).size()), ' ')
        << c.what << "\n";
  }
  out << "\n`hone COMMAND --help` tells more.\n";
  return &out == &std::cout ? 0 : 2;
}

int Dispatch(int argc, char** argv) {
  if (argc < 2) return Usage(std::cerr);
  std::string name = argv[1];
  Arguments args(argv + 2, argv + argc);
  if (name == "--help" || name == "-h" || name == "help") return Usage(std::cout);
  if (name == "verify-helper") return hone::rl::VerifyHelperMain();  // started by VerifierPool only
  std::vector<std::string> names;
  for (const Command& c : Commands()) {
    if (name == c.name) return c.run(args);
    names.push_back(c.name);
  }
  std::string nearest = hone::runtime::NearestWord(name, names);
  std::cerr << "hone: there is no command '" << name << "'"
            << (nearest.empty() ? "" : "; did you mean '" + nearest + "'?") << "\n";
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  hone::runtime::SetCudaDefaults();
  try {
    return Dispatch(argc, argv);
  } catch (const hone::Error& e) {
    std::cerr << "hone: " << e.what() << "\n";
    return e.exit_code();
  } catch (const std::exception& e) {
    std::cerr << "hone: " << e.what() << "\n";
    return 1;
  }
}
