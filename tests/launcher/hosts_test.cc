// timeout: 300
// A pool whose calls leave the machine: `hone run` with certificates, given or of its own; and
// learner ranks on two hosts, which are network namespaces here, each with an address of its own.
#include <gmock/gmock.h>

#include "tests/launcher/program.h"
#include "tests/read_json.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

using testing::HasSubstr;

class HostsTest : public testing::Test {
 protected:
  HostsTest() {
    std::ofstream(folder_ / "run.yaml") << R"(run: {name: hosts, seed: 3}
tokenizer: byte
model: {family: llama, hidden_size: 16, intermediate_size: 20, num_hidden_layers: 2,
  num_attention_heads: 2, vocab_size: 263, max_position_embeddings: 64}
mesh: {pp: 2}
rollout: {workers: 2, stall_seconds: 40, lease_seconds: 20}
stages:
  - {name: rl, kind: grpo, steps: 2, lr: {peak: 0.001}, batch: {pack_tokens: 64},
     prompts: {family: chain}, prompts_per_rollout: 2, group_size: 2, reward: {accuracy: 1},
     max_unusable: 1.0, sampling: {max_new_tokens: 8}}
)";
  }
  Words Arguments(const std::string& command, const Words& settings) const {
    Words words = {command, folder_ / "run.yaml", "--run-dir", folder_ / "run"};
    for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
    return words;
  }
  std::string StageState() const {
    return ParseJson(ReadFile(folder_ / "run/state.json"))["stages"][0]["state"];
  }
  runtime::TemporaryFolder folder_;
};

TEST_F(HostsTest, WorkersOfARunAreGivenItsCertificates) {
  auto openssl = [this](const std::string& words) {
    return std::system(fmt::format("cd {} && openssl {} > /dev/null 2>&1", folder_.path(), words)
                           .c_str()) == 0;
  };
  if (!openssl("version")) GTEST_SKIP() << "there is no openssl to make certificates with";
  ASSERT_TRUE(
      openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=node "
              "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out node.pem"));
  const Words files = {"rollout.tls_certificate=" + (folder_ / "node.pem"),
                       "rollout.tls_key=" + (folder_ / "key.pem"),
                       "rollout.tls_ca=" + (folder_ / "node.pem")};
  for (const Words& settings : {files, Words{"rollout.listen=0.0.0.0:0"}}) {
    std::filesystem::remove_all(folder_ / "run");
    Program program(HoneCommand(0, Arguments("run", settings)), folder_ / "output");
    EXPECT_EQ(program.Wait(), 0) << program.output() << ReadFile(folder_ / "run/logs/worker-0.log");
    EXPECT_EQ(StageState(), "done");
  }
}

// Each host is a network, a name and processes of its own: they share files and nothing else.
constexpr char kHosts[] = R"sh(
start() { unshare --net --uts --pid --fork --mount-proc bash host "$1" & }
start 1; one=$!
start 2; two=$!
for host in $one $two; do  # until they are away from here
  while [ "$(readlink /proc/$host/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.02; done
done
ip link add side1 netns $one type veth peer name side2 netns $two || exit
wait $one; code=$?
wait $two && exit $code
)sh";
constexpr char kHost[] = R"sh(
hostname 10.77.0.$1  # a name that needs no name server
ip link set lo up
until ip address add 10.77.0.$1/24 dev side$1 2> /dev/null; do sleep 0.02; done
ip link set side$1 up
export HONE_MASTER=10.77.0.1:7700 HONE_RANK=$(($1 - 1)) HONE_SIZE=2 HONE_TOKEN=together
"$HONE" worker --run-dir run --name worker-$1 > worker-$1.log 2>&1 &
"$HONE" train run.yaml --run-dir run --set rollout.listen=0.0.0.0:0 --tcp
)sh";

TEST_F(HostsTest, RanksAndWorkersOnTwoHosts) {
  if (std::system("unshare --net --uts --pid --fork ip link > /dev/null 2>&1") != 0) {
    GTEST_SKIP() << "hosts need root, unshare and ip";
  }
  std::ofstream(folder_ / "hosts") << kHosts;
  std::ofstream(folder_ / "host") << kHost;
  Program program({"env", "--chdir=" + (folder_ / ""), "HONE=" + HoneProgram(), "unshare", "--net",
                   "bash", "hosts"},
                  folder_ / "output");
  EXPECT_EQ(program.Wait(), 0) << program.output() << ReadFile(folder_ / "worker-1.log")
                               << ReadFile(folder_ / "worker-2.log");
  EXPECT_EQ(StageState(), "done");
}

}  // namespace
}  // namespace hone::launcher
