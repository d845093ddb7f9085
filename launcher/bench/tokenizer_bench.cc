// `hone bench tokenizer`: text to ids on one core.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/tokenizer.h"
#include "launcher/bench/bench.h"
#include "runtime/error.h"
#include "runtime/file_system.h"

namespace hone::launcher {

Json BenchTokenizer(const TokenizerBenchOptions& options) {
  const std::string text = runtime::LocalFileSystem().ReadAll(options.text);
  Check<ConfigError>(!text.empty(), "[bench] {} is empty", options.text);
  std::vector<double> cold, warm;
  size_t tokens = 0;
  for (int64_t i = 0; i < options.rounds; ++i) {
    const auto tokenizer = data::LoadTokenizer(options.tokenizer);
    // What any text needs once: patterns compile, pages of the tables are touched.
    tokenizer->Encode("The 1 quick, brown\n fox. 狐狸");
    cold.push_back(SecondsOf([&] { tokens = tokenizer->Encode(text).size(); }));
    warm.push_back(SecondsOf([&] { tokenizer->Encode(text); }));
  }
  const auto bytes = static_cast<double>(text.size());
  return {{"bench", "tokenizer"},
          {"bytes", text.size()},
          {"tokens", tokens},
          {"bytes_per_second", bytes / Fastest(cold)},
          {"bytes_per_second_median", bytes / Median(cold)},
          {"bytes_per_second_warm", bytes / Fastest(warm)}};
}

}  // namespace hone::launcher
