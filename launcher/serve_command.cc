// `hone serve`: an OpenAI-compatible endpoint in front of the inference engine.
#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <thread>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/serve/live_model.h"
#include "launcher/signals.h"
#include "runtime/file_system.h"

namespace hone::launcher {
namespace {

struct CommandOptions {
  std::string model, api_key_file;
  bool follow = false;  // the weights of a run that trains
  LiveModel::Options live;
  rl::LoadOptions load;
  ServeOptions serve;
  double cache_gb = 4;
};

// The key of the file, else of HONE_API_KEY: never an argument, which other users could see.
std::string ApiKey(const std::string& file) {
  const char* variable = std::getenv("HONE_API_KEY");
  std::string key = variable ? variable : "";
  if (!file.empty()) key = runtime::LocalFileSystem().ReadAll(file);
  const size_t end = key.find_last_not_of(" \r\n\t");
  key.resize(end == std::string::npos ? 0 : end + 1);
  Check<ConfigError>(!key.empty() || file.empty(), "[serve] {} holds no key", file);
  return key;
}

// Context and cache that fit the model and `cache_gb`.
void SizeEngine(const CommandOptions& options, const rl::LoadedModel& model, ServeOptions* serve) {
  const model::ModelConfig& config = model.files.config;
  int64_t& context = serve->limits.context;
  if (context == 0) context = 4096;
  context = std::min(context, config.max_position_embeddings);
  rl::EngineConfig& engine = serve->engine;
  engine.max_tokens = context;
  if (options.load.absorb) engine.mla_decode = model::MlaDecode::kAbsorb;
  const auto mla =
      options.load.absorb ? model::KvCache::Mla::kLatent : model::KvCache::Mla::kExpanded;
  const int64_t page = model::KvCache::BytesPerPage(config, config.num_hidden_layers,
                                                    engine.page_size, model.files.dtype, mla);
  const int64_t one = (context + engine.page_size - 1) / engine.page_size + 1;
  const auto affordable = static_cast<int64_t>(options.cache_gb * 1e9 / static_cast<double>(page));
  Check<ConfigError>(affordable > one,
                     "[serve] a cache of {} GB does not hold one sequence of {} tokens ({} bytes); "
                     "give more --cache-gb or less --context",
                     options.cache_gb, context, (one + 1) * page);
  engine.cache_pages = std::min(affordable, engine.max_batch * one + 1);
}

std::string NameOf(const CommandOptions& options) {
  if (options.model.empty()) return "live";
  std::filesystem::path path = std::filesystem::absolute(options.model).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

LiveModel::Options WhatToFollow(const CommandOptions& options) {
  LiveModel::Options live = options.live;
  live.load = options.load;
  live.run = options.model;
  if (live.source.coordinator.empty()) {
    live.source.coordinator_file = options.model + "/coordinator";
  }
  if (live.source.secret_file.empty()) live.source.secret_file = options.model + "/secret";
  return live;
}

int Serve(CommandOptions options) {
  ServeOptions& serve = options.serve;
  serve.api_key = ApiKey(options.api_key_file);
  const bool loopback =
      serve.host == "127.0.0.1" || serve.host == "localhost" || serve.host == "::1";
  Check<ConfigError>(loopback || !serve.api_key.empty(),
                     "[serve] listening on {} without a key would let anyone in: give "
                     "--api-key-file or HONE_API_KEY",
                     serve.host);
  const std::atomic<bool>& stop = StopFlag();
  std::unique_ptr<LiveModel> live;
  rl::LoadedModel loaded;
  if (options.follow) {
    live = std::make_unique<LiveModel>(WhatToFollow(options), stop);
  } else {
    loaded = rl::LoadModelForInference(options.model, options.load);
  }
  rl::LoadedModel& model = live ? live->model() : loaded;
  SizeEngine(options, model, &serve);
  if (serve.model_name.empty()) serve.model_name = NameOf(options);
  ApiServer server(model, serve);
  if (live) {
    server.Replace([] {}, live->fingerprint());
    live->Follow(server);
  }
  std::cout << fmt::format("serving {} at http://{}:{}/v1\n", serve.model_name, serve.host,
                           server.port())
            << std::flush;
  std::thread watch([&] {
    while (!stop) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    server.Stop();
  });
  server.Run();
  if (live) live->EndFollowing();
  watch.join();
  return 0;
}

}  // namespace

int ServeCommand(const Arguments& args) {
  CommandOptions o;
  ServeOptions& s = o.serve;
  CLI::App app("An OpenAI-compatible endpoint", "hone serve");
  app.add_option("model", o.model, "a Hugging Face folder, a checkpoint folder or a run");
  app.add_flag("--follow", o.follow, "the weights of the run as it trains, read-only");
  app.add_option("--coordinator", o.live.source.coordinator, "HOST:PORT of a run to follow");
  app.add_option("--secret-file", o.live.source.secret_file, "the followed run's secret");
  app.add_option("--tls-certificate", o.live.source.tls_certificate, "of a run with mutual TLS");
  app.add_option("--tls-key", o.live.source.tls_key, "of a run with mutual TLS");
  app.add_option("--tls-ca", o.live.source.tls_ca, "of a run with mutual TLS");
  auto number = [&](const char* name, auto* value, const char* what) {
    app.add_option(name, *value, what)->capture_default_str()->check(CLI::PositiveNumber);
  };
  app.add_option("--host", s.host, "address to listen on")->capture_default_str();
  app.add_option("--port", s.port, "0: any free one")->capture_default_str();
  app.add_option("--name", s.model_name, "of the model, for clients; the folder's unless told");
  app.add_option("--api-key-file", o.api_key_file, "what clients must send; or HONE_API_KEY");
  app.add_option("--tokenizer", o.load.tokenizer, "instead of the model's own");
  app.add_option("--chat-template", o.load.chat_template, "a name, instead of the model's own");
  app.add_flag("--absorb", o.load.absorb, "latent attention decodes with the small cache");
  number("--threads", &o.load.threads, "of the model");
  app.add_option("--context", s.limits.context,
                 "tokens of prompt and completion; 4096 unless told, at most the model's")
      ->check(CLI::PositiveNumber);
  number("--cache-gb", &o.cache_gb, "memory for keys and values");
  number("--max-batch", &s.engine.max_batch, "sequences decoding at once");
  number("--prefill-chunk", &s.engine.prefill_chunk, "prompt tokens a step");
  number("--max-waiting", &s.max_waiting, "sequences; more are refused with 429");
  number("--max-choices", &s.limits.max_choices, "n of one request at most");
  number("--connections", &s.connections, "served at once");
  number("--max-body", &s.max_body, "bytes of a request");
  number("--timeout", &s.timeout_seconds, "seconds of one request");
  number("--patience", &o.live.patience_seconds, "seconds for a followed run's first weights");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  o.follow = o.follow || !o.live.source.coordinator.empty();
  const bool run = !o.model.empty();
  if (!run && (!o.follow || o.live.source.secret_file.empty())) {
    std::cerr << "hone serve: name a model, or --coordinator HOST:PORT --secret-file FILE\n";
    return 2;
  }
  return Serve(std::move(o));
}

}  // namespace hone::launcher
