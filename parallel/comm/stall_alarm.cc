#include "parallel/comm/stall_alarm.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace hone::parallel {

StallAlarm::StallAlarm(Milliseconds glance) : thread_([this, glance] { Run(glance); }) {}

StallAlarm::~StallAlarm() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

StallAlarm::Attempt::Attempt(StallAlarm& alarm, std::string what, Milliseconds limit)
    : alarm_(alarm),
      what_(std::move(what)),
      limit_(limit),
      begin_(std::chrono::steady_clock::now()) {
  std::lock_guard lock(alarm_.mutex_);
  alarm_.current_ = this;
}

StallAlarm::Attempt::~Attempt() {
  std::lock_guard lock(alarm_.mutex_);
  alarm_.current_ = nullptr;
}

void StallAlarm::Run(Milliseconds glance) {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, glance, [this] { return stop_; })) {
    if (!current_ || std::chrono::steady_clock::now() - current_->begin_ <= current_->limit_) {
      continue;
    }
    const std::string message = fmt::format(
        "hone: {}: a call of the driver or of NCCL has not returned for {:.1f} s; this process "
        "ends\n",
        current_->what_, std::chrono::duration<double>(current_->limit_).count());
    std::fputs(message.c_str(), stderr);
    _exit(1);
  }
}

}  // namespace hone::parallel
