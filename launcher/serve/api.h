// Requests and responses of the OpenAI-compatible endpoint, as JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launcher/serve/choice_text.h"
#include "launcher/serve/engine_thread.h"

namespace hone::launcher {

// What a client is told: an HTTP status, and the field that is wrong.
struct ApiError {
  int status = 400;
  std::string message, parameter;
  std::string code = "";  // for programs, e.g. context_length_exceeded
  std::string ToJson() const;
};

struct ApiLimits {
  int64_t context = 0;             // prompt and completion of one choice
  int64_t default_max_tokens = 0;  // when the client names none; 0: what the context leaves
  int64_t max_choices = 16;
  std::string model;  // what requests may ask for; "": anything
};

// A request, understood.
struct ApiRequest {
  bool chat = false;
  rl::GenerateRequest generate;  // but for id, group and stream
  std::vector<RandomStream> streams;
  ChoiceText::Options text;
  bool stream = false, include_usage = false, logprobs = false;
};
// Throws ApiError: for what is malformed, and for what is well-formed but would be ignored.
ApiRequest ParseApiRequest(bool chat, const std::string& body, const rl::LoadedModel& model,
                           const ApiLimits& limits);

// Writes the response to one request from what comes out of its channel.
class ApiResponse {
 public:
  ApiResponse(const ApiRequest& request, const rl::LoadedModel& model, std::string model_name);
  // Which weights drew it (system_fingerprint); "" where there are no others.
  void SetFingerprint(const std::string& fingerprint) { fingerprint_ = fingerprint; }
  // New tokens of each choice. Returns what a streaming client is sent: server-sent events, or "".
  std::string Push(const std::vector<Channel::Choice>& news);
  bool done() const;
  // Ends choices that are not done, as if they had reached their length.
  std::string Cut();
  std::string End() const;  // after the last Push: usage if it was asked for, and [DONE]
  std::string Whole() const;

 private:
  struct Choice {
    explicit Choice(ChoiceText text) : text(std::move(text)) {}
    ChoiceText text;
    SplitText shown;
    std::vector<Channel::Token> tokens;
    bool done = false, begun = false;
    const char* finish = "length";
  };
  nlohmann::ordered_json Envelope(const char* object) const;
  nlohmann::ordered_json Usage() const;
  nlohmann::ordered_json TokenEntry(const kernels::SampledToken& token) const;
  nlohmann::ordered_json ChatLogProbabilities(const std::vector<Channel::Token>& tokens) const;
  nlohmann::ordered_json LogProbabilities(const std::vector<Channel::Token>& tokens) const;
  std::string Event(size_t index, const SplitText& text, const std::vector<Channel::Token>& tokens);

  const ApiRequest& request_;
  const rl::LoadedModel& model_;
  std::string model_name_, id_, fingerprint_;
  int64_t created_;
  std::vector<Choice> choices_;
};

}  // namespace hone::launcher
