// ranks: 2 4
// ZeRO-1 against AdamW on whole tensors, written out below in plain double arithmetic.
#include "parallel/sharded_optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "runtime/error.h"
#include "tests/parallel/parameters.h"
#include "tests/parallel/ranks.h"

namespace hone::parallel {
namespace {

constexpr int kParts = 4;  // a gradient is the sum of so many, spread over the replicas
constexpr int kSteps = 6;
constexpr double kLr = 0.01;

const std::vector<ParamShape> kShapes = {
    {.name = "head", .shape = {37, 5}},
    {.name = "norm", .shape = {9}, .decay = false},
    {.name = "experts", .shape = {8, 3, 4}, .expert = true},
    {.name = "few_rows", .shape = {3, 11}},
    {.name = "frozen", .shape = {6, 2}, .trainable = false},
    {.name = "embed", .shape = {64, 3}},
};

double Part(const std::string& name, int64_t element, int part, int step) {
  return Scrambled(name, element, 1000 * step + part + 1) * (step == 3 ? 0.01 : 1.0);
}
double WholeGradient(const std::string& name, int64_t element, int step) {
  double sum = 0;
  for (int part = 0; part < kParts; ++part) sum += Part(name, element, part, step);
  return sum;
}

// AdamW on whole tensors: Loshchilov & Hutter, algorithm 2, with the gradient clipped to norm 1
// first.
class Reference {
 public:
  explicit Reference(const AdamWConfig& config) : config_(config) {
    for (const ParamShape& shape : kShapes) {
      Entry& entry = entries_[shape.name];
      for (int64_t i = 0; i < runtime::NumElements(shape.shape); ++i) {
        entry.value.push_back(Scrambled(shape.name, i, 0));
      }
      entry.m.resize(entry.value.size());
      entry.v.resize(entry.value.size());
    }
  }
  // Returns the norm before clipping.
  double Step(int step) {
    double squares = 0;
    for (const ParamShape& shape : kShapes) {
      if (!shape.trainable) continue;
      for (int64_t i = 0; i < runtime::NumElements(shape.shape); ++i) {
        squares += std::pow(WholeGradient(shape.name, i, step), 2);
      }
    }
    double norm = std::sqrt(squares);
    double scale = config_.clip > 0 ? std::min(1.0, config_.clip / (norm + 1e-6)) : 1.0;
    for (const ParamShape& shape : kShapes) {
      if (!shape.trainable) continue;
      Entry& e = entries_[shape.name];
      for (int64_t i = 0; i < static_cast<int64_t>(e.value.size()); ++i) {
        double g = WholeGradient(shape.name, i, step) * scale;
        e.m[i] = config_.beta1 * e.m[i] + (1 - config_.beta1) * g;
        e.v[i] = config_.beta2 * e.v[i] + (1 - config_.beta2) * g * g;
        double m_hat = e.m[i] / (1 - std::pow(config_.beta1, step));
        double v_hat = e.v[i] / (1 - std::pow(config_.beta2, step));
        double decay = shape.decay ? config_.weight_decay : 0;
        e.value[i] -= kLr * (m_hat / (std::sqrt(v_hat) + config_.eps) + decay * e.value[i]);
      }
    }
    return norm;
  }
  struct Entry {
    std::vector<double> value, m, v;
  };
  const Entry& at(const std::string& name) const { return entries_.at(name); }

 private:
  AdamWConfig config_;
  std::map<std::string, Entry> entries_;
};

// One rank's model and optimizer.
struct Rank {
  Rank(const MeshConfig& config, const GroupPtr& world, const AdamWConfig& adamw,
       DType storage = DType::kF64, DType master = DType::kF64)
      : mesh(config, world) {
    for (const ParamShape& shape : kShapes) {
      owned.push_back(MakeParameter(ctx, shape, mesh.ep_index(), config.ep, storage, master));
    }
    reducer = std::make_unique<GradientReducer>(ctx, mesh, Pointers(owned),
                                                GradientReducer::Options{.bucket_bytes = 2000});
    optimizer = std::make_unique<ShardedOptimizer>(ctx, mesh, Pointers(owned), adamw);
  }
  void Reduce(int step, double poison = 0) {
    for (auto& p : owned) {
      if (!p->spec.trainable) continue;
      bool expert = p->spec.reduce == ReduceGroup::kExpert;
      const GroupPtr& group = expert ? mesh.expert_data() : mesh.dp();
      FillGradient(*p, [&](int64_t e) {
        double sum = 0;
        for (int part = group->rank(); part < kParts; part += group->size()) {
          sum += Part(p->spec.name, e, part, step);
        }
        return sum + (e == 0 ? poison : 0);
      });
      reducer->MarkReady(p.get());
    }
    reducer->Finish();
  }
  ShardedOptimizer::Result Step(int step) {
    Reduce(step);
    return optimizer->Step(*reducer, kLr);
  }
  std::vector<std::vector<double>> Values() const {
    std::vector<std::vector<double>> values;
    for (auto& p : owned) values.push_back(ToDoubles(p->value));
    return values;
  }

  Context ctx;
  Mesh mesh;
  std::vector<std::unique_ptr<Parameter>> owned;
  std::unique_ptr<GradientReducer> reducer;
  std::unique_ptr<ShardedOptimizer> optimizer;
};

void ExpectValues(const Rank& rank, const Reference& reference) {
  for (const auto& p : rank.owned) {
    std::vector<double> values = ToDoubles(p->value);
    int64_t first = FirstElement(*p);
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_NEAR(values[i], reference.at(p->spec.name).value[first + i], 1e-12)
          << p->spec.name << " " << first + i;
    }
  }
}

const std::vector<MeshConfig> kLayouts = {{1, 1, 1}, {1, 2, 1}, {1, 2, 2},
                                          {1, 4, 1}, {1, 4, 2}, {1, 4, 4}};

void OnLayouts(const std::function<void(const MeshConfig&, const GroupPtr&)>& body) {
  for (const MeshConfig& config : kLayouts) {
    if (MpiWorld() != nullptr && config.ranks() != MpiWorld()->size()) continue;
    SCOPED_TRACE(config.ToString());
    OnRanks({config.ranks()}, [&](const GroupPtr& world) { body(config, world); });
  }
}

TEST(ShardedOptimizer, EveryLayoutTakesTheStepsOfOneRank) {
  for (double clip : {0.0, 1.0, 2.0}) {
    OnLayouts([&](const MeshConfig& config, const GroupPtr& world) {
      AdamWConfig adamw{.clip = clip};
      Rank rank(config, world, adamw);
      Reference reference(adamw);
      for (int step = 1; step <= kSteps; ++step) {
        ShardedOptimizer::Result result = rank.Step(step);
        double norm = reference.Step(step);
        EXPECT_FALSE(result.skipped);
        EXPECT_NEAR(result.gradient_norm, norm, 1e-12 * norm);
        std::string bits(sizeof(double), 0);
        std::memcpy(bits.data(), &result.gradient_norm, sizeof(double));
        EXPECT_THAT(world->AllGatherBytes(bits), testing::Each(bits));
      }
      EXPECT_EQ(rank.optimizer->step(), kSteps);
      ExpectValues(rank, reference);
    });
  }
}

TEST(ShardedOptimizer, AGradientThatIsNotFiniteChangesNothing) {
  for (double poison : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    OnLayouts([&](const MeshConfig& config, const GroupPtr& world) {
      Rank rank(config, world, {});
      rank.Step(1);
      auto before = rank.Values();
      // Of one rank only: whoever holds its rows, all skip.
      rank.Reduce(2, world->rank() == world->size() - 1 ? poison : 0);
      auto result = rank.optimizer->Step(*rank.reducer, kLr);
      EXPECT_TRUE(result.skipped);
      EXPECT_EQ(rank.Values(), before);
      EXPECT_EQ(rank.optimizer->step(), 1);
      Reference reference({});
      reference.Step(1);
      rank.Step(2);
      reference.Step(2);
      ExpectValues(rank, reference);
    });
  }
}

// Squares that f32 cannot hold would leave second moments infinite for good. Clipped, they fit.
TEST(ShardedOptimizer, AGradientWhoseSquareOverflowsChangesNothing) {
  for (double clip : {0.0, 1.0}) {
    OnLayouts([&](const MeshConfig& config, const GroupPtr& world) {
      AdamWConfig adamw;
      adamw.clip = clip;
      Rank rank(config, world, adamw, DType::kF32, DType::kF32);
      rank.Step(1);
      auto before = rank.Values();
      rank.Reduce(2, 1e25);
      auto result = rank.optimizer->Step(*rank.reducer, kLr);
      EXPECT_EQ(result.skipped, clip == 0);
      EXPECT_EQ(rank.Values() == before, clip == 0);
      for (const SlabTensor& st : rank.optimizer->State()) {
        for (double v : ToDoubles(st.tensor)) ASSERT_TRUE(std::isfinite(v)) << st.slab.name;
      }
    });
  }
}

// Tensors of a whole state: what the slabs of all ranks make up.
using Whole = std::map<std::string, std::vector<double>>;

std::vector<int64_t> ElementsOf(const Slab& slab) {  // rows of dim 0, whole in the other dims
  int64_t row = 1;
  for (size_t d = 1; d < slab.extent.size(); ++d) {
    EXPECT_EQ(slab.extent[d], slab.global_shape[d]);
    row *= slab.extent[d];
  }
  std::vector<int64_t> elements;
  for (int64_t i = 0; i < slab.extent[0] * row; ++i) {
    elements.push_back(slab.offset[0] * row + i);
  }
  return elements;
}

void Save(Rank& rank, Whole* whole, std::mutex* mutex) {
  std::lock_guard lock(*mutex);
  for (const SlabTensor& st : rank.optimizer->State()) {
    EXPECT_EQ(st.tensor.shape(), st.slab.extent);
    auto& values = (*whole)[st.slab.name];
    values.resize(runtime::NumElements(st.slab.global_shape), std::nan(""));
    std::vector<double> mine = ToDoubles(st.tensor);
    std::vector<int64_t> elements = ElementsOf(st.slab);
    for (size_t i = 0; i < mine.size(); ++i) values[elements[i]] = mine[i];
  }
}

void Load(Rank& rank, const Whole& whole) {
  for (const SlabTensor& st : rank.optimizer->State()) {
    std::vector<int64_t> elements = ElementsOf(st.slab);
    for (size_t i = 0; i < elements.size(); ++i) {
      StoreAs(st.tensor, static_cast<int64_t>(i), whole.at(st.slab.name)[elements[i]]);
    }
  }
}

TEST(ShardedOptimizer, StateOfOneLayoutGoesOnInAnother) {
  if (MpiWorld() != nullptr) GTEST_SKIP() << "ranks share memory here";
  Reference reference({});
  for (int step = 1; step <= 3; ++step) reference.Step(step);
  Reference half = reference;
  for (int step = 4; step <= kSteps; ++step) reference.Step(step);
  for (const MeshConfig& from : kLayouts) {
    Whole whole;
    std::mutex mutex;
    RunThreadRanks(from.ranks(), [&](const GroupPtr& world) {
      Rank rank(from, world, {});
      for (int step = 1; step <= 3; ++step) rank.Step(step);
      Save(rank, &whole, &mutex);
    });
    ASSERT_EQ(whole.size(), 3 * (kShapes.size() - 1));
    for (const ParamShape& shape : kShapes) {
      if (!shape.trainable) continue;
      const auto& [value, m, v] = half.at(shape.name);
      EXPECT_THAT(whole.at("optimizer/master/" + shape.name),
                  testing::Pointwise(testing::DoubleNear(1e-12), value));
      EXPECT_THAT(whole.at("optimizer/exp_avg/" + shape.name),
                  testing::Pointwise(testing::DoubleNear(1e-12), m));
      EXPECT_THAT(whole.at("optimizer/exp_avg_sq/" + shape.name),
                  testing::Pointwise(testing::DoubleNear(1e-12), v));
    }
    for (const MeshConfig& to : kLayouts) {
      SCOPED_TRACE(from.ToString() + " to " + to.ToString());
      RunThreadRanks(to.ranks(), [&](const GroupPtr& world) {
        Rank rank(to, world, {});
        for (auto& p : rank.owned) {
          if (p->spec.trainable) runtime::FillZero(p->value.raw(), {}, p->value.bytes(), nullptr);
        }
        Load(rank, whole);
        rank.optimizer->set_step(3);
        rank.optimizer->PublishMasters();
        ExpectValues(rank, half);
        for (int step = 4; step <= kSteps; ++step) rank.Step(step);
        ExpectValues(rank, reference);
      });
    }
  }
}

TEST(ShardedOptimizer, ResetBeginsAnew) {
  OnLayouts([](const MeshConfig& config, const GroupPtr& world) {
    Rank rank(config, world, {});
    for (int step = 1; step <= 3; ++step) rank.Step(step);
    for (auto& p : rank.owned) {
      for (int64_t i = 0; i < p->value.size(); ++i) {
        StoreAs(p->value, i, Scrambled(p->spec.name, FirstElement(*p) + i, 0));
      }
    }
    rank.optimizer->Reset();
    EXPECT_EQ(rank.optimizer->step(), 0);
    Reference reference({});
    for (int step = 1; step <= 2; ++step) {
      rank.Step(step);
      reference.Step(step);
    }
    ExpectValues(rank, reference);
  });
}

TEST(ShardedOptimizer, ValuesOfLessPrecisionAreRoundedMasters) {
  OnLayouts([](const MeshConfig& config, const GroupPtr& world) {
    Rank rank(config, world, {.moments = DType::kBF16}, DType::kBF16, DType::kF32);
    for (int step = 1; step <= 2; ++step) rank.Step(step);
    size_t seen = 0;
    SlabIndex state = rank.optimizer->State();
    for (const SlabTensor& st : state) {
      bool master = st.slab.name.starts_with("optimizer/master/");
      EXPECT_EQ(st.tensor.dtype(), master ? DType::kF32 : DType::kBF16);
      for (auto& p : rank.owned) {
        if (st.slab.name != "optimizer/master/" + p->spec.name) continue;
        std::vector<float> masters = ToVector<float>(st.tensor);
        std::vector<BF16> values = ToVector<BF16>(p->value);
        std::vector<int64_t> elements = ElementsOf(st.slab);
        for (size_t i = 0; i < masters.size(); ++i, ++seen) {
          EXPECT_EQ(values[elements[i] - FirstElement(*p)].bits, BF16(masters[i]).bits);
        }
      }
    }
    EXPECT_GT(seen, 0u);
    // Every replica has the same values, wherever they were computed.
    for (auto& p : rank.owned) {
      const GroupPtr& group =
          p->spec.reduce == ReduceGroup::kExpert ? rank.mesh.expert_data() : rank.mesh.dp();
      std::string bytes(static_cast<const char*>(p->value.raw()), p->value.bytes());
      EXPECT_THAT(group->AllGatherBytes(bytes), testing::Each(bytes));
    }
  });
}

// The embedding on the first rank and its replica under another name on the last: one parameter in
// the norm, one in the state, and equal to the bit afterwards.
TEST(ShardedOptimizer, ReplicasCountOnceAndStayEqual) {
  for (MeshConfig config : {MeshConfig{2, 1, 1}, {2, 2, 1}}) {
    if (MpiWorld() != nullptr && config.ranks() != MpiWorld()->size()) continue;
    SCOPED_TRACE(config.ToString());
    OnRanks({config.ranks()}, [&](const GroupPtr& world) {
      Context ctx;
      Mesh mesh(config, world);
      ParamShape shape{.name = "embed", .shape = {7, 3}};
      if (mesh.pp_index() == 1) shape = {.name = "head", .shape = {7, 3}, .tied_to = "embed"};
      auto p = MakeParameter(ctx, shape, 0, 1, DType::kF32, DType::kF32);
      GradientReducer reducer(ctx, mesh, {p.get()}, {});
      ShardedOptimizer optimizer(ctx, mesh, {p.get()}, {});
      for (int step = 1; step <= 3; ++step) {
        double squares = 0;
        for (int64_t e = 0; e < 21; ++e) {
          double sum = 0;
          for (int r = 0; r < config.ranks(); ++r) sum += Part("tied", e, r, step);
          squares += sum * sum;
        }
        FillGradient(*p, [&](int64_t e) { return Part("tied", e, world->rank(), step); });
        reducer.MarkReady(p.get());
        reducer.Finish();
        auto result = optimizer.Step(reducer, kLr);
        EXPECT_NEAR(result.gradient_norm, std::sqrt(squares), 1e-6 * std::sqrt(squares));
      }
      std::string bytes(static_cast<const char*>(p->value.raw()), p->value.bytes());
      EXPECT_THAT(world->AllGatherBytes(bytes), testing::Each(bytes));
      EXPECT_EQ(optimizer.State()[0].slab.name, "optimizer/master/embed");
    });
  }
}

TEST(AdamWConfig, IsReadFromConfig) {
  Config file = Config::FromString("{beta2: 0.99, clip: 0.5, moments: bf16}");
  ConfigReader reader(file);
  AdamWConfig config;
  config.Read(reader);
  reader.Finish();
  EXPECT_EQ(config.beta1, 0.9);
  EXPECT_EQ(config.beta2, 0.99);
  EXPECT_EQ(config.clip, 0.5);
  EXPECT_EQ(config.moments, DType::kBF16);
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) { return hone::parallel::RunRankTests(argc, argv); }
