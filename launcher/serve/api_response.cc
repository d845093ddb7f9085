#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "data/utf8.h"
#include "launcher/serve/api.h"

namespace hone::launcher {
namespace {

using nlohmann::ordered_json;

std::string Dump(const ordered_json& j) {
  return j.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::string ServerEvent(const ordered_json& j) { return "data: " + Dump(j) + "\n\n"; }

std::string NewId(bool chat) {
  std::random_device device;
  return fmt::format("{}-{:08x}{:08x}{:08x}", chat ? "chatcmpl" : "cmpl", device(), device(),
                     device());
}

}  // namespace

std::string ApiError::ToJson() const {
  const char* type = status == 401   ? "authentication_error"
                     : status == 429 ? "rate_limit_error"
                     : status >= 500 ? "server_error"
                                     : "invalid_request_error";
  return Dump({{"error",
                {{"message", message},
                 {"type", type},
                 {"param", parameter.empty() ? ordered_json() : ordered_json(parameter)},
                 {"code", code.empty() ? ordered_json() : ordered_json(code)}}}});
}

ApiResponse::ApiResponse(const ApiRequest& request, const rl::LoadedModel& model,
                         std::string model_name)
    : request_(request),
      model_(model),
      model_name_(std::move(model_name)),
      id_(NewId(request.chat)),
      created_(std::chrono::duration_cast<std::chrono::seconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count()) {
  for (size_t i = 0; i < request.streams.size(); ++i) {
    choices_.emplace_back(ChoiceText(*model.tokenizer, request.text));
  }
}

ordered_json ApiResponse::Envelope(const char* object) const {
  ordered_json envelope = {
      {"id", id_}, {"object", object}, {"created", created_}, {"model", model_name_}};
  if (!fingerprint_.empty()) envelope["system_fingerprint"] = fingerprint_;
  return envelope;
}

ordered_json ApiResponse::Usage() const {
  const auto prompt = static_cast<int64_t>(request_.generate.prompt.size());
  int64_t completion = 0;
  for (const Choice& c : choices_) completion += static_cast<int64_t>(c.tokens.size());
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion}};
}

ordered_json ApiResponse::TokenEntry(const kernels::SampledToken& token) const {
  const std::string bytes = model_.TokenBytes(token.token);
  ordered_json numbers = ordered_json::array();
  for (unsigned char byte : bytes) numbers.push_back(static_cast<int>(byte));
  return {{"token", bytes}, {"logprob", token.logp}, {"bytes", numbers}};
}

ordered_json ApiResponse::ChatLogProbabilities(const std::vector<Channel::Token>& tokens) const {
  ordered_json content = ordered_json::array();
  for (const Channel::Token& t : tokens) {
    ordered_json entry = TokenEntry({t.token, t.logp});
    entry["top_logprobs"] = ordered_json::array();
    for (const auto& likely : t.likeliest) entry["top_logprobs"].push_back(TokenEntry(likely));
    content.push_back(std::move(entry));
  }
  return {{"content", content}};
}

// Of a plain completion: three lists, of which the last holds maps from texts. Where two tokens
// have the same text, the likelier is named.
ordered_json ApiResponse::LogProbabilities(const std::vector<Channel::Token>& tokens) const {
  if (!request_.logprobs) return nullptr;
  if (request_.chat) return ChatLogProbabilities(tokens);
  ordered_json names = ordered_json::array(), values = ordered_json::array();
  ordered_json top = ordered_json::array();
  for (const Channel::Token& t : tokens) {
    names.push_back(model_.TokenBytes(t.token));
    values.push_back(t.logp);
    top.push_back(ordered_json::object());
    for (const auto& likely : t.likeliest) {
      top.back().emplace(data::ReplaceInvalidUtf8(model_.TokenBytes(likely.token)), likely.logp);
    }
  }
  if (request_.generate.likeliest == 0) top = nullptr;
  return {{"tokens", names}, {"token_logprobs", values}, {"top_logprobs", top}};
}

std::string ApiResponse::Event(size_t index, const SplitText& text,
                               const std::vector<Channel::Token>& tokens) {
  Choice& c = choices_[index];
  const bool empty = text.reasoning.empty() && text.content.empty();
  // Tokens whose text is held back are told with the text, but for their log-probabilities.
  if (!request_.stream || (empty && !c.done && (!request_.logprobs || tokens.empty()))) return "";
  ordered_json choice = {{"index", index}};
  if (request_.chat) {
    ordered_json delta = ordered_json::object();
    if (!std::exchange(c.begun, true)) delta["role"] = "assistant";
    if (!text.reasoning.empty()) delta["reasoning_content"] = text.reasoning;
    if (!text.content.empty()) delta["content"] = text.content;
    choice["delta"] = delta;
  } else {
    choice["text"] = text.content;
  }
  choice["logprobs"] = LogProbabilities(tokens);
  choice["finish_reason"] = c.done ? ordered_json(c.finish) : ordered_json();
  ordered_json event = Envelope(request_.chat ? "chat.completion.chunk" : "text_completion");
  event["choices"] = ordered_json::array({choice});
  return ServerEvent(event);
}

std::string ApiResponse::Push(const std::vector<Channel::Choice>& news) {
  std::string events;
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& c = choices_[i];
    if (c.done) continue;
    SplitText text;
    for (const Channel::Token& token : news[i].tokens) {
      SplitText piece = c.text.Push(token.token);
      text.reasoning += piece.reasoning;
      text.content += piece.content;
      c.tokens.push_back(token);
    }
    if (news[i].done) {
      SplitText rest = c.text.Flush();
      text.reasoning += rest.reasoning;
      text.content += rest.content;
      c.done = true;
      c.finish = news[i].finish == rl::FinishReason::kStop ? "stop" : "length";
    }
    c.shown.reasoning += text.reasoning;
    c.shown.content += text.content;
    events += Event(i, text, news[i].tokens);
  }
  return events;
}

bool ApiResponse::done() const {
  return std::all_of(choices_.begin(), choices_.end(), [](const Choice& c) { return c.done; });
}

std::string ApiResponse::Cut() {
  std::vector<Channel::Choice> ends(choices_.size());
  for (Channel::Choice& end : ends) end.done = true;
  return Push(ends);
}

std::string ApiResponse::End() const {
  std::string events;
  if (request_.include_usage) {
    ordered_json event = Envelope(request_.chat ? "chat.completion.chunk" : "text_completion");
    event["choices"] = ordered_json::array();
    event["usage"] = Usage();
    events = ServerEvent(event);
  }
  return events + "data: [DONE]\n\n";
}

std::string ApiResponse::Whole() const {
  ordered_json response = Envelope(request_.chat ? "chat.completion" : "text_completion");
  response["choices"] = ordered_json::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& c = choices_[i];
    ordered_json choice = {{"index", i}};
    if (request_.chat) {
      ordered_json message = {{"role", "assistant"}, {"content", c.shown.content}};
      if (!c.shown.reasoning.empty()) message["reasoning_content"] = c.shown.reasoning;
      choice["message"] = message;
    } else {
      choice["text"] = c.shown.content;
    }
    choice["logprobs"] = LogProbabilities(c.tokens);
    choice["finish_reason"] = c.finish;
    response["choices"].push_back(choice);
  }
  response["usage"] = Usage();
  return Dump(response);
}

}  // namespace hone::launcher
