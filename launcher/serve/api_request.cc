#include <limits>
#include <random>

#include "kernels/token_logprob/token_logprob.h"
#include "launcher/serve/api.h"
#include "runtime/json.h"

namespace hone::launcher {
namespace {

using nlohmann::json;

constexpr int64_t kMostLikeliest = 20;  // as OpenAI's

// Fields of a request; null counts as absent.
class Fields {
 public:
  explicit Fields(const json& body) : body_(body) {}
  bool Has(const char* key) const { return body_.contains(key) && !body_[key].is_null(); }
  const json& At(const char* key) const { return body_[key]; }
  [[noreturn]] static void Fail(const char* key, const std::string& what) {
    throw ApiError{400, fmt::format("'{}' {}", key, what), key};
  }
  bool Bool(const char* key, bool otherwise) const {
    if (!Has(key)) return otherwise;
    if (!At(key).is_boolean()) Fail(key, "must be true or false");
    return At(key).get<bool>();
  }
  int64_t Integer(const char* key, int64_t otherwise, int64_t low, int64_t high) const {
    if (!Has(key)) return otherwise;
    if (!At(key).is_number_integer()) Fail(key, "must be a whole number");
    const auto value = At(key).get<int64_t>();
    if (value < low || value > high) Fail(key, fmt::format("must lie in [{}, {}]", low, high));
    return value;
  }
  double Number(const char* key, double otherwise, double low, double high) const {
    if (!Has(key)) return otherwise;
    if (!At(key).is_number()) Fail(key, "must be a number");
    const double value = At(key).get<double>();
    if (!(value >= low && value <= high)) Fail(key, fmt::format("must lie in [{}, {}]", low, high));
    return value;
  }

 private:
  const json& body_;
};

// Features that would change the answer and that are not here.
void RefuseWhatIsMissing(const Fields& f) {
  for (const char* key : {"frequency_penalty", "presence_penalty"}) {
    if (f.Number(key, 0, -2, 2) != 0) Fields::Fail(key, "is not supported; leave it at 0");
  }
  for (const char* key : {"logit_bias", "tools", "functions"}) {
    if (f.Has(key) && !f.At(key).empty()) Fields::Fail(key, "is not supported");
  }
  if (f.Has("suffix")) Fields::Fail("suffix", "is not supported");
  if (f.Bool("echo", false)) Fields::Fail("echo", "is not supported");
  if (f.Has("best_of") && f.At("best_of") != (f.Has("n") ? f.At("n") : json(1))) {
    Fields::Fail("best_of", "is not supported");
  }
  if (f.Has("response_format") && f.At("response_format") != json{{"type", "text"}}) {
    Fields::Fail("response_format", "is not supported but for text");
  }
}

std::vector<std::string> StopStrings(const Fields& f) {
  if (!f.Has("stop")) return {};
  json stop = f.At("stop");
  if (!stop.is_array()) stop = json::array({stop});
  if (stop.size() > 16) Fields::Fail("stop", "has more than 16 strings");
  std::vector<std::string> words;
  for (const json& word : stop) {
    if (!word.is_string() || word.get<std::string>().empty()) {
      Fields::Fail("stop", "must be a string or a list of strings, none of them empty");
    }
    words.push_back(word.get<std::string>());
  }
  return words;
}

// A string, or a list of parts of which all are text.
std::string MessageText(const json& content) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) Fields::Fail("messages", "need content: a string or text parts");
  std::string text;
  for (const json& part : content) {
    const bool is_text = part.is_object() && part.value("type", json()) == "text" &&
                         part.value("text", json()).is_string();
    if (!is_text) Fields::Fail("messages", "has a part that is not text");
    text += part["text"].get<std::string>();
  }
  return text;
}

std::string ChatText(const Fields& f, const rl::LoadedModel& model) {
  if (!model.chat_template) {
    throw ApiError{400, "this model has no chat template; start `hone serve` with --chat-template",
                   "messages"};
  }
  if (!f.Has("messages") || !f.At("messages").is_array()) {
    Fields::Fail("messages", "is missing: a list of {role, content}");
  }
  std::vector<data::ChatMessage> messages;
  for (const json& m : f.At("messages")) {
    if (!m.is_object() || !m.value("role", json()).is_string()) {
      Fields::Fail("messages", "must hold objects with role and content");
    }
    const json reasoning = m.value("reasoning_content", json());
    messages.push_back({m["role"].get<std::string>(), MessageText(m.value("content", json())),
                        reasoning.is_string() ? reasoning.get<std::string>() : ""});
  }
  try {
    return model.chat_template->Text(messages, {.add_generation_prompt = true});
  } catch (const Error& e) {
    throw ApiError{400, e.what(), "messages"};
  }
}

std::vector<int32_t> PromptOf(const Fields& f, const rl::LoadedModel& model) {
  if (!f.Has("prompt")) Fields::Fail("prompt", "is missing");
  json prompt = f.At("prompt");
  const bool one_string = prompt.is_array() && prompt.size() == 1 && prompt[0].is_string();
  if (one_string) prompt = json(prompt[0]);
  if (prompt.is_string()) return model.tokenizer->Encode(prompt.get<std::string>());
  std::vector<int32_t> tokens;
  if (!prompt.is_array()) Fields::Fail("prompt", "must be a string or a list of token ids");
  for (const json& id : prompt) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
        id.get<int64_t>() >= model.files.config.vocab_size) {
      Fields::Fail("prompt", "must be one string, or one list of token ids of the vocabulary");
    }
    tokens.push_back(id.get<int32_t>());
  }
  return tokens;
}

// A tokenizer may have tokens that the model's embedding has no row for.
void CheckVocabulary(const Fields& f, const std::vector<int32_t>& prompt,
                     const rl::LoadedModel& model) {
  for (int32_t id : prompt) {
    if (id < model.files.config.vocab_size) continue;
    throw ApiError{400,
                   fmt::format("'{}' is token {}, and the model's vocabulary has {}: leave it out",
                               model.TokenBytes(id), id, model.files.config.vocab_size),
                   f.Has("messages") ? "messages" : "prompt"};
  }
}

void SetLengths(const Fields& f, const ApiLimits& limits, rl::GenerateRequest* g) {
  const auto prompt = static_cast<int64_t>(g->prompt.size());
  if (prompt == 0) throw ApiError{400, "the prompt is empty", "prompt"};
  const int64_t room = limits.context - prompt;
  if (room < 1) {
    throw ApiError{400,
                   fmt::format("the prompt has {} tokens; this server's maximum context length is "
                               "{}, of which at least one is for the completion",
                               prompt, limits.context),
                   f.Has("messages") ? "messages" : "prompt", "context_length_exceeded"};
  }
  const char* key = f.Has("max_completion_tokens") ? "max_completion_tokens" : "max_tokens";
  const int64_t otherwise =
      limits.default_max_tokens > 0 ? std::min(room, limits.default_max_tokens) : room;
  const int64_t asked = f.Integer(key, otherwise, 1, std::numeric_limits<int32_t>::max());
  g->max_new_tokens = std::min(asked, room);
}

std::vector<RandomStream> Streams(const Fields& f, int64_t n) {
  uint64_t seed = 0;
  if (f.Has("seed")) {
    if (!f.At("seed").is_number_integer()) Fields::Fail("seed", "must be a whole number");
    seed = static_cast<uint64_t>(f.At("seed").get<int64_t>());
  } else {
    std::random_device device;
    seed = (static_cast<uint64_t>(device()) << 32) | device();
  }
  std::vector<RandomStream> streams;
  for (int64_t i = 0; i < n; ++i) streams.push_back(RandomStream{seed, static_cast<uint64_t>(i)});
  return streams;
}

// A chat asks for them with `logprobs: true`, and for the likeliest tokens with `top_logprobs`; a
// plain completion for both with `logprobs: k`.
void SetLogProbabilities(bool chat, const Fields& f, ApiRequest* r) {
  const char* key = chat ? "top_logprobs" : "logprobs";
  r->generate.likeliest = f.Integer(key, 0, 0, kMostLikeliest);
  r->logprobs = chat ? f.Bool("logprobs", false) : f.Has("logprobs");
  if (!r->logprobs && r->generate.likeliest > 0) {
    Fields::Fail("top_logprobs", "needs logprobs: true");
  }
}

void CheckModel(const Fields& f, const ApiLimits& limits) {
  if (limits.model.empty() || !f.Has("model")) return;
  const json& model = f.At("model");
  if (model.is_string() && model.get<std::string>() == limits.model) return;
  throw ApiError{
      404, fmt::format("there is no model {}; this server has '{}'", model.dump(), limits.model),
      "model", "model_not_found"};
}

}  // namespace

ApiRequest ParseApiRequest(bool chat, const std::string& body, const rl::LoadedModel& model,
                           const ApiLimits& limits) {
  const json parsed = runtime::TryParseJson(body);
  if (!parsed.is_object()) {
    throw ApiError{400, "the body is not a JSON object, or is nested too deeply", ""};
  }
  const Fields f(parsed);
  CheckModel(f, limits);
  RefuseWhatIsMissing(f);
  ApiRequest r;
  r.chat = chat;
  r.stream = f.Bool("stream", false);
  if (f.Has("stream_options") && f.At("stream_options").is_object()) {
    r.include_usage = Fields(f.At("stream_options")).Bool("include_usage", false);
  }
  SetLogProbabilities(chat, f, &r);
  r.text.stop_ids = model.stop_ids;
  r.text.stop_strings = StopStrings(f);
  rl::GenerateRequest& g = r.generate;
  if (chat) {
    const std::string text = ChatText(f, model);
    const size_t end = text.find_last_not_of('\n') + 1;
    r.text.split_thinking = true;
    r.text.prompt_opens_thinking = std::string_view(text).substr(0, end).ends_with("<think>");
    g.prompt = model.tokenizer->Encode(text);
  } else {
    g.prompt = PromptOf(f, model);
  }
  CheckVocabulary(f, g.prompt, model);
  SetLengths(f, limits, &g);
  g.sampling.temperature = f.Number("temperature", 1, 0, 2);
  if (g.sampling.temperature < kernels::kLeastTemperature) g.sampling.temperature = 0;
  g.sampling.top_p = f.Number("top_p", 1, 1e-6, 1);
  g.sampling.top_k = std::max<int64_t>(0, f.Integer("top_k", 0, -1, 1 << 30));
  g.stop_ids = model.stop_ids;
  g.stop_strings = r.text.stop_strings;
  r.streams = Streams(f, f.Integer("n", 1, 1, limits.max_choices));
  return r;
}

}  // namespace hone::launcher
