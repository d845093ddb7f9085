#include <chrono>
#include <filesystem>
#include <future>

#include "rl/stages/stages.h"

namespace hone::rl {
namespace {

constexpr auto kLook = std::chrono::seconds(1);

// A folder is complete once it has its name: what an interrupted export left is made anew.
void Export(const Environment& env, const std::string& from, const std::string& to) {
  const std::string unfinished = to + ".unfinished";
  env.directory.fs().MakeDirs(std::filesystem::path(to).parent_path().string());
  std::filesystem::remove_all(unfinished);
  std::filesystem::remove_all(to);
  env.export_model(from, unfinished);
  // A tokenizer that is a file by itself lies in no folder that was carried along.
  const std::filesystem::path tokenizer = env.config.tokenizer;
  const std::filesystem::path copy = std::filesystem::path(unfinished) / tokenizer.filename();
  if (std::filesystem::is_regular_file(tokenizer) && !std::filesystem::exists(copy)) {
    env.directory.fs().WriteAtomically(copy.string(),
                                       env.directory.fs().ReadAll(tokenizer.string()));
  }
  std::filesystem::rename(unfinished, to);
}

}  // namespace

void RunExport(Environment& env, const StageConfig& stage) {
  auto start = std::chrono::steady_clock::now();
  const std::string to = env.directory.exported(stage.name);
  std::future<void> writing;
  if (env.root()) {
    env.directory.CheckFence();
    Check<ConfigError>(env.export_model != nullptr, "{}: stage '{}': this program cannot export",
                       stage.where, stage.name);
    writing = std::async(std::launch::async,
                         [&env, &stage, &to] { Export(env, ResolveFrom(env, stage.from), to); });
  }
  // The other ranks hear every second that rank 0 is at work, long before a deadline passes.
  std::string news = "wait";
  while (news == "wait") {
    if (env.root() && writing.wait_for(kLook) == std::future_status::ready) {
      news = "done";
      try {
        writing.get();
      } catch (const std::exception& e) {
        news = e.what();
      }
    }
    news = env.FromRoot(news);
  }
  Check(news == "done", "{}", news);
  if (!env.root()) return;
  env.state.Find(stage.name)->seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print(stderr, "{}: {}\n", stage.name, to);
}

}  // namespace hone::rl
