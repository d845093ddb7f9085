// `hone bench comm`: the collectives of a training step between the ranks that mpirun started.
#include <nlohmann/json.hpp>

#include "launcher/bench/bench.h"
#include "launcher/bench/bench_learner.h"

namespace hone::launcher {

Json BenchComm(const CommBenchOptions& options) {
  const parallel::GroupPtr world = BenchWorld();
  Context ctx;
  const int64_t ranks = world->size(), part = options.bytes / 4 / ranks, all = part * ranks;
  const Tensor whole = ctx.Zeros({all}, DType::kF32, MemoryCategory::kCommunication),
               other = ctx.Zeros({all}, DType::kF32, MemoryCategory::kCommunication),
               own = ctx.Zeros({part}, DType::kF32, MemoryCategory::kCommunication);
  const std::vector<int64_t> rows(static_cast<size_t>(ranks), part);
  struct Collective {
    const char* name;
    std::function<void()> run;
  };
  const std::vector<Collective> collectives = {
      {"all_reduce", [&] { world->AllReduce(whole)->Wait(); }},
      {"reduce_scatter", [&] { world->ReduceScatter(whole, own)->Wait(); }},
      {"all_gather", [&] { world->AllGather(own, whole)->Wait(); }},
      {"all_to_all", [&] { world->AllToAll(whole, rows, other, rows)->Wait(); }},
      {"broadcast", [&] { world->Broadcast(whole, 0)->Wait(); }},
      {"barrier", [&] { world->Barrier(); }}};
  Json result = {{"bench", "comm"}, {"ranks", ranks}, {"bytes", all * 4}};
  for (const Collective& c : collectives) {
    std::vector<double> seconds;
    c.run();
    for (int64_t i = 0; i < options.rounds; ++i) {
      world->Barrier();
      seconds.push_back(SecondsOf(c.run));
    }
    Json figures = {{"seconds", Fastest(seconds)}, {"seconds_median", Median(seconds)}};
    if (c.name != std::string("barrier")) {
      figures["bytes_per_second"] = static_cast<double>(all * 4) / Fastest(seconds);
    }
    result[c.name] = figures;
  }
  return result;
}

}  // namespace hone::launcher
