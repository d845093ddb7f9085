#include "rl/evaluate_model.h"

#include <algorithm>

#include "rl/scores.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(50);

// One pass over a suite's problems.
class Pass {
 public:
  Pass(LoadedModel& model, const EvaluationSuite& suite, bool greedy, uint64_t seed,
       VerifierPool& verifiers)
      : model_(model), suite_(suite), greedy_(greedy), seed_(seed), verifiers_(verifiers) {
    stop_ids_ = model.stop_ids;
    for (const std::string& name : suite.sampling.stop_tokens) {
      stop_ids_.push_back(model.tokenizer->SpecialId(name));
      Check<ConfigError>(stop_ids_.back() >= 0, "[eval] stop_tokens: there is no token '{}'", name);
    }
  }

  std::vector<Sample> Run(int64_t max_batch) {
    EngineConfig config;
    config.max_batch = max_batch;
    config.max_tokens = model_.files.config.max_position_embeddings;
    config.prefill_chunk = 1024;
    const int64_t count = suite_.problems->size() < 0
                              ? suite_.count
                              : std::min(suite_.count, suite_.problems->size());
    std::vector<GenerateRequest> requests;
    int64_t longest = 0;
    const int64_t tries = greedy_ ? 1 : suite_.samples_per_problem;
    for (int64_t i = 0; i < count * tries; ++i) {
      requests.push_back(Request(i / tries, i % tries));
      longest = std::max(longest, static_cast<int64_t>(requests.back().prompt.size()));
    }
    config.max_tokens = std::min(config.max_tokens, longest + suite_.sampling.max_new_tokens);
    InferenceEngine engine(*model_.ctx, *model_.stage, config,
                           [this](int32_t id) { return model_.TokenBytes(id); });
    for (GenerateRequest& request : requests) engine.Add(std::move(request));
    while (engine.pending() > 0) {
      for (GenerateResult& result : engine.Step()) Drawn(result);
    }
    while (verifiers_.pending() > 0) {
      for (const auto& scored : verifiers_.Poll(kPoll)) Judged(scored);
    }
    return std::move(samples_);
  }

 private:
  GenerateRequest Request(int64_t index, int64_t sample) {
    GenerateRequest request;
    request.id = samples_.size();
    problems_.push_back(suite_.problems->At(index));
    samples_.emplace_back();
    samples_.back().key.prompt = index;
    samples_.back().key.sample = sample;
    samples_.back().problem_id = problems_.back().id;
    request.prompt = model_.tokenizer->Encode(problems_.back().prompt);
    const int64_t context = model_.files.config.max_position_embeddings;
    Check<ConfigError>(
        static_cast<int64_t>(request.prompt.size()) + suite_.sampling.max_new_tokens <= context,
        "[eval] problem {}: a prompt of {} tokens and max_new_tokens = {} do not fit the model's "
        "context of {}",
        problems_.back().id, request.prompt.size(), suite_.sampling.max_new_tokens, context);
    request.max_new_tokens = suite_.sampling.max_new_tokens;
    request.sampling = suite_.sampling.sampling;
    if (greedy_) request.sampling = {.temperature = 0, .top_p = 1, .top_k = 0};
    request.stop_ids = stop_ids_;
    request.stop_strings = suite_.sampling.stop_strings;
    request.stream = RandomStream{seed_, HashName("eval/" + suite_.name), HashName("sample"),
                                  static_cast<uint64_t>(index), static_cast<uint64_t>(sample)};
    return request;
  }

  void Drawn(const GenerateResult& result) {
    const data::Problem& problem = problems_[result.id];
    Sample& sample = samples_[result.id];
    sample.finish = result.finish;
    std::vector<int32_t> ids = result.tokens;
    for (int32_t id : ids) sample.tokens.push_back({id, TokenSource::kModel, 0, 0});
    if (!ids.empty() &&
        std::find(stop_ids_.begin(), stop_ids_.end(), ids.back()) != stop_ids_.end())
      ids.pop_back();
    sample.rewards["thinking_tokens"] = static_cast<double>(ThinkingTokens(ids));
    for (int32_t id : ids) sample.text += model_.TokenBytes(id);
    RewardRequest request;
    request.completion = sample.text;
    request.verifier = problem.verifier;
    request.gold = problem.answer;
    request.language = problem.language;
    request.completion_tokens = static_cast<int64_t>(result.tokens.size());
    request.max_new_tokens = suite_.sampling.max_new_tokens;
    request.finished = result.finish == FinishReason::kStop;
    verifiers_.Submit(result.id, request);
  }

  int64_t ThinkingTokens(const std::vector<int32_t>& ids) const {
    const int32_t think = model_.tokenizer->SpecialId("<think>");
    const int32_t end = model_.tokenizer->SpecialId("</think>");
    auto first = std::find(ids.begin(), ids.end(), think);
    if (think < 0 || first == ids.end()) return 0;
    return std::find(first, ids.end(), end) - first - 1;
  }

  void Judged(const VerifierPool::Scored& scored) {
    Sample& sample = samples_[scored.id];
    sample.outcome = scored.reply.outcome;
    for (const auto& [name, value] : scored.reply.rewards) sample.rewards[name] = value;
  }

  LoadedModel& model_;
  const EvaluationSuite& suite_;
  const bool greedy_;
  const uint64_t seed_;
  VerifierPool& verifiers_;
  std::vector<int32_t> stop_ids_;
  std::vector<data::Problem> problems_;  // of each sample
  std::vector<Sample> samples_;
};

}  // namespace

EvaluationScores EvaluateModel(LoadedModel& model, const EvaluationSuite& suite, uint64_t seed,
                               int64_t max_batch, VerifierPool& verifiers) {
  Check<ConfigError>(!suite.is_text(),
                     "[eval] suite '{}' measures the loss of a text, which only a run does",
                     suite.name);
  EvaluationScores scores;
  for (bool greedy : {true, false}) {
    if (greedy ? !suite.greedy : !suite.sampled) continue;
    Pass pass(model, suite, greedy, seed, verifiers);
    AddScores(pass.Run(max_batch), greedy ? "greedy_" : "sampled_", &scores);
  }
  return scores;
}

}  // namespace hone::rl
