#include "parallel/pipeline_schedule.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "runtime/error.h"

namespace hone::parallel {
namespace {

// Writes one rank's list. Each chunk counts its forwards and backwards, so a microbatch number is
// never given by hand; the weight halves of split backwards wait in a queue, oldest first.
class ListBuilder {
 public:
  explicit ListBuilder(int chunks) : forward_(chunks, 0), backward_(chunks, 0) {}

  void Forward(int chunk = 0) { Push(Action::Kind::kForward, chunk, forward_[chunk]++); }
  void Backward(int chunk = 0) { Push(Action::Kind::kBackward, chunk, backward_[chunk]++); }
  void BackwardInput(int chunk = 0) {
    waiting_.emplace_back(chunk, backward_[chunk]);
    Push(Action::Kind::kBackwardInput, chunk, backward_[chunk]++);
  }
  void BackwardWeight() {
    auto [chunk, microbatch] = waiting_.front();
    waiting_.pop_front();
    Push(Action::Kind::kBackwardWeight, chunk, microbatch);
  }
  void AllBackwardWeights() {
    while (!waiting_.empty()) BackwardWeight();
  }
  void Pair(int forward_chunk, int backward_chunk) {
    list_.push_back({Action::Kind::kForwardBackward, forward_chunk, forward_[forward_chunk]++,
                     backward_chunk, backward_[backward_chunk]++});
  }
  std::vector<Action> Take() { return std::move(list_); }

 private:
  void Push(Action::Kind kind, int chunk, int microbatch) {
    list_.push_back({kind, chunk, microbatch});
  }

  std::vector<Action> list_;
  std::vector<int> forward_, backward_;
  std::deque<std::pair<int, int>> waiting_;
};

std::vector<Action> GPipe(const PipelineShape& shape) {
  ListBuilder list(1);
  for (int i = 0; i < shape.microbatches; ++i) list.Forward();
  for (int i = 0; i < shape.microbatches; ++i) list.Backward();
  return list.Take();
}

// Warm up with as many forwards as there are ranks behind this one; then a forward and a backward
// in turn.
std::vector<Action> OneForwardOneBackward(const PipelineShape& shape, int rank) {
  ListBuilder list(1);
  const int m = shape.microbatches;
  const int warmup = std::min(shape.ranks - 1 - rank, m);
  for (int i = 0; i < warmup; ++i) list.Forward();
  for (int i = 0; i < m; ++i) {
    if (warmup + i < m) list.Forward();
    list.Backward();
  }
  return list.Take();
}

// As 1F1B over v·m "virtual" microbatches: groups of p microbatches go through chunk 0, then the
// same group through chunk 1, …; backwards through the chunks in reverse.
std::vector<Action> Interleaved(const PipelineShape& shape, int rank) {
  const int p = shape.ranks, v = shape.chunks;
  ListBuilder list(v);
  const int total = shape.microbatches * v;
  const int warmup = std::min(2 * (p - 1 - rank) + (v - 1) * p, total);
  auto chunk_of = [&](int k) { return k / p % v; };
  for (int k = 0; k < warmup; ++k) list.Forward(chunk_of(k));
  for (int k = 0; k < total; ++k) {
    if (warmup + k < total) list.Forward(chunk_of(warmup + k));
    list.Backward(v - 1 - chunk_of(k));
  }
  return list.Take();
}

// 1F1B with the backward cut in two. Rank r lags r weight halves behind, which it runs in the idle
// time at the end; so p − r activations wait for their backward and r for their weight half: p on
// every rank, the peak of 1F1B's first.
std::vector<Action> ZbH1(const PipelineShape& shape, int rank) {
  ListBuilder list(1);
  const int m = shape.microbatches, warmup = shape.ranks - 1 - rank;
  for (int i = 0; i < warmup; ++i) list.Forward();
  for (int i = 0; i < m; ++i) {
    if (warmup + i < m) list.Forward();
    list.BackwardInput();
    if (i >= rank) list.BackwardWeight();
  }
  list.AllBackwardWeights();
  return list.Take();
}

// The V: chunk 0 runs down the ranks, chunk 1 back up; the last rank holds the turn and rank 0 the
// loss. With b = p − 1 − r ranks behind this one, a rank goes through eight phases:
//
//   1. 2b forwards of chunk 0, which fill the way down.
//   2. r + 1 forwards of each chunk: the first microbatches come back up.
//   3. b times a backward of chunk 1, with its weight half at once, since the forward behind it has
//      yet to arrive; and a forward of chunk 1.
//   4. The steady state, m − 2p + r + 1 times two pairs: forward of one chunk with backward of the
//      other. DeepSeek's program takes the last rank's first pair apart: for no costs with
//      B ≤ F&B ≤ F + B does that end sooner, and where overlap gains it ends later.
//   5. No forwards of chunk 0 are left: b times a backward of chunk 1 and the other pair.
//   6. r + 1 backwards of each chunk; in the second half only the input halves, for whose result
//      the neighbours wait.
//   7. b times a weight half, and an input half of chunk 0.
//   8. The weight halves that are left.
std::vector<Action> DualPipeV(const PipelineShape& shape, int rank) {
  ListBuilder list(2);
  const int p = shape.ranks, behind = p - 1 - rank;
  for (int i = 0; i < 2 * behind; ++i) list.Forward(0);  // 1
  for (int i = 0; i <= rank; ++i) {                      // 2
    list.Forward(0);
    list.Forward(1);
  }
  for (int i = 0; i < behind; ++i) {  // 3
    list.BackwardInput(1);
    list.BackwardWeight();
    list.Forward(1);
  }
  for (int i = 0; i < shape.microbatches - 2 * p + rank + 1; ++i) {  // 4
    list.Pair(0, 1);
    list.Pair(1, 0);
  }
  for (int i = 0; i < behind; ++i) {  // 5
    list.Backward(1);
    list.Pair(1, 0);
  }
  for (int i = 0; i < 2 * (rank + 1); ++i) {  // 6
    const int chunk = 1 - i % 2;
    if (i <= rank) {
      list.Backward(chunk);
    } else {
      list.BackwardInput(chunk);
    }
  }
  for (int i = 0; i < behind; ++i) {  // 7
    list.BackwardWeight();
    list.BackwardInput(0);
  }
  list.AllBackwardWeights();  // 8
  return list.Take();
}

}  // namespace

const std::vector<std::string>& ScheduleNames() {
  static const std::vector<std::string> names = {"gpipe", "1f1b", "interleaved", "zb_h1",
                                                 "dualpipe_v"};
  return names;
}

const std::string& ScheduleName(ScheduleKind kind) {
  return ScheduleNames()[static_cast<size_t>(kind)];
}

std::string Action::ToString() const {
  static constexpr const char* kLetters[] = {"F", "B", "I", "W", "F"};
  std::string text = fmt::format("{}{}.{}", kLetters[static_cast<int>(kind)], chunk, microbatch);
  if (kind == Kind::kForwardBackward) text += fmt::format("+B{}.{}", pair_chunk, pair_microbatch);
  return text;
}

void PipelineShape::ValidateLayout() const {
  const std::string& name = ScheduleName(kind);
  Check<ConfigError>(ranks >= 1 && chunks >= 1,
                     "[pipeline] {}: {} ranks with {} chunks each; both must be at least 1", name,
                     ranks, chunks);
  if (kind == ScheduleKind::kDualPipeV) {
    Check<ConfigError>(chunks == 2, "[pipeline] {}: {} chunks a rank; it has exactly 2", name,
                       chunks);
  } else if (kind != ScheduleKind::kInterleaved) {
    Check<ConfigError>(chunks == 1,
                       "[pipeline] {}: {} chunks a rank; only `interleaved` takes more than 1",
                       name, chunks);
  }
}

void PipelineShape::Validate() const {
  ValidateLayout();
  const std::string& name = ScheduleName(kind);
  Check<ConfigError>(microbatches >= 1, "[pipeline] {}: {} microbatches; there must be at least 1",
                     name, microbatches);
  if (kind == ScheduleKind::kInterleaved) {
    Check<ConfigError>(microbatches % ranks == 0,
                       "[pipeline] {}: {} microbatches do not split over {} ranks; choose a "
                       "multiple of {}",
                       name, microbatches, ranks, ranks);
  } else if (kind == ScheduleKind::kZbH1) {
    Check<ConfigError>(microbatches >= ranks,
                       "[pipeline] {}: {} microbatches on {} ranks; it needs at least {}", name,
                       microbatches, ranks, ranks);
  } else if (kind == ScheduleKind::kDualPipeV) {
    Check<ConfigError>(microbatches >= 2 * ranks,
                       "[pipeline] {}: {} microbatches on {} ranks; it needs at least {}, twice "
                       "the ranks",
                       name, microbatches, ranks, 2 * ranks);
  }
}

int64_t PipelineShape::FittingMicrobatches(int64_t wanted) const {
  int64_t least = kind == ScheduleKind::kZbH1        ? ranks
                  : kind == ScheduleKind::kDualPipeV ? 2 * ranks
                                                     : 1;
  int64_t fitting = std::max(wanted, least);
  return kind == ScheduleKind::kInterleaved ? (fitting + ranks - 1) / ranks * ranks : fitting;
}

int PipelineShape::StageOf(int rank, int chunk) const {
  if (kind == ScheduleKind::kDualPipeV) return chunk == 0 ? rank : 2 * ranks - 1 - rank;
  return chunk * ranks + rank;
}

int PipelineShape::RankOf(int stage) const {
  if (kind == ScheduleKind::kDualPipeV) return stage < ranks ? stage : 2 * ranks - 1 - stage;
  return stage % ranks;
}

int PipelineShape::ChunkOf(int stage) const { return stage / ranks; }

std::vector<std::vector<Action>> BuildSchedule(const PipelineShape& shape) {
  shape.Validate();
  std::vector<std::vector<Action>> lists;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    switch (shape.kind) {
      case ScheduleKind::kGPipe:
        lists.push_back(GPipe(shape));
        break;
      case ScheduleKind::k1F1B:
        lists.push_back(OneForwardOneBackward(shape, rank));
        break;
      case ScheduleKind::kInterleaved:
        lists.push_back(Interleaved(shape, rank));
        break;
      case ScheduleKind::kZbH1:
        lists.push_back(ZbH1(shape, rank));
        break;
      case ScheduleKind::kDualPipeV:
        lists.push_back(DualPipeV(shape, rank));
        break;
    }
  }
  return lists;
}

// In steps of one forward: each rank runs a forward whose input is there, of its latest chunk if it
// has the choice, so that what has begun ends first.
std::vector<std::vector<Action>> BuildForwardSchedule(const PipelineShape& shape) {
  shape.ValidateLayout();
  Check<ConfigError>(shape.microbatches >= 0, "[pipeline] {} microbatches", shape.microbatches);
  std::vector<std::vector<Action>> lists(shape.ranks);
  std::vector<int> done(shape.stages(), 0);  // forwards a stage has finished
  while (done.back() < shape.microbatches) {
    const std::vector<int> before = done;
    for (int rank = 0; rank < shape.ranks; ++rank) {
      for (int chunk = shape.chunks - 1; chunk >= 0; --chunk) {
        const int stage = shape.StageOf(rank, chunk);
        const int available = stage == 0 ? shape.microbatches : before[stage - 1];
        if (before[stage] < available) {
          lists[rank].push_back({Action::Kind::kForward, chunk, done[stage]++});
          break;
        }
      }
    }
  }
  return lists;
}

}  // namespace hone::parallel
