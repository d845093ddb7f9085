// `hone generate`: one completion of one prompt.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "rl/loaded_model.h"

namespace hone::launcher {
namespace {

struct GenerateOptions {
  std::string model, prompt, system;
  rl::LoadOptions load;
  int64_t max_tokens = 256;
  kernels::SamplingParams sampling;
  uint64_t seed = 1;
  bool raw = false, bos = false, json = false;
};

std::vector<int32_t> PromptTokens(const GenerateOptions& options, const rl::LoadedModel& model) {
  std::string text = options.prompt;
  if (!options.raw && model.chat_template) {
    std::vector<data::ChatMessage> messages;
    if (!options.system.empty()) messages.push_back({"system", options.system, ""});
    messages.push_back({"user", options.prompt, ""});
    text = model.chat_template->Text(messages, {.add_generation_prompt = true});
  }
  std::vector<int32_t> tokens = model.tokenizer->Encode(text);
  if (options.bos) {
    Check<ConfigError>(model.tokenizer->bos_id() >= 0, "[generate] the tokenizer has no bos token");
    tokens.insert(tokens.begin(), model.tokenizer->bos_id());
  }
  Check<ConfigError>(!tokens.empty(), "[generate] --prompt is empty");
  return tokens;
}

int Generate(const GenerateOptions& options) {
  rl::LoadedModel model = rl::LoadModelForInference(options.model, options.load);
  rl::GenerateRequest request;
  request.prompt = PromptTokens(options, model);
  request.max_new_tokens = options.max_tokens;
  request.sampling = options.sampling;
  request.stop_ids = model.stop_ids;
  request.stream = RandomStream{options.seed, 0};
  const int64_t prompt_tokens = static_cast<int64_t>(request.prompt.size());
  rl::EngineConfig engine_config;
  engine_config.max_batch = 1;
  engine_config.max_tokens =
      std::min(model.files.config.max_position_embeddings, prompt_tokens + options.max_tokens);
  if (options.load.absorb) engine_config.mla_decode = model::MlaDecode::kAbsorb;
  rl::InferenceEngine engine(*model.ctx, *model.stage, engine_config);
  engine.Add(std::move(request));

  data::IncrementalDecoder decoder(*model.tokenizer);
  std::string text;
  auto show = [&](const std::string& piece) {
    text += piece;
    if (!options.json) std::cout << piece << std::flush;
  };
  auto on_token = [&](uint64_t, const rl::DrawnToken& drawn) {
    const int32_t token = drawn.token;
    const auto& stop = model.stop_ids;
    if (std::find(stop.begin(), stop.end(), token) != stop.end()) return;
    show(token < model.tokenizer->vocab_size() ? decoder.Push(token)
                                               : decoder.Flush() + model.TokenBytes(token));
  };
  std::vector<rl::GenerateResult> done;
  while (done.empty()) done = engine.Step(on_token);
  show(decoder.Flush());
  if (options.json) {
    nlohmann::ordered_json out = {
        {"text", text},
        {"finish_reason", done[0].finish == rl::FinishReason::kStop ? "stop" : "length"},
        {"prompt_tokens", prompt_tokens},
        {"tokens", done[0].tokens},
        {"logp", done[0].logp}};
    std::cout << out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
  std::cout << "\n";
  return 0;
}

}  // namespace

int GenerateCommand(const Arguments& args) {
  GenerateOptions o;
  CLI::App app("One completion of one prompt", "hone generate");
  app.add_option("model", o.model, "a Hugging Face folder, a checkpoint folder or a run")
      ->required();
  app.add_option("--prompt", o.prompt, "the user's words, or the text itself with --raw")
      ->required();
  app.add_option("--system", o.system, "the system message of a chat template");
  app.add_option("--max-tokens", o.max_tokens, "how many to draw at most")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--temperature", o.sampling.temperature, "0: always the likeliest")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--top-p", o.sampling.top_p, "of the probability to draw from")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--top-k", o.sampling.top_k, "tokens to draw from; 0: all")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--seed", o.seed, "of the draw")->capture_default_str();
  app.add_flag("--raw", o.raw, "complete the prompt as it is, without a chat template");
  app.add_flag("--bos", o.bos, "put the beginning-of-text token in front");
  app.add_option("--tokenizer", o.load.tokenizer, "instead of the model's own");
  app.add_option("--chat-template", o.load.chat_template, "a name, instead of the model's own");
  app.add_option("--threads", o.load.threads, "of the model")->capture_default_str();
  app.add_flag("--absorb", o.load.absorb, "latent attention decodes with the small cache");
  app.add_flag("--json", o.json, "text, token ids and log-probabilities as one object");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  return Generate(o);
}

}  // namespace hone::launcher
