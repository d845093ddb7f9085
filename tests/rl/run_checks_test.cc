// What is wrong with a run of reinforcement learning, found before anything starts. `hone check`
// and `hone run` both read and check as here; tests/launcher/bad_input_test.cc starts them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "rl/rollout/worker_config.h"
#include "rl/run_config.h"
#include "runtime/error.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr char kRun[] = R"(run: {name: tiny, seed: 3}
tokenizer: byte
model: {family: llama, hidden_size: 16, intermediate_size: 20, num_hidden_layers: 4,
  num_attention_heads: 2, vocab_size: 263, max_position_embeddings: 128}
rollout: {workers: 1}
stages:
  - {name: base, kind: pretrain, steps: 6, lr: {peak: 0.003}, batch: {packs: 4, pack_tokens: 48},
     data: {family: chain, text: answer}}
  - {name: rl, kind: grpo, from: base, steps: 4, lr: {peak: 0.001}, batch: {pack_tokens: 256},
     prompts: {family: chain}, prompts_per_rollout: 4, group_size: 4, reward: {accuracy: 1},
     sampling: {max_new_tokens: 40}}
  - {name: samples, kind: rejection_sampling, from: rl, prompts: {family: chain}, problems: 8,
     sampling: {max_new_tokens: 40}}
  - {name: sft, kind: sft, from: base, epochs: 1, lr: {peak: 0.001}, samples: [samples],
     batch: {packs: 1, pack_tokens: 128}}
evaluate:
  suites:
    - {name: heldout, problems: {family: chain, split: heldout}, sampling: {max_new_tokens: 40}}
)";

using Overrides = std::vector<std::string>;

// The error of reading and checking; "" when there is none.
std::string ErrorIn(const std::string& run, const Overrides& overrides) {
  try {
    Config file = Config::FromString(run, "run.yaml");
    for (const std::string& assignment : overrides) file.Override(assignment);
    CheckRun(ReadRunConfig(file));
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}
std::string ErrorOf(const Overrides& overrides) { return ErrorIn(kRun, overrides); }

// kRun with a stage and a suite of every other form.
std::string WholeRun() {
  std::string run = kRun;
  run.insert(run.find("evaluate:"),
             "  - {name: look, kind: evaluate, from: sft}\n"
             "  - {name: out, kind: export, from: look}\n");
  return run + "    - {name: texts, text: {family: chain, text: answer}}\n";
}

TEST(RunChecks, TheRunItselfIsSound) { EXPECT_EQ(ErrorOf({}), ""); }

// How a model is trained is said beside its folder, whose config.json knows nothing of it.
TEST(RunChecks, TrainingKeysBesideAHuggingFaceFolder) {
  runtime::TemporaryFolder folder;
  std::ofstream(folder / "config.json") << R"({"model_type": "deepseek_v3", "hidden_size": 16,
    "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 263,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4, "v_head_dim": 4, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "n_group": 2,
    "topk_group": 1, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1})";
  const std::string hf = "model={hf: " + (folder / "");
  Config file = Config::FromString(kRun, "run.yaml");
  file.Override(hf + "}");
  EXPECT_EQ(ReadRunConfig(file).model.num_nextn_predict_layers, 1);
  file.Override(hf +
                ", bias_update_speed: 0.0, balance_loss_alpha: 1.0e-4, mtp_loss_weight: 0.1, "
                "num_nextn_predict_layers: 0, max_position_embeddings: 256}");
  const model::ModelConfig model = ReadRunConfig(file).model;
  EXPECT_EQ(model.bias_update_speed, 0);
  EXPECT_EQ(model.balance_loss_alpha, 1e-4);
  EXPECT_EQ(model.mtp_loss_weight, 0.1);
  EXPECT_EQ(model.num_nextn_predict_layers, 0);
  EXPECT_EQ(model.max_position_embeddings, 256);
  EXPECT_EQ(model.routed_scaling_factor, 2.5) << "the file's";
  EXPECT_THAT(ErrorOf({hf + ", num_nextn_predict_layers: 2}"}), HasSubstr("depths 0 and 1"));
  EXPECT_THAT(ErrorOf({hf + ", n_group: 1}"}), HasSubstr("unknown key 'n_group'"));
}

TEST(RunChecks, NumericsByName) {
  for (const char* key : {"train.numerics", "rollout.numerics"}) {
    for (const char* name : {"batch_invariant", "fast", "fixed_point"}) {
      const std::string assignment = fmt::format("{}={}", key, name);
      EXPECT_EQ(ErrorOf({assignment}), "");
      Config file = Config::FromString(kRun, "run.yaml");
      file.Override(assignment);
      const RunConfig config = ReadRunConfig(file);
      const Numerics numerics = config.rollout.numerics.value_or(config.train.numerics);
      EXPECT_EQ(runtime::NumericsName(numerics), name);
    }
    EXPECT_THAT(
        ErrorOf({fmt::format("{}=fixed", key)}),
        AllOf(HasSubstr("numerics"), HasSubstr("'fixed' is none of"), HasSubstr("fixed_point")));
  }
  EXPECT_THAT(ErrorOf({"train.fp8=true"}), HasSubstr("numerics"));
  EXPECT_EQ(ErrorOf({"train.fp8=true", "train.numerics=fixed_point"}), "");
}

TEST(RunChecks, WorkersAreToldTheNumerics) {
  WorkerConfig config;
  config.model = ReadRunConfig(Config::FromString(kRun, "run.yaml")).model;
  for (Numerics numerics : {Numerics::kBatchInvariant, Numerics::kFast, Numerics::kFixedPoint}) {
    config.numerics = numerics;
    EXPECT_EQ(ReadWorkerConfig(WriteWorkerConfig(config)).numerics, numerics);
  }
}

TEST(RunChecks, StagesThatThereAreNotOrThatComeLater) {
  EXPECT_THAT(ErrorOf({"stages.rl.from=bas"}),
              AllOf(HasSubstr("stage 'rl'"), HasSubstr("'bas' is no stage"),
                    HasSubstr("did you mean 'base'")));
  for (const char* cycle : {"stages.base.from=rl", "stages.rl.from=rl", "stages.rl.from=sft",
                            "stages.sft.samples=[sft]"}) {
    EXPECT_THAT(ErrorOf({cycle}), HasSubstr("this would be a cycle")) << cycle;
  }
  EXPECT_THAT(ErrorOf({"stages.sft.samples=[sample]"}), HasSubstr("did you mean 'samples'"));
}

TEST(RunChecks, PathsThatLeadNowhere) {
  EXPECT_THAT(ErrorOf({"stages.base.data={jsonl: /nowhere/x.jsonl}"}),
              HasSubstr("/nowhere/x.jsonl"));
  EXPECT_THAT(ErrorOf({"stages.rl.prompts={jsonl: /nowhere/x.jsonl}"}),
              HasSubstr("/nowhere/x.jsonl"));
  EXPECT_THAT(ErrorOf({"stages.sft.samples=[/nowhere/x.jsonl]"}),
              AllOf(HasSubstr("stage 'sft'"), HasSubstr("/nowhere/x.jsonl")));
  EXPECT_THAT(ErrorOf({"stages.rl.from=/nowhere/run"}),
              AllOf(HasSubstr("stage 'rl'"), HasSubstr("/nowhere/run"), HasSubstr("index.h5")));
  EXPECT_THAT(ErrorOf({"stages.base.data={jsonl: '${HONE_NOT_SET}/x.jsonl'}"}),
              HasSubstr("HONE_NOT_SET"));
}

TEST(RunChecks, TemperaturesThatLogitsCannotBeDividedBy) {
  for (const std::string temperature : {"-1", "1e-9", "1e9"}) {
    EXPECT_THAT(ErrorOf({"stages.rl.sampling.temperature=" + temperature}),
                AllOf(HasSubstr("temperature"), HasSubstr("[1e-06, 1000000]")));
  }
}

TEST(RunChecks, PromptsThatDoNotFit) {
  EXPECT_THAT(ErrorOf({"stages.rl.sampling.max_new_tokens=120"}),
              AllOf(HasSubstr("stage 'rl'"), HasSubstr("max_new_tokens = 120"),
                    HasSubstr("context of 128")));
  EXPECT_THAT(ErrorOf({"evaluate.suites.heldout.sampling.max_new_tokens=120"}),
              AllOf(HasSubstr("suite 'heldout'"), HasSubstr("context of 128")));
  runtime::TemporaryFolder folder;
  const std::string path = folder / "long.jsonl";
  std::ofstream(path) << R"({"prompt": "short", "answer": "1"})"
                      << "\n{\"prompt\": \"" << std::string(150, 'x') << "\", \"answer\": \"1\"}\n";
  EXPECT_THAT(ErrorOf({"stages.rl.prompts={jsonl: " + path + "}"}),
              AllOf(HasSubstr("long.jsonl:2"), HasSubstr("150 tokens")));
}

TEST(RunChecks, PacksThatAreTooSmallNameTheNumber) {
  runtime::TemporaryFolder folder;
  const std::string path = folder / "one.jsonl";
  std::ofstream(path) << R"({"prompt": "0123456789", "answer": "1"})"
                      << "\n";
  const std::string prompts = "={jsonl: " + path + "}";
  // Ten tokens and 40 drawn, the last of which is no input.
  const std::string small = "stages.rl.batch={pack_tokens: 48}";
  EXPECT_THAT(ErrorOf({"stages.rl.prompts" + prompts, small}),
              AllOf(HasSubstr("stage 'rl'"), HasSubstr("one.jsonl:1"),
                    HasSubstr("batch.pack_tokens is 48; set it to at least 49")));
  EXPECT_EQ(ErrorOf({"stages.rl.prompts" + prompts, "stages.rl.batch={pack_tokens: 49}"}), "");
  EXPECT_THAT(
      ErrorOf({"stages.rl.prompts" + prompts, "stages.rl.batch={pack_tokens: 49}",
               "stages.rl.general_prompts={family: chain}", "stages.rl.general_last_steps=1"}),
      HasSubstr("set it to at least 5"));
  EXPECT_EQ(
      ErrorOf({"stages.samples.prompts" + prompts, "stages.samples.sampling.max_new_tokens=90"}),
      "");
}

TEST(RunChecks, CachesThatAreTooSmallNameTheNumber) {
  // Prompts of up to 15 tokens and 40 drawn: within 64, so 4 pages of 16 and one for a copy.
  std::string error = ErrorOf({"rollout.page_size=16", "rollout.cache_pages=3"});
  EXPECT_THAT(error, AllOf(HasSubstr("stage 'rl'"), HasSubstr("rollout.cache_pages is 3"),
                           HasSubstr("at least 5, or to 0")));
  EXPECT_EQ(ErrorOf({"rollout.page_size=16", "rollout.cache_pages=5"}), "");
  EXPECT_THAT(ErrorOf({"rollout.page_size=16", "rollout.cache_pages=5",
                       "evaluate.suites.heldout.sampling.max_new_tokens=100"}),
              AllOf(HasSubstr("suite 'heldout'"), HasSubstr("at least 9")));
  EXPECT_THAT(ErrorOf({"rollout.cache_pages=-1"}), HasSubstr("must not be negative"));
}

TEST(RunChecks, NamesThatTwoThingsWouldHave) {
  EXPECT_THAT(ErrorOf({"stages.sft.name=rl-reference"}),
              AllOf(HasSubstr("'rl-reference'"), HasSubstr("stage 'rl' keeps its reference")));
  EXPECT_EQ(ErrorOf({"stages.sft.name=base-reference"}), "");
  const std::string suite = "{name: same, text: {family: chain, text: answer}}";
  EXPECT_THAT(ErrorOf({"evaluate.suites=[" + suite + ", " + suite + "]"}),
              AllOf(HasSubstr("name"), HasSubstr("is another suite's")));
}

TEST(RunChecks, NamesThatNoFolderCanHave) {
  for (const std::string name : {"../x", "a/b", ".x", "a b", "''", "init"}) {
    EXPECT_THAT(ErrorOf({"stages.sft.name=" + name}), HasSubstr("name")) << name;
    if (name == "init") continue;
    EXPECT_THAT(ErrorOf({"evaluate.suites.heldout.name=" + name}), HasSubstr("is no name")) << name;
  }
  EXPECT_EQ(ErrorOf({"stages.sft.name=SFT_2-b.c"}), "");
}

TEST(RunChecks, NumbersOutOfRange) {
  const std::vector<std::pair<const char*, const char*>> rows = {
      {"train.threads=0", "at least 1"},
      {"train.deadline_seconds=0", "at least 1"},
      {"train.keep_last=0", "at least 1"},
      {"train.keep_every=-1", "must not be negative"},
      {"train.dtype=u8", "none of f32, bf16, f64"},
      {"train.dtype=f8e4m3", "none of f32, bf16, f64"},
      {"optimizer.beta1=1", "[0, 1)"},
      {"optimizer.beta2=-0.1", "[0, 1)"},
      {"optimizer.eps=0", "above 0"},
      {"optimizer.weight_decay=-1", "must not be negative"},
      {"optimizer.clip=-1", "must not be negative"},
      {"stages.base.steps=-1", "must not be negative"},
      {"stages.base.save_every=0", "at least 1"},
      {"stages.base.heldout_every=0", "at least 1"},
      {"stages.base.lr.peak=0", "above 0"},
      {"stages.base.lr.warmup=-1", "must not be negative"},
      {"stages.base.lr.final_ratio=-0.1", "must not be negative"},
      {"stages.base.batch.packs=0", "at least 1"},
      {"stages.base.batch.pack_tokens=1", "at least 2"},
      {"stages.base.batch.max_length=-1", "from 2"},
      {"stages.sft.epochs=0", "at least 1"},
      {"stages.rl.prompts_per_rollout=0", "at least 1"},
      {"stages.rl.reference_every=-1", "must not be negative"},
      {"stages.rl.overlong_buffer=4096", "[0, 1]"},
      {"stages.rl.max_unusable=1.1", "[0, 1]"},
      {"stages.rl.loss.clip_low=-1", "must not be negative"},
      {"stages.rl.loss.importance_cap=-1", "must not be negative"},
      {"stages.rl.sampling.max_new_tokens=0", "at least 1"},
      {"stages.rl.sampling.top_k=-1", "must not be negative"},
      {"stages.samples.problems=0", "at least 1"},
      {"stages.samples.keep_per_problem=0", "at least 1"},
      {"stages.samples.max_paragraph=0", "at least 1"},
      {"evaluate.suites.heldout.count=0", "at least 1"},
      {"evaluate.suites.heldout.samples_per_problem=0", "at least 1"},
  };
  for (const auto& [assignment, says] : rows) {
    const std::string text = assignment, path = text.substr(0, text.find('='));
    EXPECT_THAT(ErrorOf({text}), AllOf(HasSubstr(path), HasSubstr(says))) << text;
  }
  const std::string general = "stages.rl.general_prompts={family: general}";
  EXPECT_EQ(ErrorOf({general, "stages.rl.general_last_steps=1"}), "");
  EXPECT_THAT(ErrorOf({general}), HasSubstr("would never be used"));
  EXPECT_THAT(ErrorOf({general, "stages.rl.general_last_steps=1", "stages.rl.general_share=1.5"}),
              AllOf(HasSubstr("general_share"), HasSubstr("[0, 1]")));
}

TEST(RunChecks, KeysThatDoNotActAreUnknown) {
  const std::string until = "={suite: heldout, metric: accuracy, at_least: 1}";
  std::vector<std::string> rows = {"stages.rl.until" + until,        "stages.rl.epochs=2",
                                   "stages.rl.batch.packs=4",        "stages.rl.batch.max_length=9",
                                   "stages.rl.general_last_steps=2", "stages.rl.general_share=0.1",
                                   "stages.rl.heldout_every=2"};
  for (const char* key : {"until", "steps", "epochs", "save_every", "optimizer", "lr", "batch"}) {
    const std::string value = key == std::string("until") ? until : "=1";
    for (const char* stage : {"samples", "look", "out"}) {
      rows.push_back(fmt::format("stages.{}.{}{}", stage, key, value));
    }
  }
  rows.push_back("evaluate.suites.texts.batch.max_length=9");
  rows.push_back("evaluate.suites.texts.count=9");
  EXPECT_EQ(ErrorIn(WholeRun(), {}), "");
  for (const std::string& row : rows) {
    EXPECT_THAT(ErrorIn(WholeRun(), {row}), HasSubstr("unknown key")) << row;
  }
}

TEST(RunChecks, ReferencesThatLeadNowhere) {
  struct Row {
    Overrides overrides;
    std::vector<std::string> says;
  };
  const std::string until = "stages.base.until={at_least: 1, suite: ";
  const std::string of_samples =
      "evaluate.suites=[{name: of_samples, samples: samples, batch: {packs: 1}";
  const std::string export_of = "stages.out.from=";
  runtime::TemporaryFolder folder;
  std::ofstream(folder / "config.json") << "{}";
  const std::vector<Row> rows = {
      {{"evaluate.suites.heldout.after_stages=[rl, sftt]"},
       {"run.yaml:", "'heldout'", "after_stages: 'sftt'", "did you mean 'sft'"}},
      {{"evaluate.suites.heldout.after_stages=[samples]"},
       {"nothing is measured after 'samples'", "rejection_sampling"}},
      {{until + "heldot, metric: accuracy}"}, {"'base'", "did you mean 'heldout'"}},
      {{until + "heldout, metric: acuracy}"}, {"no metric 'acuracy'", "did you mean 'accuracy'"}},
      {{until + "heldout, metric: loss}"}, {"'heldout' has no metric 'loss'"}},
      {{until + "texts, metric: accuracy}"}, {"'texts' has no metric 'accuracy'"}},
      {{"stages.sft.samples=[base]"}, {"'sft'", "stage 'base' writes none"}},
      {{"stages.sft.data={family: chain, text: answer}"}, {"stages.sft.data", "has no end"}},
      {{"stages.sft.data={family: chain, text: answer}", "stages.sft.steps=5"}, {"has no end"}},
      {{of_samples + ", after_stages: [base]}]"}, {"'base' comes before stage 'samples'"}},
      {{of_samples + "}]", until + "of_samples, metric: loss}"},
       {"'of_samples' is of samples that stage 'samples' writes later"}},
      {{"stages.rl.sampling.stop_tokens=['<stop>']"}, {"stage 'rl'", "no token '<stop>'"}},
      {{"stages.samples.sampling.stop_tokens=['<stop>']"}, {"stage 'samples'", "no token"}},
      {{"evaluate.suites.heldout.sampling.stop_tokens=['<stop>']"},
       {"suite 'heldout'", "no token"}},
      {{export_of + "init"}, {"stage 'out'", "'init' is no checkpoint"}},
      {{export_of + "samples", "stages.samples.from=init"}, {"'init' is no checkpoint"}},
      {{export_of + (folder / "")}, {"stage 'out'", "is a Hugging Face folder already"}},
      {{"mesh.dp=3", "evaluate.suites.texts.batch.packs=4", "stages.base.batch.packs=3",
        "stages.sft.batch.packs=3"},
       {"suite 'texts'", "4 packs do not split over dp = 3"}},
      {{"mesh.dp=2", "stages.sft.batch.packs=1"}, {"stage 'sft'", "1 packs do not split"}},
  };
  for (const Row& row : rows) {
    const std::string error = ErrorIn(WholeRun(), row.overrides);
    for (const std::string& part : row.says) {
      EXPECT_THAT(error, HasSubstr(part)) << testing::PrintToString(row.overrides);
    }
  }
  EXPECT_EQ(ErrorIn(WholeRun(), {of_samples + "}]"}), "") << "measured behind 'samples'";
  EXPECT_EQ(ErrorIn(WholeRun(), {until + "heldout, metric: greedy_format}"}), "");
  const RunConfig config = ReadRunConfig(Config::FromString(kRun, "run.yaml"));
  EXPECT_EQ(FindLastStage(config, "").name, "sft");
  EXPECT_EQ(FindLastStage(config, "rl").name, "rl");
  EXPECT_THAT([&] { FindLastStage(config, "bas"); },
              testing::ThrowsMessage<ConfigError>(HasSubstr("did you mean 'base'")));
}

TEST(RunChecks, ModelsThatWorkersCannotBeTold) {
  const std::string model =
      "model={family: qwen3, num_nextn_predict_layers: 1, "
      "hidden_size: 16, intermediate_size: 20, num_hidden_layers: 4, "
      "num_attention_heads: 2, vocab_size: 263, max_position_embeddings: 128}";
  EXPECT_THAT(ErrorOf({model}), AllOf(HasSubstr("[model] sampling and export"),
                                      HasSubstr("num_nextn_predict_layers is 1")));
  const std::string base = kRun, head = base.substr(0, base.find("  - {name: rl"));
  const std::string texts =
      head + "evaluate: {suites: [{name: t, text: {family: chain, text: answer}}]}\n";
  EXPECT_EQ(ErrorIn(texts, {model}), "");
  EXPECT_THAT(ErrorIn(head + "  - {name: out, kind: export, from: base}\n", {model}),
              HasSubstr("sampling and export"));
}

TEST(RunChecks, PoolsThatWouldDoNothing) {
  for (const std::string key : {"threads", "verifier_helpers", "max_batch", "prefill_chunk",
                                "prompts_per_lease", "lease_seconds"}) {
    EXPECT_THAT(ErrorOf({"rollout." + key + "=0"}),
                AllOf(HasSubstr("rollout." + key), HasSubstr("at least 1")));
    EXPECT_EQ(ErrorOf({"rollout." + key + "=1"}), "");
  }
  EXPECT_THAT(ErrorOf({"rollout.stall_seconds=0"}), HasSubstr("at least 1"));
  EXPECT_THAT(ErrorOf({"rollout.stall_seconds=120"}),
              AllOf(HasSubstr("rollout.lease_seconds"), HasSubstr("below stall_seconds (120)")));
  EXPECT_EQ(ErrorOf({"rollout.stall_seconds=121"}), "");
  for (const std::string key : {"workers", "max_staleness"}) {
    EXPECT_THAT(ErrorOf({"rollout." + key + "=-1"}),
                AllOf(HasSubstr("rollout." + key), HasSubstr("must not be negative")));
  }
}

// A sample of such a problem could not be drawn or judged: the run would learn nothing, or stand.
TEST(RunChecks, ProblemsThatNoSampleAnswers) {
  runtime::TemporaryFolder folder;
  const std::string path = folder / "tasks.jsonl";
  std::ofstream(path) << R"({"prompt": "say", "answer": "1", "in": "ko", "no": ""})"
                      << "\n"
                      << R"({"prompt": "dire", "answer": "1", "in": "fr", "no": ""})"
                      << "\n";
  const std::string problems = "={verifier: math, jsonl: " + path;
  for (const std::string at : {"stages.rl.prompts", "stages.rl.general_prompts",
                               "stages.samples.prompts", "evaluate.suites.heldout.problems"}) {
    Overrides overrides = {at + problems + ", language: fr}"};
    if (at == "stages.rl.general_prompts") {
      overrides.insert(overrides.begin(), "stages.rl.general_last_steps=1");
    }
    EXPECT_THAT(ErrorOf(overrides), AllOf(HasSubstr("problem tasks.jsonl:1"),
                                          HasSubstr("no language 'fr'; one of en, zh, ko, ja")));
    overrides.back() = at + problems + ", language_field: in}";
    EXPECT_THAT(ErrorOf(overrides),
                AllOf(HasSubstr("problem tasks.jsonl:2"), HasSubstr("no language 'fr'")));
    overrides.back() = at + problems + ", prompt_template: \"{no}\"}";
    EXPECT_THAT(ErrorOf(overrides),
                AllOf(HasSubstr("problem tasks.jsonl:1"), HasSubstr("the prompt is empty")));
  }
  EXPECT_EQ(ErrorOf({"stages.rl.prompts" + problems + ", language: ko}"}), "");
}

TEST(RunChecks, TasksWithoutAVerifierAndRewardsWithoutARule) {
  runtime::TemporaryFolder folder;
  const std::string path = folder / "tasks.jsonl";
  std::ofstream(path) << R"({"prompt": "say", "answer": "1"})"
                      << "\n";
  EXPECT_THAT(ErrorOf({"stages.rl.prompts={jsonl: " + path + ", verifier: oracle}"}),
              AllOf(HasSubstr("oracle"), HasSubstr("math")));
  EXPECT_THAT(ErrorOf({"stages.rl.reward={acuracy: 1}"}),
              AllOf(HasSubstr("acuracy"), HasSubstr("did you mean 'accuracy'")));
  EXPECT_THAT(ErrorOf({"stages.rl.reward={}"}), HasSubstr("name at least one reward"));
  EXPECT_THAT(ErrorOf({"stages.rl.reward_models={kind: base}", "stages.rl.reward={kind: 1}"}),
              HasSubstr("stage 'base' trains no reward model"));
  EXPECT_THAT(ErrorOf({"stages.rl.sampling.environment={name: oracle}"}),
              AllOf(HasSubstr("oracle"), HasSubstr("calculator")));
  EXPECT_THAT(ErrorOf({"stages.rl.reference=workers"}),
              AllOf(HasSubstr("workers"), HasSubstr("pool")));
}

TEST(RunChecks, SamplingWithoutWorkers) {
  EXPECT_THAT(ErrorOf({"rollout.workers=0"}),
              AllOf(HasSubstr("stage 'rl'"), HasSubstr("rollout.workers is 0")));
  const std::string base =
      "{name: base, kind: pretrain, steps: 1, lr: {peak: 0.003}, "
      "data: {family: chain, text: answer}";
  const std::string stages = "stages=[" + base + "}, {name: look, kind: evaluate, from: base}]";
  const std::string texts = "evaluate.suites=[{name: texts, text: {family: chain, text: answer}}]";
  EXPECT_EQ(ErrorOf({"rollout.workers=0", "stages=[" + base + "}]"}), "") << "suites are left out";
  EXPECT_THAT(ErrorOf({"rollout.workers=0", stages}),
              AllOf(HasSubstr("stage 'look'"), HasSubstr("rollout.workers is 0")));
  EXPECT_EQ(ErrorOf({"rollout.workers=0", stages, "evaluate.suites.heldout.after_stages=[base]"}),
            "");
  EXPECT_EQ(ErrorOf({"rollout.workers=0", stages, texts}), "");
  const std::string until = base + ", until: {at_least: 1, suite: ";
  EXPECT_EQ(ErrorOf({"rollout.workers=0", "stages=[" + until + "texts, metric: loss}}]", texts}),
            "");
  EXPECT_THAT(ErrorOf({"rollout.workers=0", "stages=[" + until + "heldout, metric: accuracy}}]"}),
              HasSubstr("rollout.workers is 0"));
}

// Whatever a rollout's lengths turn out to be, its minibatches are cut to fit the schedule.
TEST(RunChecks, WeightsArePublishedWhereTheLearnerIs) {
  EXPECT_THAT(ErrorOf({"rollout.publish=device"}),
              AllOf(HasSubstr("publish: device"), HasSubstr("train.device is cpu")));
  EXPECT_EQ(ErrorOf({"rollout.publish=device", "train.device=cuda", "rollout.device=cuda"}), "");
  EXPECT_EQ(ErrorOf({"rollout.publish=host"}), "");
  EXPECT_THAT(ErrorOf({"rollout.publish=gpu"}), HasSubstr("publish"));
}

TEST(RunChecks, CallsBeyondTheMachineAreSecured) {
  EXPECT_EQ(ErrorOf({"rollout.listen=0.0.0.0:0"}), "") << "by a certificate of the run's own";
  runtime::TemporaryFolder folder;
  std::ofstream(folder / "a.pem") << "-----BEGIN CERTIFICATE-----\n";
  const std::string pem = folder / "a.pem";
  const Overrides all = {"rollout.tls_certificate=" + pem, "rollout.tls_key=" + pem,
                         "rollout.tls_ca=" + pem};
  EXPECT_EQ(ErrorOf(all), "");
  EXPECT_THAT(ErrorOf({all[0], all[2]}), HasSubstr("tls_key is not set"));
  std::ofstream(folder / "text") << "no key\n";
  for (const std::string name : {"absent", "text"}) {
    EXPECT_THAT(ErrorOf({all[0], all[1], "rollout.tls_ca=" + (folder / name)}),
                AllOf(HasSubstr("tls_ca"), HasSubstr(folder / name)));
  }
}

TEST(RunChecks, TurnsAreTakenInSynchronousRunsOnOneDevice) {
  EXPECT_EQ(ErrorOf({"rollout.colocated=true"}), "");
  for (const char* ahead : {"rollout.lag=1", "rollout.max_staleness=2"}) {
    EXPECT_THAT(ErrorOf({"rollout.colocated=true", ahead}), HasSubstr("take turns")) << ahead;
  }
  EXPECT_THAT(
      ErrorOf({"rollout.colocated=true", "train.device=cuda", "rollout.allow_logprob_gap=true"}),
      HasSubstr("rollout.device is not train.device"));
}

TEST(RunChecks, EverySchedulePassesWithFewPacks) {
  for (const char* schedule : {"interleaved", "zb_h1", "dualpipe_v"}) {
    EXPECT_EQ(
        ErrorOf({"mesh.pp=2", "pipeline.schedule=" + std::string(schedule),
                 fmt::format("pipeline.chunks={}", schedule == std::string("interleaved") ? 2 : 1),
                 "stages.sft.batch.packs=4"}),
        "");
  }
}

}  // namespace
}  // namespace hone::rl
