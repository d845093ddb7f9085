// The official `openai` Python package against the endpoint: openai_client.py says what is asked.
//
// Needs a Python with that package: HONE_TEST_PYTHON, or python3.
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "launcher/serve/api_server.h"
#include "tests/launcher/program.h"
#include "tests/launcher/tiny_served_model.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

constexpr int64_t kContext = 4096;

std::string PythonWithOpenai() {
  const char* named = std::getenv("HONE_TEST_PYTHON");
  for (std::string python : {named ? named : "", "python3"}) {
    bool works =
        !python.empty() && std::system((python + " -c 'import openai' 2>/dev/null").c_str()) == 0;
    if (works) return python;
  }
  return "";
}

TEST(OpenaiTest, ItsClientFindsEverything) {
  const std::string python = PythonWithOpenai();
  if (python.empty()) GTEST_SKIP() << "no Python with openai; name one in HONE_TEST_PYTHON";
  rl::LoadedModel model = TinyModel(kContext, "deepseek_r1");
  ServeOptions options;
  options.port = 0;
  options.model_name = "tiny";
  options.api_key = "a key";
  options.limits.context = kContext;
  options.engine.max_tokens = kContext;
  ApiServer server(model, options);
  std::thread thread([&] { server.Run(); });
  runtime::TemporaryFolder folder;
  const std::string log = folder / "log";
  const int code = std::system(
      fmt::format("timeout 100 {} {}/tests/launcher/openai_client.py http://127.0.0.1:{}/v1 '{}' "
                  "tiny {} > {} 2>&1",
                  python, HONE_SOURCE_DIR, server.port(), options.api_key, kContext, log)
          .c_str());
  server.Stop();
  thread.join();
  EXPECT_EQ(code, 0) << ReadFile(log);
}

}  // namespace
}  // namespace hone::launcher
