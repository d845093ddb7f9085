#include "launcher/signals.h"

#include <unistd.h>

#include <csignal>

namespace hone::launcher {
namespace {

std::atomic<bool> stop_requested{false};

void OnSignal(int) {
  if (stop_requested.exchange(true)) _exit(75);
}

}  // namespace

const std::atomic<bool>& StopFlag() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return stop_requested;
}

}  // namespace hone::launcher
