#include "parallel/comm/tcp_bootstrap.h"

#include <charconv>
#include <cstdlib>

#include "runtime/error.h"

namespace hone::parallel {
namespace {

std::string Variable(const char* name, const char* otherwise = nullptr) {
  const char* value = std::getenv(name);
  if (value == nullptr && otherwise != nullptr) value = std::getenv(otherwise);
  return value == nullptr ? "" : value;
}

int Number(const std::string& what, const std::string& text, int low, int high) {
  int value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  Check<ConfigError>(
      error == std::errc() && end == text.data() + text.size() && value >= low && value <= high,
      "[tcp] {} is '{}'; expected a number from {} to {}", what, text, low, high);
  return value;
}

void ReadAddress(TcpOptions* options) {
  std::string master = Variable("HONE_MASTER");
  if (!master.empty()) {
    size_t colon = master.rfind(':');
    Check<ConfigError>(colon != std::string::npos && colon > 0,
                       "[tcp] HONE_MASTER is '{}'; expected HOST:PORT", master);
    options->host = master.substr(0, colon);
    options->port = Number("HONE_MASTER's port", master.substr(colon + 1), 1, 65535);
    return;
  }
  std::string nodes = Variable("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST");
  std::string job = Variable("SLURM_JOB_ID");
  Check<ConfigError>(!nodes.empty() && !job.empty(),
                     "[tcp] rank {} of {} does not know where rank 0 is; set HONE_MASTER=HOST:PORT",
                     options->rank, options->size);
  options->host = FirstNode(nodes);
  // Below the range that Linux gives to outgoing connections (32768 on).
  options->port = 12000 + Number("SLURM_JOB_ID", job, 0, 1 << 30) % 20000;
}

}  // namespace

std::string FirstNode(const std::string& list) {
  size_t bracket = list.find('['), comma = list.find(',');
  if (bracket == std::string::npos || comma < bracket) return list.substr(0, comma);
  size_t end = list.find_first_of("-,]", bracket);
  return list.substr(0, bracket) + list.substr(bracket + 1, end - bracket - 1);
}

TcpOptions TcpOptionsFromEnvironment() {
  TcpOptions options;
  std::string size = Variable("HONE_SIZE", "SLURM_NTASKS");
  if (size.empty()) return options;
  options.size = Number("HONE_SIZE or SLURM_NTASKS", size, 1, 1 << 20);
  if (options.size == 1) return options;
  options.rank = Number("HONE_RANK or SLURM_PROCID", Variable("HONE_RANK", "SLURM_PROCID"), 0,
                        options.size - 1);
  ReadAddress(&options);
  options.token = Variable("HONE_TOKEN");
  if (options.token.empty()) {
    options.token = fmt::format("{}.{}", Variable("SLURM_JOB_ID"), Variable("SLURM_STEP_ID"));
  }
  return options;
}

}  // namespace hone::parallel
