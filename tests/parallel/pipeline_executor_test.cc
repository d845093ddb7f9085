// The executor alone: toy chunks on thread ranks, gradients against one stage on one rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>

#include "parallel/train_engine.h"
#include "tests/parallel/toy_stage.h"

namespace hone::parallel {
namespace {

using testing::Pointers;
using testing::ToyBatch;
using testing::ToyChunks;
using testing::ToyLoss;
using testing::ToyStage;
using Gradients = std::map<std::string, std::vector<double>>;

std::vector<TokenBatch> Batches(int microbatches) {
  std::vector<TokenBatch> batches;
  for (int i = 0; i < microbatches; ++i) batches.push_back(ToyBatch(0, i));
  return batches;
}

void AddGradients(std::vector<Parameter*> parameters, Gradients& into) {
  for (Parameter* p : parameters) {
    if (p->gradient.defined()) into[p->spec.name] = runtime::ToDoubles(p->gradient);
  }
}

// One stage, one microbatch after the other: no schedule, no executor.
Gradients Reference(int microbatches, double* loss_sum = nullptr) {
  Context ctx;
  ToyStage stage(ctx, 0, testing::kToyLayers);
  ToyLoss loss;
  stage.BeginStep(false);
  const auto batches = Batches(microbatches);
  for (int i = 0; i < microbatches; ++i) {
    stage.Forward(ctx, i, batches[i], {}, &loss, true);
    stage.Backward(ctx, i, {});
    if (loss_sum != nullptr) *loss_sum += stage.TakeOutcome(i).loss;
  }
  Gradients gradients;
  AddGradients(stage.Parameters(), gradients);
  return gradients;
}

void ExpectNear(const Gradients& got, const Gradients& want, double bound) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, values] : want) {
    ASSERT_EQ(got.count(name), 1u) << name;
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_NEAR(got.at(name)[i], values[i], bound) << name << "[" << i << "]";
    }
  }
}

std::vector<PipelineShape> Shapes() {
  std::vector<PipelineShape> shapes;
  for (int p : {1, 2, 4}) {
    for (ScheduleKind kind : {ScheduleKind::kGPipe, ScheduleKind::k1F1B, ScheduleKind::kZbH1}) {
      shapes.push_back({kind, p, 1, 10});
    }
    shapes.push_back({ScheduleKind::kInterleaved, p, 2, 8});
    shapes.push_back({ScheduleKind::kDualPipeV, p, 2, 10});
  }
  shapes.push_back({ScheduleKind::k1F1B, 4, 1, 150});  // message tags come round again
  return shapes;
}
std::string Describe(const PipelineShape& s) {
  return ScheduleName(s.kind) + " on " + std::to_string(s.ranks);
}

TEST(PipelineExecutor, EveryScheduleGivesTheGradientsOfOneRank) {
  for (const PipelineShape& shape : Shapes()) {
    SCOPED_TRACE(Describe(shape));
    double want_loss = 0;
    const Gradients want = Reference(shape.microbatches, &want_loss);
    const auto lists = BuildSchedule(shape);
    Gradients got;
    double loss_sum = 0;
    std::mutex mutex;
    RunThreadRanks(shape.ranks, [&](GroupPtr pp) {
      Context ctx;
      auto chunks = ToyChunks(ctx, shape, pp->rank());
      ToyLoss loss;
      for (auto& chunk : chunks) chunk->BeginStep(false);
      PipelineExecutor executor(shape, pp, Pointers(chunks));
      executor.Run(ctx, lists[pp->rank()], Batches(shape.microbatches), &loss, true);
      std::lock_guard lock(mutex);
      for (auto& chunk : chunks) {
        AddGradients(chunk->Parameters(), got);
        EXPECT_EQ(chunk->records(), 0u);
        if (!chunk->is_last()) continue;
        for (int i = 0; i < shape.microbatches; ++i) loss_sum += chunk->TakeOutcome(i).loss;
      }
    });
    ExpectNear(got, want, 1e-12);
    EXPECT_NEAR(loss_sum, want_loss, 1e-12);
  }
}

TEST(PipelineExecutor, AStageThatDoesNotSplitWeightGradientsHoldsOneRecordPerActivationInFlight) {
  for (const PipelineShape& shape : Shapes()) {
    if (shape.kind != ScheduleKind::k1F1B && shape.kind != ScheduleKind::kGPipe) continue;
    const auto lists = BuildSchedule(shape);
    const auto peak = Simulate(shape, lists, {}).peak_in_flight;
    RunThreadRanks(shape.ranks, [&](GroupPtr pp) {
      Context ctx;
      auto chunks = ToyChunks(ctx, shape, pp->rank());
      ToyLoss loss;
      PipelineExecutor(shape, pp, Pointers(chunks))
          .Run(ctx, lists[pp->rank()], Batches(shape.microbatches), &loss, true);
      EXPECT_EQ(static_cast<int>(chunks[0]->peak_records), peak[pp->rank()]) << Describe(shape);
    });
  }
}

// Each parameter is reported once, and by then its gradient is final. A stage that reports layer by
// layer does so before the rest of its backward has run.
TEST(PipelineExecutor, ReportsEachGradientOnceWhenItIsFinal) {
  for (const PipelineShape& shape : Shapes()) {
    for (bool by_layer : {true, false}) {
      SCOPED_TRACE(Describe(shape) + (by_layer ? " by layer" : " by chunk"));
      const auto lists = BuildSchedule(shape);
      RunThreadRanks(shape.ranks, [&](GroupPtr pp) {
        Context ctx;
        auto chunks = ToyChunks(ctx, shape, pp->rank(), by_layer);
        ToyLoss loss;
        std::vector<Parameter*> all;
        for (auto& chunk : chunks) {
          for (Parameter* p : chunk->Parameters()) all.push_back(p);
        }
        Gradients when_reported, at_the_first;
        auto listener = [&](const Parameter& p) {
          EXPECT_EQ(when_reported.count(p.spec.name), 0u) << p.spec.name << " twice";
          when_reported[p.spec.name] = {};
          if (p.gradient.defined()) when_reported[p.spec.name] = runtime::ToDoubles(p.gradient);
          if (at_the_first.empty() && p.gradient.defined()) AddGradients(all, at_the_first);
        };
        PipelineExecutor(shape, pp, Pointers(chunks))
            .Run(ctx, lists[pp->rank()], Batches(shape.microbatches), &loss, true, listener);
        EXPECT_EQ(when_reported.size(), all.size());
        Gradients final_values;
        AddGradients(all, final_values);
        for (const auto& [name, values] : final_values) EXPECT_EQ(when_reported[name], values);
        if (testing::kToyLayers > shape.stages()) {  // more than one layer a chunk
          const bool early = at_the_first != final_values;
          EXPECT_EQ(early, by_layer || shape.chunks > 1);
        }
      });
    }
  }
}

TEST(PipelineExecutor, ForwardOnlySavesNothingAndGivesEveryOutcome) {
  for (const PipelineShape& shape : Shapes()) {
    double want_loss = 0;
    Reference(shape.microbatches, &want_loss);
    const auto lists = BuildForwardSchedule(shape);
    double loss_sum = 0;
    RunThreadRanks(shape.ranks, [&](GroupPtr pp) {
      Context ctx;
      auto chunks = ToyChunks(ctx, shape, pp->rank());
      ToyLoss loss;
      PipelineExecutor(shape, pp, Pointers(chunks))
          .Run(ctx, lists[pp->rank()], Batches(shape.microbatches), &loss, false);
      for (auto& chunk : chunks) {
        EXPECT_EQ(chunk->peak_records, 0u);
        if (!chunk->is_last()) continue;
        for (int i = 0; i < shape.microbatches; ++i) loss_sum += chunk->TakeOutcome(i).loss;
      }
    });
    EXPECT_NEAR(loss_sum, want_loss, 1e-12) << Describe(shape);
  }
}

// Overlaps by doing both halves itself, and counts.
class OverlappingStage : public ToyStage {
 public:
  using ToyStage::ToyStage;
  bool overlaps_forward_backward() const override { return true; }
  std::pair<StageIO, StageIO> Overlap(Context& ctx, int forward_microbatch, const TokenBatch& batch,
                                      StageIO in, const LossFunction* loss,
                                      PipelineStage& backward_stage, int backward_microbatch,
                                      StageIO doutput) override {
    ++pairs;
    EXPECT_NE(&backward_stage, this);
    StageIO dinput = backward_stage.Backward(ctx, backward_microbatch, std::move(doutput));
    return {Forward(ctx, forward_microbatch, batch, std::move(in), loss, true), std::move(dinput)};
  }
  int pairs = 0;
};

TEST(PipelineExecutor, AStageThatOverlapsIsGivenDualPipesPairs) {
  const PipelineShape shape{ScheduleKind::kDualPipeV, 2, 2, 7};
  const auto lists = BuildSchedule(shape);
  Gradients got;
  std::mutex mutex;
  RunThreadRanks(2, [&](GroupPtr pp) {
    Context ctx;
    std::vector<std::unique_ptr<OverlappingStage>> chunks;
    std::vector<PipelineStage*> pointers;
    for (int chunk : {0, 1}) {
      const int stage = shape.StageOf(pp->rank(), chunk);
      chunks.push_back(std::make_unique<OverlappingStage>(ctx, stage * 2, stage * 2 + 2));
      pointers.push_back(chunks.back().get());
    }
    ToyLoss loss;
    const auto& list = lists[pp->rank()];
    PipelineExecutor(shape, pp, pointers).Run(ctx, list, Batches(7), &loss, true);
    const auto want = std::count_if(list.begin(), list.end(), [](const Action& a) {
      return a.kind == Action::Kind::kForwardBackward;
    });
    EXPECT_EQ(chunks[0]->pairs + chunks[1]->pairs, want);
    EXPECT_GT(want, 0);
    std::lock_guard lock(mutex);
    for (auto& chunk : chunks) AddGradients(chunk->Parameters(), got);
  });
  ExpectNear(got, Reference(7), 1e-12);
}

TEST(PipelineExecutor, AnErrorOnOneRankEndsTheOthersWithinTheDeadline) {
  const PipelineShape shape{ScheduleKind::k1F1B, 4, 1, 6};
  const auto lists = BuildSchedule(shape);
  std::atomic<int> failed = 0;
  const auto start = std::chrono::steady_clock::now();
  try {
    RunThreadRanks(4,
                   [&](GroupPtr pp) {
                     Context ctx;
                     auto chunks = ToyChunks(ctx, shape, pp->rank());
                     if (pp->rank() == 2) chunks[0]->forward_throws_on = 3;
                     ToyLoss loss;
                     try {
                       PipelineExecutor(shape, pp, Pointers(chunks))
                           .Run(ctx, lists[pp->rank()], Batches(6), &loss, true);
                     } catch (...) {
                       ++failed;
                       EXPECT_EQ(ctx.weight_gradients, nullptr);
                       throw;
                     }
                   },
                   {.deadline = std::chrono::seconds(5)});
    FAIL() << "no rank failed";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr("forward gave up"));
  }
  EXPECT_EQ(failed, 4);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
}

TEST(PipelineExecutor, RefusesAGroupOrChunksThatDoNotFit) {
  Context ctx;
  const PipelineShape one{ScheduleKind::k1F1B, 1, 1, 2}, two{ScheduleKind::k1F1B, 2, 1, 2};
  ToyStage stage(ctx, 0, testing::kToyLayers);
  EXPECT_THROW(PipelineExecutor(two, nullptr, {&stage}), ConfigError);
  EXPECT_THROW(PipelineExecutor(one, nullptr, {&stage, &stage}), ConfigError);
}

}  // namespace
}  // namespace hone::parallel
