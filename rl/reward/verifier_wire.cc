#include "rl/reward/verifier_wire.h"

#include <cstring>
#include <type_traits>

#include "runtime/error.h"

namespace hone::rl {
namespace {

class Writer {
 public:
  template <class T>
  void Number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void Text(const std::string& text) {
    Number(static_cast<uint32_t>(text.size()));
    bytes_ += text;
  }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <class T>
  T Number() {
    T value;
    std::memcpy(&value, Next(sizeof value).data(), sizeof value);
    return value;
  }
  std::string Text() {
    uint32_t size = Number<uint32_t>();
    return std::string(Next(size));
  }
  void End() const {
    Check<DataError>(bytes_.empty(), "[verifier] {} bytes too many in a message", bytes_.size());
  }

 private:
  std::string_view Next(size_t n) {
    Check<DataError>(n <= bytes_.size(), "[verifier] a message ends {} bytes early",
                     n - bytes_.size());
    std::string_view next = bytes_.substr(0, n);
    bytes_.remove_prefix(n);
    return next;
  }

  std::string_view bytes_;
};

}  // namespace

std::string EncodeRequest(const RewardRequest& request) {
  Writer w;
  w.Text(request.completion);
  w.Text(request.verifier);
  w.Text(request.gold);
  w.Text(request.language);
  w.Number(request.completion_tokens);
  w.Number(request.max_new_tokens);
  w.Number(static_cast<uint8_t>(request.finished));
  w.Text(request.environment);
  return w.Take();
}

RewardRequest DecodeRequest(std::string_view payload) {
  Reader r(payload);
  RewardRequest request;
  request.completion = r.Text();
  request.verifier = r.Text();
  request.gold = r.Text();
  request.language = r.Text();
  request.completion_tokens = r.Number<int64_t>();
  request.max_new_tokens = r.Number<int64_t>();
  request.finished = r.Number<uint8_t>() != 0;
  request.environment = r.Text();
  r.End();
  return request;
}

std::string EncodeReply(const RewardReply& reply) {
  Writer w;
  w.Number(static_cast<uint8_t>(reply.outcome));
  w.Number(static_cast<uint32_t>(reply.rewards.size()));
  for (const auto& [name, value] : reply.rewards) {
    w.Text(name);
    w.Number(value);
  }
  w.Text(reply.detail);
  return w.Take();
}

RewardReply DecodeReply(std::string_view payload) {
  Reader r(payload);
  RewardReply reply;
  uint8_t outcome = r.Number<uint8_t>();
  Check<DataError>(outcome < kOutcomeCount, "[verifier] there is no outcome {}", outcome);
  reply.outcome = static_cast<Outcome>(outcome);
  uint32_t parts = r.Number<uint32_t>();
  for (uint32_t i = 0; i < parts; ++i) {
    std::string name = r.Text();
    reply.rewards[name] = r.Number<double>();
  }
  reply.detail = r.Text();
  r.End();
  return reply;
}

std::string Frame(const std::string& payload) {
  Check<DataError>(payload.size() <= kMaxFrameBytes,
                   "[verifier] a message of {} bytes is over the limit of {}", payload.size(),
                   kMaxFrameBytes);
  uint32_t size = static_cast<uint32_t>(payload.size());
  return std::string(reinterpret_cast<const char*>(&size), sizeof size) + payload;
}

bool TakeFrame(std::string* buffer, std::string* payload) {
  uint32_t size;
  if (buffer->size() < sizeof size) return false;
  std::memcpy(&size, buffer->data(), sizeof size);
  Check<DataError>(size <= kMaxFrameBytes,
                   "[verifier] a message of {} bytes is over the limit of {}", size,
                   kMaxFrameBytes);
  if (buffer->size() < sizeof size + size) return false;
  payload->assign(*buffer, sizeof size, size);
  buffer->erase(0, sizeof size + size);
  return true;
}

}  // namespace hone::rl
