// `hone bench checkpoint`: saving against writing the same bytes plainly, and what saving in the
// background costs the steps that go on beside it.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launcher/bench/bench.h"
#include "launcher/bench/bench_learner.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/file_system.h"

namespace hone::launcher {
namespace {

int64_t BytesOf(const SlabIndex& slabs) {
  int64_t bytes = 0;
  for (const SlabTensor& s : slabs) bytes += s.tensor.bytes();
  return bytes;
}

// One file with the bytes of all slabs, on the disk when this returns.
void WritePlainly(const std::string& path, const SlabIndex& slabs) {
  auto file = runtime::LocalFileSystem().Open(path, runtime::OpenMode::kCreate);
  int64_t at = 0;
  for (const SlabTensor& s : slabs) {
    file->Write(at, s.tensor.raw(), s.tensor.bytes());
    at += s.tensor.bytes();
  }
  file->Sync();
  file->Close();
}

}  // namespace

Json BenchCheckpoint(const CheckpointBenchOptions& options) {
  BenchLearner learner(options.model, options.threads);
  const std::string folder = options.folder + "/hone-bench-checkpoint";
  std::filesystem::create_directories(folder);
  const SlabIndex slabs = learner.State();
  const auto bytes = static_cast<double>(BytesOf(slabs));
  runtime::CheckpointWriter now(runtime::LocalFileSystem(), parallel::MakeRendezvous(BenchWorld()),
                                {.asynchronous = false});
  runtime::CheckpointWriter later(runtime::LocalFileSystem(),
                                  parallel::MakeRendezvous(BenchWorld()), {.asynchronous = true});
  const std::vector<TokenBatch> packs = {RandomPack(options.model, 1, 1)};
  learner.Step(packs);
  std::vector<double> plain, save, step, stall;
  for (int64_t i = 0; i < options.rounds; ++i) {
    const std::string name = folder + "/step-" + std::to_string(i);
    const auto make_room = [&] {
      std::filesystem::remove_all(folder);
      std::filesystem::create_directories(folder);
    };
    plain.push_back(SecondsOf([&] { WritePlainly(folder + "/plain", slabs); }));
    make_room();
    save.push_back(SecondsOf([&] { now.Save(name, {.slabs = slabs, .metadata = "{}"}); }));
    make_room();
    step.push_back(SecondsOf([&] { learner.Step(packs); }));
    stall.push_back(SecondsOf([&] { later.Save(name, {.slabs = slabs, .metadata = "{}"}); }));
    later.Wait();
    make_room();
  }
  std::filesystem::remove_all(folder);
  return {{"bench", "checkpoint"},
          {"preset", options.model.preset},
          {"bytes", bytes},
          {"threads", options.threads},
          {"plain_bytes_per_second", bytes / Fastest(plain)},
          {"bytes_per_second", bytes / Fastest(save)},
          {"fraction_of_plain", Fastest(plain) / Fastest(save)},
          {"fraction_of_plain_median", Median(plain) / Median(save)},
          {"stall_seconds", Fastest(stall)},
          {"step_seconds", Fastest(step)},
          {"stall_of_step", Fastest(stall) / Fastest(step)}};
}

}  // namespace hone::launcher
