#include "rl/rollout/wire.h"

#include <unistd.h>

#include <fstream>
#include <sstream>

#include "rl/rollout/own_certificate.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

constexpr char kSecretHeader[] = "x-hone-secret";
constexpr int kMaxMessageBytes = 64 << 20;

// What is in the file, unless `path` is the PEM itself.
std::string ReadPem(const std::string& path) {
  if (path.starts_with("-----BEGIN ")) return path;
  std::ifstream file(path, std::ios::binary);
  Check<ConfigError>(file.good(), "[tls] cannot read {}", path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

proto::Sample ToProto(const Sample& s) {
  proto::Sample m;
  m.mutable_key()->set_stage(s.key.stage);
  m.mutable_key()->set_rollout(s.key.rollout);
  m.mutable_key()->set_prompt(s.key.prompt);
  m.mutable_key()->set_sample(s.key.sample);
  m.set_problem_id(s.problem_id);
  for (const SampleToken& t : s.tokens) {
    m.add_id(t.id);
    m.mutable_source()->push_back(static_cast<char>(t.source));
    m.add_logp(t.logp);
    m.add_weight_version(t.weight_version);
  }
  m.set_temperature(s.temperature);
  m.set_finish(static_cast<int>(s.finish));
  m.set_outcome(static_cast<int>(s.outcome));
  for (const auto& [name, value] : s.rewards) (*m.mutable_rewards())[name] = value;
  m.mutable_routing()->Add(s.routing_TLK.begin(), s.routing_TLK.end());
  m.set_text(s.text);
  return m;
}

Sample FromProto(const proto::Sample& m) {
  size_t n = static_cast<size_t>(m.id_size());
  bool fits = m.source().size() == n && m.logp_size() == m.id_size() &&
              m.weight_version_size() == m.id_size() && m.outcome() >= 0 &&
              m.outcome() < kOutcomeCount && m.finish() >= 0 && m.finish() <= 2;
  Check<DataError>(fits, "[sample] a sample of '{}' with {} tokens has fields of other lengths",
                   m.key().stage(), n);
  Sample s;
  s.key = {m.key().stage(), m.key().rollout(), m.key().prompt(), m.key().sample()};
  s.problem_id = m.problem_id();
  for (int i = 0; i < m.id_size(); ++i) {
    int source = static_cast<unsigned char>(m.source()[static_cast<size_t>(i)]);
    Check<DataError>(source <= 2, "[sample] token {} has an unknown source {}", i, source);
    s.tokens.push_back({m.id(i), static_cast<TokenSource>(source), m.logp(i), m.weight_version(i)});
  }
  s.temperature = m.temperature();
  s.finish = static_cast<FinishReason>(m.finish());
  s.outcome = static_cast<Outcome>(m.outcome());
  s.rewards.insert(m.rewards().begin(), m.rewards().end());
  s.routing_TLK.assign(m.routing().begin(), m.routing().end());
  s.text = m.text();
  return s;
}

proto::Environment ToProto(const EnvironmentConfig& e) {
  proto::Environment m;
  m.set_name(e.name);
  m.set_call_begin(e.call_begin);
  m.set_call_end(e.call_end);
  m.set_answer_begin(e.answer_begin);
  m.set_answer_end(e.answer_end);
  m.set_max_calls(e.max_calls);
  return m;
}

EnvironmentConfig FromProto(const proto::Environment& m) {
  EnvironmentConfig e;
  e.name = m.name();
  e.call_begin = m.call_begin();
  e.call_end = m.call_end();
  e.answer_begin = m.answer_begin();
  e.answer_end = m.answer_end();
  e.max_calls = m.max_calls();
  return e;
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentials(const Security& security,
                                                           const std::string& listen) {
  Check<ConfigError>(!security.secret.empty(),
                     "[rollout] refusing to listen on {} without a secret: anybody could call",
                     listen);
  if (!security.tls()) {
    Check<ConfigError>(
        IsLoopback(listen),
        "[rollout] refusing to listen on {} without TLS: give rollout.tls_certificate, "
        "tls_key and tls_ca, or listen on 127.0.0.1",
        listen);
    return grpc::InsecureServerCredentials();
  }
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = ReadPem(security.ca);
  options.pem_key_cert_pairs.push_back({ReadPem(security.key), ReadPem(security.certificate)});
  return grpc::SslServerCredentials(options);
}

std::shared_ptr<grpc::Channel> Connect(const std::string& address, const Security& security) {
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (security.tls()) {
    credentials = grpc::SslCredentials(
        {ReadPem(security.ca), ReadPem(security.key), ReadPem(security.certificate)});
  }
  grpc::ChannelArguments arguments;
  if (security.own()) arguments.SetSslTargetNameOverride(kOwnCertificateName);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // nodes reach each other as they are
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A channel of its own: a restarted server at the same address is not mistaken for a dead one.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

void Prepare(grpc::ClientContext& context, const Security& security,
             std::chrono::milliseconds deadline) {
  context.AddMetadata(kSecretHeader, security.secret);
  context.set_deadline(std::chrono::system_clock::now() + deadline);
}

grpc::Status CheckSecret(const grpc::ServerContextBase& context, const std::string& secret) {
  auto it = context.client_metadata().find(kSecretHeader);
  std::string given = it == context.client_metadata().end()
                          ? ""
                          : std::string(it->second.data(), it->second.size());
  unsigned difference = given.size() == secret.size() ? 0 : 1;
  for (size_t i = 0; i < secret.size(); ++i) {
    unsigned char other = i < given.size() ? static_cast<unsigned char>(given[i]) : 0;
    difference |= static_cast<unsigned char>(secret[i]) ^ other;
  }
  if (difference == 0) return grpc::Status::OK;
  return {grpc::StatusCode::UNAUTHENTICATED, "wrong secret: take the one in RUN/secret"};
}

std::string BuildId(Device device) {
  if (!device.is_cpu()) {
    const std::string described = runtime::DescribeDevice(device);  // behind the index
    return "gcc" __VERSION__ " cuda" + described.substr(device.ToString().size());
  }
  std::string id = "gcc" __VERSION__ " cpu";
  for (const char* feature : {"avx2", "fma", "avx512f"}) {
    bool has = std::string(feature) == "avx2"  ? __builtin_cpu_supports("avx2")
               : std::string(feature) == "fma" ? __builtin_cpu_supports("fma")
                                               : __builtin_cpu_supports("avx512f");
    if (has) id += std::string("+") + feature;
  }
  return id;
}

std::string ReachableAddress(const std::string& listen, int port) {
  std::string host = listen.substr(0, listen.rfind(':'));
  if (IsWildcard(listen)) {
    char name[256] = {};
    gethostname(name, sizeof name - 1);
    host = name;
  }
  return fmt::format("{}:{}", host, port);
}

Security SecurityOf(const std::string& secret_file, Security given) {
  if (!given.secret.empty()) return given;
  given.secret = FirstLine(secret_file);
  if (!given.tls() && HasOwnCertificate(secret_file)) {
    given.certificate = given.key = given.ca = secret_file;
  }
  return given;
}

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace hone::rl
