#include <algorithm>
#include <charconv>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/slab_table.h"
#include "runtime/error.h"

namespace hone::runtime {
namespace {

constexpr std::string_view kPrefix = "step-", kUnfinished = ".tmp";

// The step of a folder's name, or −1.
int64_t StepOf(std::string_view name) {
  if (!name.starts_with(kPrefix)) return -1;
  name.remove_prefix(kPrefix.size());
  int64_t step = -1;
  auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  return error == std::errc() && end == name.data() + name.size() ? step : -1;
}

}  // namespace

std::string CheckpointStepName(int64_t step) { return fmt::format("{}{:06}", kPrefix, step); }

std::vector<int64_t> ListCheckpointSteps(FileSystem& fs, const std::string& dir) {
  std::vector<int64_t> steps;
  if (!fs.Exists(dir)) return steps;
  for (const std::string& name : fs.List(dir)) {
    int64_t step = StepOf(name);
    bool whole = step >= 0 && name == CheckpointStepName(step) &&
                 fs.Exists(fmt::format("{}/{}/{}", dir, name, kIndexFile));
    if (whole) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void PruneCheckpoints(FileSystem& fs, const std::string& dir, int keep_last, int64_t keep_every,
                      int64_t protect) {
  if (!fs.Exists(dir)) return;
  std::vector<int64_t> steps = ListCheckpointSteps(fs, dir);
  int64_t old = static_cast<int64_t>(steps.size()) - std::max(0, keep_last);
  for (int64_t i = 0; i < old; ++i) {
    bool keep = steps[i] == protect || (keep_every > 0 && steps[i] % keep_every == 0);
    if (keep) continue;
    // Renamed first: a folder half removed must not have a final name.
    std::string path = dir + "/" + CheckpointStepName(steps[i]);
    fs.Rename(path, path + ".removed.tmp");
  }
  for (const std::string& name : fs.List(dir)) {
    if (name.starts_with(kPrefix) && name.ends_with(kUnfinished)) fs.RemoveAll(dir + "/" + name);
  }
}

}  // namespace hone::runtime
