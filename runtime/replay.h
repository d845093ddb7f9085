// Work that is done again and again: the decode step of a rollout engine.
//
// On CUDA the pieces of a step cost the host more time to hand over, one by one, than the GPU to do
// them. So a step is recorded as a graph that one call starts. What makes that safe is that nobody
// has to say what may change between two steps: `work` runs on the host each time, but while a
// recorded step is replayed nothing of it reaches the driver. Each piece (a kernel with its grid
// and arguments, a copy, a product) is compared with what was recorded instead, and values that
// the host uploads are written where the recorded copies read them. Where all pieces are the same
// the graph is started; where one differs (a longer list, weights at other addresses) the step runs
// as if there were no graph and is recorded anew. So results have the same bits with and without.
//
// A step in which the host waits for the device (it reads which experts a router chose) is recorded
// as a row of graphs, its segments: a wait ends one, which is started then, and the next begins
// behind it. What hangs on values that were read, and so is other work at each step, says so with
// Unrecorded: it runs piece by piece between two segments, in the step's memory, so that what comes
// behind it finds its results where they were.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "runtime/allocator.h"

namespace hone::runtime {

struct ReplayStats {
  int64_t recorded = 0, replayed = 0;  // steps; the rest ran piece by piece
  int64_t segments = 0, apart = 0;     // of replayed steps: graphs started, Unrecorded parts run
};

// Used by one thread. The base runs everything as it comes: the CPU's.
class Replay {
 public:
  virtual ~Replay() = default;
  // Runs `work`, which gives work to the allocator's stream. Steps of one `key` are alike: of one
  // number of rows, say. `work` may be called twice, the first time for nothing or up to one of its
  // waits: it must set, and not add to, what it leaves on the host and the device. Nobody else may
  // use the stream meanwhile, and no other thread wait for the whole device, as copies without a
  // stream do: CUDA fails both of them while a step is recorded. Tensors that `work` makes and
  // leaves are valid until the next Run.
  virtual void Run(int64_t key, const std::function<void()>& work);
  // To how many rows a step of `rows` is best filled up, so that few keys occur.
  virtual int64_t PaddedRows(int64_t rows) const { return rows; }
  virtual ReplayStats stats() const { return {}; }
};

class StepRecorder;

// While it lives, what this thread gives `stream` belongs to no graph. Outside of a Replay, and on
// the CPU, it does nothing.
class Unrecorded {
 public:
  explicit Unrecorded(Stream& stream);
  ~Unrecorded();
  Unrecorded(const Unrecorded&) = delete;
  Unrecorded& operator=(const Unrecorded&) = delete;

 private:
  StepRecorder* recorder_;  // null where there is nothing to end
};

// Graphs kept at once, over all keys: 36 sizes of a model with 56 layers of experts. The key that
// was run longest ago makes room; a step that needs more by itself is not recorded.
inline constexpr int64_t kMostGraphs = 4096;

std::unique_ptr<Replay> MakeReplay(const std::shared_ptr<Allocator>& allocator,
                                   int64_t most_graphs = kMostGraphs);
// Where MakeReplay gets CUDA's.
std::unique_ptr<Replay> MakeCudaReplay(const std::shared_ptr<Allocator>& allocator,
                                       int64_t most_graphs);

}  // namespace hone::runtime
