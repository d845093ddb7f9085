// What can be known to be wrong before anything starts, beyond what reading the config finds.
#include <fmt/ranges.h>

#include <algorithm>

#include "data/tokenizer.h"
#include "parallel/pipeline_schedule.h"
#include "rl/loaded_model.h"
#include "rl/reward/verifier.h"
#include "rl/run_config.h"
#include "rl/stages/preference_batch.h"
#include "runtime/file_system.h"

namespace hone::rl {
namespace {

constexpr int64_t kProblemsLookedAt = 64;

// Errors of what `check` looks at begin with where it stands.
template <class Check>
void At(const std::string& where, const Check& check) {
  try {
    check();
  } catch (const ConfigError& e) {
    throw ConfigError(where + ": " + e.what());
  } catch (const DataError& e) {
    throw DataError(where + ": " + e.what());
  }
}

parallel::PipelineShape ShapeOf(const RunConfig& c, int64_t microbatches) {
  return {c.pipeline.schedule, c.mesh.pp, c.pipeline.chunks_per_rank(),
          static_cast<int>(microbatches)};
}

void CheckLayout(const RunConfig& c) {
  c.mesh.Validate(c.mesh.ranks());
  if (c.mesh.ep > 1) {
    Check<ConfigError>(c.model.is_moe(), "[mesh] ep = {} but the model has no experts; set ep: 1",
                       c.mesh.ep);
    Check<ConfigError>(c.model.n_routed_experts % c.mesh.ep == 0,
                       "[mesh] {} experts do not split over ep = {}", c.model.n_routed_experts,
                       c.mesh.ep);
  }
  int stages = c.mesh.pp * c.pipeline.chunks_per_rank();
  Check<ConfigError>(stages <= c.model.num_hidden_layers,
                     "[mesh] {} layers do not cut into {} stages (pp = {} times {} chunks a rank)",
                     c.model.num_hidden_layers, stages, c.mesh.pp, c.pipeline.chunks_per_rank());
  ShapeOf(c, 1).ValidateLayout();
}

// All three files or none, as PEM that can be read.
void CheckTls(const RolloutConfig& r) {
  const std::pair<const char*, std::string> files[] = {
      {"tls_certificate", r.tls_certificate}, {"tls_key", r.tls_key}, {"tls_ca", r.tls_ca}};
  const bool any = std::any_of(std::begin(files), std::end(files),
                               [](const auto& file) { return !file.second.empty(); });
  for (const auto& [key, path] : files) {
    if (!any) return;
    Check<ConfigError>(!path.empty(),
                       "[rollout] {} is not set: TLS wants tls_certificate, tls_key and tls_ca; "
                       "without all three a run makes a certificate of its own",
                       key);
    FileSystem& fs = runtime::LocalFileSystem();
    Check<ConfigError>(
        fs.Exists(path) && fs.ReadAll(path).find("-----BEGIN ") != std::string::npos,
        "[rollout] {}: there is no PEM file {}", key, path);
  }
}

void CheckKnown(const std::string& where, const char* what, const std::string& name,
                const std::vector<std::string>& names) {
  Check<ConfigError>(std::find(names.begin(), names.end(), name) != names.end(),
                     "{}: there is no {} '{}'; one of {}", where, what, name,
                     fmt::join(names, ", "));
}

// `learned_from`: the packs that the samples are to fit; null where nothing is learned from them.
void CheckProblems(const RunConfig& c, const data::ProblemSource& source,
                   const data::Tokenizer& tokenizer, const SamplingConfig& sampling,
                   const std::string& where, const BatchConfig* learned_from = nullptr) {
  At(where, [&] { sampling.StopIds(tokenizer); });
  const int64_t context = c.model.max_position_embeddings;
  const int64_t max_new_tokens = sampling.max_new_tokens;
  int64_t count = source.size() < 0 ? kProblemsLookedAt : source.size();
  for (int64_t i = 0; i < count; ++i) {
    data::Problem problem = source.At(i);
    const std::string which = fmt::format("{}: problem {}", where, problem.id);
    CheckKnown(which, "verifier", problem.verifier, VerifierNames());
    if (!problem.language.empty()) {
      CheckKnown(which, "language", problem.language, LanguageNames());
    }
    int64_t tokens = static_cast<int64_t>(tokenizer.Encode(problem.prompt).size());
    Check<ConfigError>(tokens > 0, "{}: the prompt is empty: a model goes on from a token or more",
                       which);
    Check<ConfigError>(
        tokens + max_new_tokens <= context,
        "{}: a prompt of {} tokens and max_new_tokens = {} do not fit the model's context of {}",
        which, tokens, max_new_tokens, context);
    c.rollout.CheckCache(tokens + max_new_tokens, context, which);
    if (learned_from) learned_from->CheckPack(tokens, max_new_tokens, which);
  }
}

// Samples that a stage has yet to write.
class SamplesToCome : public data::ExampleSource {
 public:
  int64_t size() const override { return 1; }
  data::Example At(int64_t) const override { return {"?", "!"}; }
  std::string Where(int64_t) const override { return "samples"; }
};

// What the loaders find when they are made; of examples without an end, the first step's.
void CheckExamples(const RunConfig& c, const StageConfig& s,
                   const std::shared_ptr<const data::Tokenizer>& tokenizer) {
  data::DataLoader::Options options = LoaderOptions(c, s, 0);
  for (const auto& source : {s.data, s.heldout}) {
    if (!source) continue;
    data::DataLoader loader(source, tokenizer, options);
    if (source->size() < 0) loader.Next();
  }
  for (const std::string& name : s.samples) {
    const bool path = name.find('/') != std::string::npos;
    Check<DataError>(!path || runtime::LocalFileSystem().Exists(name),
                     "samples: there is no file {}", name);
    data::DataLoader loader(path ? ReadSamples(name) : std::make_shared<SamplesToCome>(), tokenizer,
                            options);
  }
  ShapeOf(c, options.packs / options.dp).Validate();
}

// That some of the text fits, and that its packs split over the ranks.
void CheckText(const RunConfig& c, const EvaluationSuite& e,
               const std::shared_ptr<const data::Tokenizer>& tokenizer) {
  std::shared_ptr<data::ExampleSource> text = e.text;
  if (!text) text = std::make_shared<SamplesToCome>();
  data::DataLoader loader(text, tokenizer, TextOptions(c, e, 0));
}

// Of preferences without an end, the first.
void CheckPreferences(const StageConfig& s, const data::Tokenizer& tokenizer) {
  for (const auto& source : {s.reward_model.pairs, s.reward_model.heldout_pairs}) {
    if (!source) continue;
    int64_t count = source->size() < 0 ? kProblemsLookedAt : source->size();
    for (int64_t i = 0; i < count; ++i) {
      MakePreferenceItem(tokenizer, source->At(i), s.reward_model, s.batch, source->Where(i));
    }
  }
}

// Whether the stage itself needs workers. Suites of problems behind any stage are left out without.
bool Samples(const RunConfig& c, const StageConfig& s) {
  auto sampled = [&](const EvaluationSuite& e) {
    bool measured = s.kind == StageKind::kEvaluate && e.After(s.name);
    return !e.is_text() && (measured || (s.until && s.until->suite == e.name));
  };
  return s.kind == StageKind::kGrpo || s.kind == StageKind::kRejectionSampling ||
         std::any_of(c.suites.begin(), c.suites.end(), sampled);
}

void CheckStage(const RunConfig& c, const StageConfig& s,
                const std::shared_ptr<const data::Tokenizer>& shared_tokenizer) {
  const data::Tokenizer& tokenizer = *shared_tokenizer;
  std::string where = fmt::format("{}: stage '{}'", s.where, s.name);
  int64_t context = c.model.max_position_embeddings;
  Check<ConfigError>(s.batch.max_length - 1 <= context,
                     "{}: batch.max_length {} is beyond the model's context of {}", where,
                     s.batch.max_length, context);
  if (s.from.find('/') != std::string::npos) {
    At(where + ": from", [&] {
      const std::string folder = FolderOfPolicy(s.from);
      Check<ConfigError>(
          s.kind != StageKind::kExport || runtime::LocalFileSystem().Exists(folder + "/index.h5"),
          "{} is a Hugging Face folder already: only a checkpoint is exported", folder);
    });
  }
  if (Supervised(s.kind)) {
    At(where, [&] { CheckExamples(c, s, shared_tokenizer); });
  }
  if (s.kind == StageKind::kRewardModel) {
    At(where, [&] { CheckPreferences(s, tokenizer); });
  }
  if (s.kind == StageKind::kGrpo) {
    for (const auto& prompts : {s.grpo.prompts, s.grpo.general_prompts}) {
      if (!prompts) continue;
      CheckProblems(c, *prompts, tokenizer, s.grpo.sampling, where, &s.batch);
    }
    Check<ConfigError>(!s.grpo.replay_routing || c.model.is_moe(),
                       "{}: replay_routing, but the model has no experts", where);
  }
  if (s.kind == StageKind::kRejectionSampling) {
    CheckProblems(c, *s.rejection.prompts, tokenizer, s.rejection.sampling, where);
  }
}

// Workers are told the model, and exports written, in the Hugging Face format.
void CheckFormat(const RunConfig& c, bool workers) {
  auto wants_format = [&](const StageConfig& s) {
    return s.kind == StageKind::kExport || (workers && Samples(c, s));
  };
  const bool measured = std::any_of(c.suites.begin(), c.suites.end(),
                                    [](const EvaluationSuite& e) { return !e.is_text(); });
  if ((workers && measured) || std::any_of(c.stages.begin(), c.stages.end(), wants_format)) {
    At("[model] sampling and export need the Hugging Face format",
       [&] { c.model.CheckExportable(); });
  }
}

}  // namespace

void CheckRun(const RunConfig& c, bool workers_join) {
  CheckLayout(c);
  CheckTls(c.rollout);
  std::shared_ptr<const data::Tokenizer> tokenizer =
      data::LoadTokenizer(c.tokenizer, c.special_tokens);
  Check<ConfigError>(tokenizer->vocab_size() <= c.model.vocab_size,
                     "[model] vocab_size {} is smaller than the tokenizer's {} tokens",
                     c.model.vocab_size, tokenizer->vocab_size());
  for (const StageConfig& s : c.stages) CheckStage(c, s, tokenizer);
  for (const EvaluationSuite& e : c.suites) {
    const std::string where = fmt::format("{}: evaluate: suite '{}'", e.where, e.name);
    if (e.is_text()) {
      At(where, [&] { CheckText(c, e, tokenizer); });
    } else {
      CheckProblems(c, *e.problems, *tokenizer, e.sampling, where);
    }
  }
  CheckFormat(c, c.rollout.workers > 0 || workers_join);
  Check<ConfigError>(
      c.rollout.workers == 0 || c.rollout.device == c.train.device || c.rollout.allow_logprob_gap,
      "[rollout] rollout.device and train.device are not the same: the workers' log-probabilities "
      "would not be the learner's. Give both one device, or allow it by "
      "rollout.allow_logprob_gap: true");
  Check<ConfigError>(
      c.rollout.publish == RolloutConfig::Publish::kHost || c.train.device == Device::Type::kCuda,
      "[rollout] publish: device keeps published weights on the learner's devices, "
      "and train.device is cpu; set rollout.publish: host");
  Check<ConfigError>(!c.rollout.colocated || c.rollout.device == c.train.device,
                     "[rollout] colocated: true shares the learner's devices with the workers, and "
                     "rollout.device is not train.device");
  if (c.rollout.workers > 0 || workers_join) return;
  for (const StageConfig& s : c.stages) {
    Check<ConfigError>(!Samples(c, s), "{}: stage '{}' samples, but rollout.workers is 0", s.where,
                       s.name);
  }
}

}  // namespace hone::rl
