#include "rl/rollout/worker_config.h"

#include "runtime/error.h"
#include "runtime/json.h"
#include "runtime/philox.h"

namespace hone::rl {

using nlohmann::json;

std::string WriteWorkerConfig(const WorkerConfig& c) {
  return json{{"model", json::parse(c.model.ToHuggingFaceJson())},
              {"tokenizer", c.tokenizer},
              {"special_tokens", c.special_tokens},
              {"dtype", std::string(runtime::DTypeName(c.dtype))},
              {"numerics", std::string(runtime::NumericsName(c.numerics))},
              {"max_batch", c.engine.max_batch},
              {"page_size", c.engine.page_size},
              {"cache_pages", c.engine.cache_pages},
              {"prefill_chunk", c.engine.prefill_chunk},
              {"max_tokens", c.engine.max_tokens},
              {"absorb", c.engine.mla_decode == model::MlaDecode::kAbsorb},
              {"lazy_cache", c.engine.lazy_cache},
              {"record_routing", c.engine.record_routing}}
      .dump();
}

WorkerConfig ReadWorkerConfig(const std::string& text) {
  WorkerConfig c;
  try {
    json j = runtime::ParseJson<CommError>(text, "[worker] the coordinator's config");
    c.model = model::ModelConfig::FromHuggingFaceText(j.at("model").dump(), "the run's model");
    j.at("tokenizer").get_to(c.tokenizer);
    j.at("special_tokens").get_to(c.special_tokens);
    c.dtype = runtime::DTypeFromName(j.at("dtype").get<std::string>());
    c.numerics = runtime::NumericsFromName(j.at("numerics").get<std::string>());
    j.at("max_batch").get_to(c.engine.max_batch);
    j.at("page_size").get_to(c.engine.page_size);
    j.at("cache_pages").get_to(c.engine.cache_pages);
    j.at("prefill_chunk").get_to(c.engine.prefill_chunk);
    j.at("max_tokens").get_to(c.engine.max_tokens);
    j.at("lazy_cache").get_to(c.engine.lazy_cache);
    j.at("record_routing").get_to(c.engine.record_routing);
    if (j.at("absorb").get<bool>()) c.engine.mla_decode = model::MlaDecode::kAbsorb;
  } catch (const json::exception& e) {
    throw CommError(fmt::format("[worker] the coordinator's config cannot be read: {}", e.what()));
  }
  return c;
}

std::string ModelDigest(const model::ModelConfig& model, const std::string& tokenizer_digest) {
  return fmt::format("{:016x}", HashName(model.ToHuggingFaceJson() + "\n" + tokenizer_digest));
}

}  // namespace hone::rl
