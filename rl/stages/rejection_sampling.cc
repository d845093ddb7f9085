// Rejection sampling: draw from a policy, keep what is right and readable, write JSONL with
// provenance. [R1 §2.3.3: correct only; mixed-language, long-paragraph and code-block chains of
// thought dropped]
#include "rl/stages/rejection_sampling.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "data/families/story.h"
#include "data/utf8.h"
#include "rl/stages/sample_pool.h"
#include "rl/stages/stages.h"

namespace hone::rl {
namespace {

constexpr int64_t kProblemsPerRollout = 256;

size_t LongestParagraph(const std::string& text) {
  size_t longest = 0, begin = 0;
  while (begin <= text.size()) {
    size_t end = std::min(text.find("\n\n", begin), text.size());
    longest = std::max(longest, end - begin);
    begin = end + 2;
  }
  return longest;
}

double Part(const Sample& sample, const std::string& name) {
  auto it = sample.rewards.find(name);
  return it == sample.rewards.end() ? 1.0 : it->second;
}

}  // namespace

std::string ReasonToDrop(const Sample& sample, const RejectionConfig& config) {
  if (sample.finish != FinishReason::kStop && !config.keep_unfinished) return "unfinished";
  if (sample.outcome != Outcome::kCorrect) return std::string(OutcomeName(sample.outcome));
  if (Part(sample, "format") < 1) return "format";
  if (!data::IsValidUtf8(sample.text)) return "invalid_utf8";
  if (config.drop_mixed_language && Part(sample, "language") < 1) return "mixed_language";
  if (config.drop_code_blocks && sample.text.find("```") != std::string::npos) return "code_block";
  if (static_cast<int64_t>(LongestParagraph(sample.text)) > config.max_paragraph) {
    return "long_paragraph";
  }
  return "";
}

namespace {

using nlohmann::json;

RolloutPlan MakePlan(const Environment& env, const StageConfig& stage, int64_t rollout,
                     const WeightVersion& version) {
  const RejectionConfig& c = stage.rejection;
  RolloutPlan plan;
  plan.stage = stage.name;
  plan.rollout = rollout;
  plan.seed = env.config.seed;
  plan.weight_version = version.version;
  plan.weight_digest = version.digest;
  plan.group_size = c.samples_per_problem;
  plan.sampling = c.sampling.sampling;
  plan.max_new_tokens = c.sampling.max_new_tokens;
  plan.stop_strings = c.sampling.stop_strings;
  plan.stop_ids = c.sampling.StopIds(*env.tokenizer);
  plan.environment = c.sampling.environment;
  int64_t end = std::min(c.problems, (rollout + 1) * kProblemsPerRollout);
  for (int64_t i = rollout * kProblemsPerRollout; i < end; ++i) {
    if (c.prompts->size() >= 0 && i >= c.prompts->size()) break;
    RolloutPrompt prompt;
    prompt.index = i;
    prompt.problem = c.prompts->At(i);
    prompt.tokens = env.tokenizer->Encode(prompt.problem.prompt);
    plan.prompts.push_back(std::move(prompt));
  }
  return plan;
}

struct Kept {
  std::string jsonl;
  std::map<std::string, int64_t> counts;  // kept, and each reason to drop
  int64_t tokens = 0;
};

// Prompt and completion as a learner is to read them.
struct Lesson {
  std::string prompt, completion;
};

// A SentencePiece-like tokenizer puts a space before any text, so one that was drawn comes off.
std::string WithoutAddedSpace(const data::Tokenizer& tokenizer, const std::string& text) {
  bool adds = tokenizer.Decode(tokenizer.Encode("a")) == " a";
  return adds && text.starts_with(' ') ? text.substr(1) : text;
}

// nullopt: there is no order that the story fulfils.
std::optional<Lesson> LessonOf(const Environment& env, const RolloutPlan& plan, const Sample& s,
                               const std::string& prompt, int64_t hindsight) {
  Lesson lesson{prompt, WithoutAddedSpace(*env.tokenizer, s.text)};
  if (hindsight == 0) return lesson;
  data::Draws draws(RandomStream(
      {plan.seed, HashName(plan.stage), HashName("hindsight"), static_cast<uint64_t>(s.key.rollout),
       static_cast<uint64_t>(s.key.prompt), static_cast<uint64_t>(s.key.sample)}));
  int words = draws.Range(1, static_cast<int>(hindsight));
  auto ordered = data::OrderInHindsight(lesson.completion, words, draws);
  if (!ordered) return std::nullopt;
  return Lesson{prompt + data::StoryRequest(ordered->order), ordered->text};
}

void Keep(const Environment& env, const RolloutPlan& plan, const std::vector<Sample>& samples,
          const StageConfig& stage, Kept* kept) {
  std::map<int64_t, const RolloutPrompt*> prompts;
  for (const RolloutPrompt& p : plan.prompts) prompts[p.index] = &p;
  std::map<int64_t, int64_t> taken;
  std::set<std::string> seen;
  for (const Sample& s : samples) {
    kept->tokens += s.completion_tokens();
    std::string reason = ReasonToDrop(s, stage.rejection);
    const std::string& prompt = prompts.at(s.key.prompt)->problem.prompt;
    if (reason.empty() && !seen.insert(prompt + s.text).second) reason = "duplicate";
    if (reason.empty() && taken[s.key.prompt] >= stage.rejection.keep_per_problem)
      reason = "enough";
    std::optional<Lesson> lesson;
    if (reason.empty()) lesson = LessonOf(env, plan, s, prompt, stage.rejection.story_hindsight);
    if (reason.empty() && !lesson) reason = "no_order";
    ++kept->counts[reason.empty() ? "kept" : reason];
    if (!reason.empty()) continue;
    ++taken[s.key.prompt];
    kept->jsonl += json{{"prompt", lesson->prompt}, {"completion", lesson->completion},
                        {"problem", s.problem_id},  {"stage", stage.name},
                        {"from", stage.from},       {"rollout", s.key.rollout},
                        {"sample", s.key.sample},   {"weight_digest", plan.weight_digest}}
                       .dump() +
                   "\n";
  }
}

}  // namespace

void RunRejectionSampling(Environment& env, const StageConfig& stage) {
  Check<ConfigError>(env.pool != nullptr,
                     "{}: stage '{}' samples, but there are no workers: set "
                     "rollout.workers, or start some with `hone worker`",
                     stage.where, stage.name);
  env.LoadStart(stage.from);
  auto start = std::chrono::steady_clock::now();
  WeightVersion version = env.pool->Publish();
  Kept kept;
  int64_t rollouts = (stage.rejection.problems + kProblemsPerRollout - 1) / kProblemsPerRollout;
  for (int64_t r = 0; r < rollouts; ++r) {
    RolloutPlan plan = MakePlan(env, stage, r, version);
    if (plan.prompts.empty()) break;
    env.pool->Begin(plan);
    Keep(env, plan, env.pool->Finish(stage.name, r), stage, &kept);
  }
  Check<DataError>(kept.counts["kept"] > 0, "[{}] not one sample was kept: see the outcomes in {}",
                   stage.name, env.directory.rollouts(stage.name));
  if (!env.root()) return;
  env.directory.fs().MakeDirs(env.directory.root() + "/datasets");
  env.directory.fs().WriteAtomically(env.directory.dataset(stage.name), kept.jsonl);
  StageRecord* record = env.state.Find(stage.name);
  record->step = kept.counts["kept"];
  record->tokens = kept.tokens;
  record->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::string counts;
  for (const auto& [reason, n] : kept.counts) counts += fmt::format(" {} {}", reason, n);
  fmt::print(stderr, "{}:{}\n", stage.name, counts);
}

}  // namespace hone::rl
