// emulated: random:3
// timeout: 600
// The engine against itself under every way of batching, and against the training forward: tokens
// and log-probabilities are the same to the bit.
#include "rl/rollout/inference_engine.h"

#include <map>
#include <set>

#include "data/packing.h"
#include "parallel/train_engine.h"
#include "rl/policy_loss.h"
#include "runtime/error.h"
#include "tests/device.h"
#include "tests/rl/rollout_testing.h"

namespace hone::rl {
namespace {

using Results = std::map<uint64_t, GenerateResult>;

constexpr int64_t kPrompts = 4, kGroup = 5, kNewTokens = 24;

std::string OneByte(int32_t id) { return std::string(1, static_cast<char>(id)); }

// Prompts of 3 to 36 tokens, kGroup samples of each; ids 1…20.
std::vector<GenerateRequest> Requests(bool groups) {
  std::vector<GenerateRequest> requests;
  for (int64_t p = 0; p < kPrompts; ++p) {
    for (int64_t s = 0; s < kGroup; ++s) {
      GenerateRequest r;
      r.id = static_cast<uint64_t>(p * kGroup + s + 1);
      r.prompt = PromptTokens(3 + 11 * p, static_cast<uint64_t>(p));
      r.max_new_tokens = kNewTokens - s;
      r.sampling = {.temperature = 0.7 + 0.1 * static_cast<double>(s), .top_p = 1, .top_k = 0};
      if (s == 1) r.sampling.top_p = 0.9;
      if (s == 2) r.sampling.top_k = 20;
      r.stop_ids = {7, 8, 9};
      r.stream = RandomStream{5, static_cast<uint64_t>(p), static_cast<uint64_t>(s)};
      r.group = groups ? static_cast<uint64_t>(p + 1) : 0;
      requests.push_back(std::move(r));
    }
  }
  return requests;
}

Results RunAll(InferenceEngine& engine, int64_t step_limit = 4000) {
  Results results;
  while (engine.pending() > 0 && step_limit-- > 0) {
    for (GenerateResult& r : engine.Step()) results[r.id] = std::move(r);
  }
  EXPECT_EQ(engine.pending(), 0) << "the engine makes no progress";
  return results;
}

void ExpectSame(const Results& a, const Results& b, const std::string& where) {
  ASSERT_EQ(a.size(), b.size()) << where;
  for (const auto& [id, r] : a) {
    const GenerateResult& other = b.at(id);
    EXPECT_EQ(r.tokens, other.tokens) << where << ", request " << id;
    EXPECT_EQ(r.logp, other.logp) << where << ", request " << id;
    EXPECT_EQ(r.finish, other.finish) << where << ", request " << id;
    EXPECT_EQ(r.routing_TLK, other.routing_TLK) << where << ", request " << id;
  }
}

struct Case {
  std::string name;
  EngineConfig config;
  bool groups;
};

std::vector<Case> Cases() {
  EngineConfig base{.max_batch = 64, .page_size = 16, .max_tokens = kContext};
  std::vector<Case> cases;
  // An emulated GPU takes its time: there the shapes that do not differ in much are left out.
  const bool all = TestDevice().is_cpu();
  auto add = [&](const std::string& name, bool groups, auto change) {
    EngineConfig c = base;
    change(c);
    cases.push_back({name, c, groups});
  };
  for (int64_t batch : {1, 7, 64}) {
    for (bool groups : {false, true}) {
      if (!all && (batch != 7 || !groups)) continue;
      add("batch " + std::to_string(batch) + (groups ? " groups" : ""), groups,
          [&](EngineConfig& c) { c.max_batch = batch; });
    }
  }
  for (int64_t page : {1, 4, 128}) {
    if (!all && page != 4) continue;
    add("page " + std::to_string(page), true, [&](EngineConfig& c) { c.page_size = page; });
  }
  for (int64_t chunk : {1, 5, 17}) {
    if (!all) continue;
    add("chunk " + std::to_string(chunk), true, [&](EngineConfig& c) { c.prefill_chunk = chunk; });
  }
  for (bool groups : {false, true}) {
    // The longest sequence takes 60 tokens, 30 pages of 2.
    add(groups ? "tiny cache, groups" : "tiny cache", groups, [&](EngineConfig& c) {
      c.page_size = 2;
      c.cache_pages = 32;
      c.prefill_chunk = 9;
    });
  }
  return cases;
}

class EngineTest : public testing::TestWithParam<bool> {
 protected:
  EngineTest()
      : config_(GetParam() ? MoeModel() : DenseModel()), model_(MakeModel(ctx_, config_)) {}

  Results Draw(const EngineConfig& config, std::vector<GenerateRequest> requests,
               EngineStats* stats = nullptr) {
    InferenceEngine engine(ctx_, *model_, config, OneByte);
    for (GenerateRequest& r : requests) engine.Add(std::move(r));
    Results results = RunAll(engine);
    if (stats) *stats = engine.stats();
    return results;
  }
  EngineConfig Usual() const {
    return {.page_size = 16, .max_tokens = kContext, .record_routing = GetParam()};
  }

  Context ctx_{TestDevice()};
  model::ModelConfig config_;
  std::unique_ptr<model::TransformerStage> model_;
};

TEST_P(EngineTest, BatchPagesChunksAndGroupsLeaveTheBits) {
  EngineConfig alone = Usual();
  alone.max_batch = 1;
  Results expected = Draw(alone, Requests(false));
  ASSERT_EQ(expected.size(), static_cast<size_t>(kPrompts * kGroup));
  bool stopped = false, full = false;
  for (auto& [id, r] : expected) {
    stopped = stopped || r.finish == FinishReason::kStop;
    full = full || r.finish == FinishReason::kLength;
  }
  EXPECT_TRUE(stopped && full) << "the requests end in one way only";
  for (const Case& c : Cases()) {
    EngineConfig config = c.config;
    config.record_routing = GetParam();
    EngineStats stats;
    ExpectSame(expected, Draw(config, Requests(c.groups), &stats), c.name);
    if (config.cache_pages > 0) {
      EXPECT_GT(stats.preemptions, 0) << c.name << " was to preempt";
    } else {
      EXPECT_EQ(stats.preemptions, 0) << c.name;
    }
  }
}

// Caches in which hardly more than one sequence fits, under every order of growing, sharing and
// preempting that comes of it.
TEST_P(EngineTest, TightCachesOfManyShapesLeaveTheBits) {
  if (!TestDevice().is_cpu()) GTEST_SKIP() << "the engine's books are the same on every device";
  Results expected = Draw(Usual(), Requests(false));
  RandomStream random{31};
  for (uint64_t i = 0; i < 30; ++i) {
    auto below = [&](uint64_t n, uint64_t which) {
      return static_cast<int64_t>(random.Below(n, 8 * i + which));
    };
    EngineConfig config = Usual();
    config.page_size = int64_t{1} << below(4, 0);
    config.cache_pages = 60 / config.page_size + 2 + below(12, 1);
    config.max_batch = 2 + below(9, 2);
    config.prefill_chunk = 1 + below(12, 3);
    std::vector<GenerateRequest> requests = Requests(true);
    for (size_t r = requests.size(); r-- > 1;) {
      std::swap(requests[r], requests[random.Below(r + 1, 1000 * (i + 1) + r)]);
    }
    ExpectSame(expected, Draw(config, requests),
               fmt::format("{} pages of {}, batch {}, chunk {}", config.cache_pages,
                           config.page_size, config.max_batch, config.prefill_chunk));
  }
}

TEST_P(EngineTest, AGroupsPromptIsPrefilledOnce) {
  EngineStats alone, grouped;
  Draw(Usual(), Requests(false), &alone);
  Draw(Usual(), Requests(true), &grouped);
  int64_t prompts = 0, full_pages = 0;
  for (int64_t p = 0; p < kPrompts; ++p) {
    prompts += 3 + 11 * p;
    full_pages += (3 + 11 * p) / 16;
  }
  EXPECT_EQ(alone.prefill_tokens, prompts * kGroup);
  EXPECT_EQ(grouped.prefill_tokens, prompts);
  EXPECT_EQ(grouped.shared_pages, full_pages * (kGroup - 1));
  EXPECT_EQ(alone.decoded_tokens, grouped.decoded_tokens);
}

TEST_P(EngineTest, ReplayedStepsLeaveTheBits) {
  EngineConfig config = Usual();
  config.max_batch = 13;  // fewer and fewer towards the end: batches of many sizes
  config.replay = false;
  std::vector<GenerateRequest> requests = Requests(true);
  if (GetParam()) requests.resize(3);  // an emulated GPU takes its time
  EngineStats run, replayed;
  Results expected = Draw(config, requests, &run);
  EXPECT_EQ(run.replayed_steps, 0);
  config.replay = true;
  ExpectSame(expected, Draw(config, requests, &replayed), "replayed");
  const bool replays = !TestDevice().is_cpu();
  EXPECT_EQ(replayed.replayed_steps > replayed.steps / 4, replays) << replayed.replayed_steps;
  // A layer of experts cuts a step twice: where the host reads its choices, and behind its
  // products.
  EXPECT_EQ(replayed.replayed_graphs, (GetParam() ? 3 : 1) * replayed.replayed_steps);
}

TEST_P(EngineTest, ContinuesWhatAnotherLeaseBegan) {
  Results expected = Draw(Usual(), Requests(false));
  for (size_t kept : {1, 4, 11}) {
    std::vector<GenerateRequest> requests;
    for (GenerateRequest& r : Requests(true)) {
      const std::vector<int32_t>& tokens = expected.at(r.id).tokens;
      if (tokens.size() <= kept) continue;
      r.generated.assign(tokens.begin(), tokens.begin() + static_cast<int64_t>(kept));
      requests.push_back(r);
    }
    ASSERT_GT(requests.size(), 3u);
    Results rest = Draw(Usual(), requests);
    for (auto& [id, r] : rest) {
      const GenerateResult& whole = expected.at(id);
      EXPECT_EQ(r.tokens, whole.tokens) << id << " from token " << kept;
      EXPECT_EQ(r.logp, std::vector<float>(whole.logp.begin() + static_cast<int64_t>(kept),
                                           whole.logp.end()));
      EXPECT_EQ(r.routing_TLK, whole.routing_TLK);
    }
  }
}

// Given back in the middle and taken up again, over and over, by an engine with other settings.
TEST_P(EngineTest, DrainedWorkGoesOnElsewhere) {
  if (!TestDevice().is_cpu()) GTEST_SKIP() << "the engine's books are the same on every device";
  Results expected = Draw(Usual(), Requests(false));
  std::map<uint64_t, std::vector<float>> logp;
  Results done;
  std::vector<GenerateRequest> todo = Requests(true);
  for (int round = 0; !todo.empty(); ++round) {
    ASSERT_LT(round, 200);
    EngineConfig config = Usual();
    config.max_batch = 3 + round;
    config.page_size = 1 << round % 5;
    InferenceEngine engine(ctx_, *model_, config, OneByte);
    std::map<uint64_t, GenerateRequest> requests;
    for (GenerateRequest& r : todo) {
      requests[r.id] = r;
      engine.Add(r);
    }
    auto keep = [&](const GenerateResult& r) {
      logp[r.id].insert(logp[r.id].end(), r.logp.begin(), r.logp.end());
    };
    for (int step = 0; step < 5; ++step) {
      for (GenerateResult& r : engine.Step()) {
        keep(r);
        r.logp = logp[r.id];
        done[r.id] = std::move(r);
      }
    }
    todo.clear();
    for (GenerateResult& r : engine.Drain()) {
      EXPECT_EQ(r.finish, FinishReason::kCancelled);
      keep(r);
      requests[r.id].generated = r.tokens;
      todo.push_back(requests[r.id]);
    }
    EXPECT_EQ(engine.pending(), 0);
  }
  ExpectSame(expected, done, "drained");
}

// Cache and graphs are gone between two turns, and neither leaves a trace in what is drawn.
TEST_P(EngineTest, ItsMemoryComesAndGoes) {
  auto held = [&] { return ctx_.allocator()->Usage().live_total; };
  std::vector<GenerateRequest> requests = Requests(true);
  requests.resize(kGroup);
  for (GenerateRequest& r : requests) r.max_new_tokens = 6;
  EngineConfig config = Usual();
  const Results expected = Draw(config, requests);
  config.lazy_cache = true;
  const int64_t before = held();
  InferenceEngine engine(ctx_, *model_, config, OneByte);
  EXPECT_TRUE(engine.Step().empty());
  EXPECT_EQ(held(), before);
  for (int round = 0; round < 2; ++round) {
    for (const GenerateRequest& r : requests) engine.Add(r);
    EXPECT_GT(held(), before);
    EXPECT_THROW(engine.ReleaseCache(), Error);
    ExpectSame(expected, RunAll(engine), fmt::format("round {}", round));
    engine.ReleaseCache();
    EXPECT_EQ(held(), before);
  }
}

TEST_P(EngineTest, CancellingSomeLeavesTheOthers) {
  if (!TestDevice().is_cpu()) GTEST_SKIP() << "the engine's books are the same on every device";
  Results expected = Draw(Usual(), Requests(false));
  for (bool tiny : {false, true}) {
    EngineConfig config = Usual();
    config.max_batch = 6;
    if (tiny) {
      config.page_size = 2;
      config.cache_pages = 32;
    }
    config.prefill_chunk = 4;  // leaders are cancelled in the middle of their prompts
    InferenceEngine engine(ctx_, *model_, config, OneByte);
    for (GenerateRequest& r : Requests(true)) engine.Add(r);
    Results results;
    std::map<uint64_t, int> cancelled;
    RandomStream random{23};
    for (uint64_t step = 0; engine.pending() > 0 && step < 4000; ++step) {
      for (GenerateResult& r : engine.Step()) results[r.id] = std::move(r);
      uint64_t id = random.Below(5 * kPrompts * kGroup, step) + 1;
      if (id <= kPrompts * kGroup && engine.Cancel(id)) ++cancelled[id];
    }
    EXPECT_EQ(engine.pending(), 0) << "the engine makes no progress";
    EXPECT_GT(cancelled.size(), 2u);
    EXPECT_EQ(results.size() + cancelled.size(), static_cast<size_t>(kPrompts * kGroup));
    EXPECT_FALSE(engine.Cancel(1));
    for (auto& [id, r] : results) {
      EXPECT_EQ(r.tokens, expected.at(id).tokens) << id;
      EXPECT_EQ(r.logp, expected.at(id).logp) << id;
    }
    // Every page is free again: the longest sequence that fits the cache runs.
    GenerateRequest last = Requests(false).back();
    engine.Add(last);
    EXPECT_EQ(RunAll(engine).at(last.id).tokens, expected.at(last.id).tokens);
  }
}

// Log-probabilities of the engine's tokens by the forward that training runs, packed differently.
TEST_P(EngineTest, LogProbabilitiesAreTheTrainingForwards) {
  std::vector<GenerateRequest> requests = Requests(true);
  for (GenerateRequest& r : requests) r.sampling = {.temperature = 1.0, .top_p = 1, .top_k = 0};
  Results results = Draw(Usual(), requests);
  std::vector<data::TokenSequence> sequences;
  for (const GenerateRequest& r : requests) {
    data::TokenSequence s;
    s.tokens = r.prompt;
    s.tokens.insert(s.tokens.end(), results.at(r.id).tokens.begin(), results.at(r.id).tokens.end());
    s.weight.assign(s.tokens.size(), 1.0f);
    sequences.push_back(std::move(s));
  }
  parallel::Mesh mesh({}, parallel::MakeSingleGroup());
  parallel::TrainEngine trainer(ctx_, mesh, {model_.get()}, {});
  PolicyLossConfig plain;
  plain.kl_coefficient = 0;
  size_t next = 0;
  for (size_t pack : {1, 4, 15}) {
    std::vector<const data::TokenSequence*> members;
    for (size_t i = next; i < next + pack; ++i) members.push_back(&sequences[i]);
    TokenBatch batch = data::MakeBatch(members);
    for (auto* field :
         {&batch.sampled_logp_T, &batch.old_logp_T, &batch.reference_logp_T, &batch.advantage_T}) {
      field->assign(batch.token_T.size(), 0.0f);
    }
    auto outcomes = trainer.Evaluate({batch}, PolicyLoss(plain), true);
    const auto values = runtime::ToVector<float>(outcomes.at(0).head.logp_T);
    const float* logp = values.data();
    for (size_t i = 0; i < pack; ++i) {
      const GenerateRequest& r = requests[next + i];
      const GenerateResult& drawn = results.at(r.id);
      int64_t begin = batch.cu_seqlens[i] + static_cast<int64_t>(r.prompt.size()) - 1;
      std::vector<float> forward(logp + begin,
                                 logp + begin + static_cast<int64_t>(drawn.tokens.size()));
      EXPECT_EQ(forward, drawn.logp) << "request " << r.id << " in a pack of " << pack;
    }
    next += pack;
  }
  ASSERT_EQ(next, requests.size());
}

INSTANTIATE_TEST_SUITE_P(Models, EngineTest, testing::Values(false, true),
                         [](const auto& info) { return info.param ? "MoeMla" : "Dense"; });

// Experts in every layer and none of them shared, as in Qwen3-MoE. Each step chooses others.
TEST(EngineReplayTest, StepsWithOtherChoicesAreReplayed) {
  model::ModelConfig moe = DenseModel();
  moe.family = model::Family::kQwen3Moe;
  moe.n_routed_experts = 6;
  moe.num_experts_per_tok = 2;
  moe.moe_intermediate_size = 16;
  moe.FillDerived();
  Context ctx{TestDevice()};
  std::unique_ptr<model::TransformerStage> model = MakeModel(ctx, moe);
  EngineStats stats;
  auto draw = [&](bool replay) {
    EngineConfig config{.page_size = 16, .max_tokens = kContext, .record_routing = true};
    config.replay = replay;
    InferenceEngine engine(ctx, *model, config, OneByte);
    for (GenerateRequest& r : Requests(true)) {
      r.max_new_tokens = 8;
      r.stop_ids = {};
      if (r.id <= 9) engine.Add(std::move(r));  // filled up to 10 rows
    }
    Results results = RunAll(engine);
    stats = engine.stats();
    return results;
  };
  const Results expected = draw(false);
  ExpectSame(expected, draw(true), "replayed");
  EXPECT_EQ(stats.replayed_steps > stats.steps / 3, !TestDevice().is_cpu());
  EXPECT_EQ(stats.replayed_graphs, (2 * moe.num_hidden_layers + 1) * stats.replayed_steps);
  std::set<std::vector<int32_t>> choices;
  for (const auto& [id, r] : expected) {
    const std::vector<int32_t>& routing = r.routing_TLK;
    for (size_t i = 0; i + 4 <= routing.size(); i += 4) {
      choices.emplace(routing.begin() + static_cast<int64_t>(i),
                      routing.begin() + static_cast<int64_t>(i) + 4);
    }
  }
  EXPECT_GT(choices.size(), 8u);
}

class EngineLimitsTest : public testing::Test {
 protected:
  EngineLimitsTest() : model_(MakeModel(ctx_, DenseModel())) {}
  GenerateResult One(GenerateRequest request) {
    InferenceEngine engine(ctx_, *model_, {.page_size = 4, .max_tokens = kContext}, OneByte);
    uint64_t id = request.id;
    engine.Add(std::move(request));
    return RunAll(engine)[id];
  }
  static GenerateRequest Request(int64_t prompt = 10) {
    GenerateRequest r;
    r.id = 1;
    r.prompt = PromptTokens(prompt, 1);
    r.max_new_tokens = 40;
    r.stream = RandomStream{77};
    return r;
  }
  Context ctx_{TestDevice()};
  std::unique_ptr<model::TransformerStage> model_;
};

TEST_F(EngineLimitsTest, StopsAtAnIdAndKeepsIt) {
  std::vector<int32_t> free = One(Request()).tokens;
  ASSERT_EQ(free.size(), 40u);
  GenerateRequest r = Request();
  r.stop_ids = {kVocabulary - 1, free[6]};
  GenerateResult stopped = One(r);
  size_t first = static_cast<size_t>(std::find(free.begin(), free.end(), free[6]) - free.begin());
  EXPECT_EQ(stopped.tokens, std::vector<int32_t>(free.begin(), free.begin() + first + 1));
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
}

TEST_F(EngineLimitsTest, StopsAtAStringOfSeveralTokensAlsoWhenContinued) {
  std::vector<int32_t> free = One(Request()).tokens;
  GenerateRequest r = Request();
  r.stop_strings = {OneByte(free[5]) + OneByte(free[6]) + OneByte(free[7]), "none of these"};
  std::vector<int32_t> expected(free.begin(), free.begin() + 8);
  GenerateResult stopped = One(r);
  EXPECT_EQ(stopped.tokens, expected);
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
  for (size_t kept : {5, 6, 7}) {  // the string begins in what was drawn before
    r.generated.assign(free.begin(), free.begin() + static_cast<int64_t>(kept));
    EXPECT_EQ(One(r).tokens, expected) << kept;
  }
}

TEST_F(EngineLimitsTest, EndsAtMaxTokensOrTheContext) {
  GenerateRequest r = Request();
  r.max_new_tokens = 1;
  GenerateResult one = One(r);
  EXPECT_EQ(one.tokens.size(), 1u);
  EXPECT_EQ(one.finish, FinishReason::kLength);
  r = Request(kContext - 5);
  GenerateResult cut = One(r);
  EXPECT_EQ(cut.tokens.size(), 5u);
  EXPECT_EQ(cut.finish, FinishReason::kLength);
}

TEST_F(EngineLimitsTest, GreedyIsTheLikeliestToken) {
  GenerateRequest r = Request();
  r.sampling.temperature = 0;
  GenerateResult a = One(r);
  r.stream = RandomStream{1234};
  GenerateResult b = One(r);
  EXPECT_EQ(a.tokens, b.tokens);
  r.sampling = {.temperature = 1, .top_p = 1, .top_k = 1};
  EXPECT_EQ(One(r).tokens, a.tokens);
}

TEST_F(EngineLimitsTest, AGroupMayHoldTwoPrompts) {
  std::vector<GenerateRequest> requests;
  for (uint64_t i = 0; i < 8; ++i) {
    GenerateRequest r = Request(i % 2 ? 5 : 31);
    r.id = i + 1;
    r.max_new_tokens = 6;
    r.stream = RandomStream{77, i};
    requests.push_back(r);
  }
  InferenceEngine alone(ctx_, *model_, {.page_size = 4, .max_tokens = kContext});
  InferenceEngine grouped(ctx_, *model_,
                          {.page_size = 4, .prefill_chunk = 8, .max_tokens = kContext});
  for (GenerateRequest r : requests) {
    alone.Add(r);
    r.group = 1;
    grouped.Add(r);
  }
  ExpectSame(RunAll(alone), RunAll(grouped), "a group of two prompts");
}

// A prompt kept for its group takes all but one page when another request's turn comes.
TEST_F(EngineLimitsTest, AKeptPromptDoesNotBlockTheCache) {
  InferenceEngine engine(
      ctx_, *model_, {.max_batch = 1, .page_size = 4, .cache_pages = 4, .max_tokens = kContext});
  for (uint64_t i = 0; i < 3; ++i) {
    GenerateRequest r = Request(10);
    r.id = i + 1;
    r.max_new_tokens = 2;
    r.group = i == 1 ? 0 : 1;
    engine.Add(r);
  }
  EXPECT_EQ(RunAll(engine, 100).size(), 3u);
}

// One that decodes takes the pages of a leader in the middle of its prompt; its group waits for it.
TEST_F(EngineLimitsTest, APreemptedLeaderBeginsAgain) {
  InferenceEngine engine(
      ctx_, *model_,
      {.page_size = 2, .cache_pages = 24, .prefill_chunk = 2, .max_tokens = kContext});
  GenerateRequest growing = Request(4);
  growing.max_new_tokens = 40;
  engine.Add(growing);
  Results results;
  for (GenerateResult& r : engine.Step()) results[r.id] = std::move(r);
  for (uint64_t i = 2; i < 5; ++i) {
    GenerateRequest r = Request(36);
    r.id = i;
    r.max_new_tokens = 2;
    r.group = 1;
    engine.Add(r);
  }
  EXPECT_EQ(RunAll(engine, 500).size(), 4u);
  EXPECT_GT(engine.stats().preemptions, 0);
}

// What the refusal asks for is enough, to the page.
TEST_F(EngineLimitsTest, RunsInThePagesThatItAsksFor) {
  for (int64_t length : {7, 8, 9}) {
    GenerateRequest r = Request(length);
    r.max_new_tokens = 24;
    GenerateResult want = One(r);
    EngineConfig tight{.page_size = 4, .max_tokens = kContext};
    tight.cache_pages = PagesForSequence(length + 24, 4);
    InferenceEngine engine(ctx_, *model_, tight);
    for (uint64_t id : {1, 2, 3}) {
      r.id = id;
      r.group = 5;
      engine.Add(r);
    }
    std::vector<GenerateResult> done;
    for (int i = 0; i < 2000 && engine.pending() > 0; ++i) {
      for (GenerateResult& result : engine.Step()) done.push_back(std::move(result));
    }
    ASSERT_EQ(done.size(), 3u) << "it stalls";
    for (const GenerateResult& result : done) EXPECT_EQ(result.tokens, want.tokens);
  }
}

TEST_F(EngineLimitsTest, RefusesWhatCannotRun) {
  InferenceEngine engine(ctx_, *model_, {.page_size = 4, .cache_pages = 6, .max_tokens = kContext});
  auto refuses = [&](GenerateRequest r, const std::string& why) {
    try {
      engine.Add(std::move(r));
      ADD_FAILURE() << "accepted, not refused for: " << why;
    } catch (const ShapeError& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr(why));
    }
  };
  refuses(Request(0), "empty prompt");
  refuses(Request(kContext), "leaves no room");
  GenerateRequest long_one = Request(20);
  long_one.max_new_tokens = 40;
  refuses(long_one, "could need 16 pages of 4 tokens, and the cache has 6");
  refuses(long_one, "rollout.cache_pages to at least 16");
  GenerateRequest r = Request(4);
  r.max_new_tokens = 8;
  r.prompt[2] = kVocabulary;
  refuses(r, "outside the vocabulary");
  r.prompt[2] = 1;
  r.generated = {3, -1};
  refuses(r, "outside the vocabulary");
  r.generated.assign(8, 1);
  refuses(r, "has 8 tokens already and may draw 8");
  EXPECT_EQ(engine.pending(), 0);
}

}  // namespace
}  // namespace hone::rl
