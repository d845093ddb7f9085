#include <cstring>
#include <nlohmann/json.hpp>

#include "data/packing.h"
#include "parallel/comm/process_group.h"
#include "rl/policy_loss.h"
#include "rl/stages/stages.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

using nlohmann::json;

// Examples of this stage's own source followed by what earlier stages wrote.
class Concatenation : public data::ExampleSource {
 public:
  explicit Concatenation(std::vector<std::shared_ptr<data::ExampleSource>> parts)
      : parts_(std::move(parts)) {}
  int64_t size() const override {
    int64_t n = 0;
    for (auto& part : parts_) n += part->size();
    return n;
  }
  data::Example At(int64_t index) const override {
    const data::ExampleSource& part = Find(&index);
    return part.At(index);
  }
  std::string Where(int64_t index) const override {
    const data::ExampleSource& part = Find(&index);
    return part.Where(index);
  }
  std::vector<const data::ExampleSource*> Parts() const override {
    std::vector<const data::ExampleSource*> parts;
    for (auto& part : parts_) parts.push_back(part.get());
    return parts;
  }

 private:
  // The part that holds example `index`, which becomes its index there.
  const data::ExampleSource& Find(int64_t* index) const {
    for (auto& part : parts_) {
      if (*index < part->size()) return *part;
      *index -= part->size();
    }
    throw DataError("[data] no example past the end");
  }

  std::vector<std::shared_ptr<data::ExampleSource>> parts_;
};

std::shared_ptr<data::ExampleSource> TrainingSource(const Environment& env,
                                                    const StageConfig& stage) {
  if (stage.samples.empty()) return stage.data;
  std::vector<std::shared_ptr<data::ExampleSource>> parts;
  if (stage.data) parts.push_back(stage.data);  // which has an end: ReadSupervised saw to it
  for (const std::string& name : stage.samples) {
    bool path = name.find('/') != std::string::npos;
    parts.push_back(ReadSamples(path ? name : env.directory.dataset(name)));
  }
  return std::make_shared<Concatenation>(std::move(parts));
}

constexpr int64_t kMeasuredAtOnce = 1024;  // examples a rank, between two looks at `stop`
constexpr std::chrono::seconds kBetweenLines{10};

// Steps that `epochs` of the data make. They depend on the lengths of all examples in tokens: every
// rank measures its part of each block of them.
int64_t CountSteps(Environment& env, const StageConfig& stage, const data::DataLoader& loader,
                   int64_t examples) {
  auto& world = env.world();
  std::vector<int32_t> lengths;
  auto said = std::chrono::steady_clock::now();
  while (static_cast<int64_t>(lengths.size()) < examples) {
    const auto done = static_cast<int64_t>(lengths.size());
    const int64_t begin = std::min(examples, done + world.rank() * kMeasuredAtOnce);
    const int64_t end = std::min(examples, begin + kMeasuredAtOnce);
    const std::vector<int32_t> mine = loader.Lengths(begin, end, env.learner.ctx().pool());
    std::string bytes;
    for (const std::string& part : world.AllGatherBytes(
             {reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(int32_t)})) {
      bytes += part;
    }
    lengths.resize(static_cast<size_t>(done) + bytes.size() / sizeof(int32_t));
    std::memcpy(lengths.data() + done, bytes.data(), bytes.size());
    if (static_cast<int64_t>(lengths.size()) == examples) break;
    Check<StoppedEarly>(
        !env.AgreeToStop(),
        "[run] stopped while stage '{}' counted its steps; the same command goes on", stage.name);
    const auto now = std::chrono::steady_clock::now();
    if (env.root() && now - said > kBetweenLines) {
      said = now;
      fmt::print(stderr, "{}: counting steps: {} of {} examples read\n", stage.name, lengths.size(),
                 examples);
    }
  }
  return loader.CountSteps(lengths);
}

constexpr int64_t kExamplesHashed = 64;

// What a position in the data counts in: the number of examples, on which an epoch's order depends,
// and a hash of a few of them.
std::string DataMark(const data::ExampleSource& source) {
  const int64_t n = source.size(), looked_at = std::min(n, kExamplesHashed);
  if (n < 0) return "without an end";
  uint64_t hash = 0;
  for (int64_t k = 0; k < looked_at; ++k) {
    const data::Example example = source.At(k * n / looked_at);
    hash = HashName(fmt::format("{:x} {} {}", hash, example.prompt, example.completion));
  }
  return fmt::format("{} examples ({:016x})", n, hash);
}

// Mean loss over the first packs of the held-out source: the same ones every time.
class HeldoutLoss {
 public:
  HeldoutLoss(Environment& env, const StageConfig& stage) : env_(env) {
    if (!stage.heldout) return;
    data::DataLoader::Options options =
        LoaderOptions(env.config, stage, env.learner.mesh().dp_index());
    options.repeat = true;
    data::DataLoader loader(stage.heldout, env.tokenizer, options);
    batches_ = loader.Next().microbatches;
  }
  bool defined() const { return !batches_.empty(); }
  double Measure() {
    double loss = 0;
    for (auto& outcome : env_.learner.engine().Evaluate(batches_, CrossEntropyLoss(), false)) {
      loss += outcome.loss;
    }
    return env_.Sum({loss})[0];
  }

 private:
  Environment& env_;
  std::vector<TokenBatch> batches_;
};

bool Reached(Environment& env, const StageConfig& stage, int64_t step) {
  if (!stage.until || step == 0 || step % stage.until->every != 0) return false;
  for (const EvaluationSuite& suite : env.config.suites) {
    if (suite.name != stage.until->suite) continue;
    EvaluationScores scores = RunSuite(env, suite, fmt::format("{}/step-{}", stage.name, step));
    auto it = scores.find(stage.until->metric);
    // CheckReferences knows the names; some are of problems that the suite does not have.
    Check<ConfigError>(it != scores.end(), "{}: until.metric: suite '{}' has no metric '{}'",
                       stage.where, suite.name, stage.until->metric);
    if (env.root()) {
      fmt::print(stderr, "{} step {}: {} {} {:.3f}, wanted {:.3f}\n", stage.name, step, suite.name,
                 it->first, it->second, stage.until->at_least);
    }
    return it->second >= stage.until->at_least;
  }
  return false;
}

}  // namespace

void RunSupervised(Environment& env, const StageConfig& stage) {
  auto source = TrainingSource(env, stage);
  data::DataLoader::Options options =
      LoaderOptions(env.config, stage, env.learner.mesh().dp_index());
  data::DataLoader loader(source, env.tokenizer, options);
  int64_t total = stage.steps > 0 ? stage.steps : CountSteps(env, stage, loader, source->size());
  Check<DataError>(total > 0, "{}: stage '{}': the data is empty", stage.where, stage.name);
  TrainingLoop loop(env, stage, total);
  const std::string mark = DataMark(*source);
  if (!loop.resumed().is_null()) {
    const std::string before = loop.resumed().value("data", mark);  // older ones do not say it
    Check<DataError>(before == mark,
                     "{}: stage '{}' cannot go on: its data were {} and are {} now; put back what "
                     "they were, or begin the stage anew by removing {}",
                     stage.where, stage.name, before, mark, env.directory.checkpoints(stage.name));
    loader.set_state({loop.resumed().at("next_index"), loop.resumed().at("epoch")});
  }
  auto cursor = [&loader, &mark] {
    const data::LoaderState at = loader.state();
    return json{{"next_index", at.next_index}, {"epoch", at.epoch}, {"data", mark}};
  };
  HeldoutLoss heldout(env, stage);
  CrossEntropyLoss loss;
  // Looks before a step, not behind one: so a run that goes on at a step looks there again, since
  // it may have been saved before it looked. What the look samples is in the journal by then.
  auto reached = [&] {
    try {
      return Reached(env, stage, loop.step());
    } catch (const StoppedEarly&) {
      loop.StopHere(cursor());
    }
  };
  while (!reached() && loop.step() < total) {
    auto data = loader.Next();
    if (data.end) break;
    // A last step of few sequences may have fewer packs than the schedule wants.
    const auto packs = static_cast<int64_t>(data.microbatches.size());
    data.microbatches.resize(
        static_cast<size_t>(env.learner.pipeline_shape().FittingMicrobatches(packs)),
        data::WeightlessBatch(*env.tokenizer));
    auto result = env.learner.engine().Step(data.microbatches, loss, loop.lr());
    json extra = json::object();
    for (const auto& [name, value] : result.metrics) extra[name] = value;
    int64_t step = loop.step() + 1;
    if (heldout.defined() && (step % stage.heldout_every == 0 || step == 1 || step == total)) {
      extra["heldout_loss"] = heldout.Measure();
    }
    loop.FinishStep(result, data.tokens, extra, cursor);
  }
  loop.Complete(cursor());
}

}  // namespace hone::rl
