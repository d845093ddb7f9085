#include "launcher/serve/engine_thread.h"

#include <iostream>
#include <utility>

namespace hone::launcher {

std::vector<Channel::Choice> Channel::Take(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, patience, [&] { return fresh_; });
  fresh_ = false;
  std::vector<Choice> taken = choices_;
  for (Choice& choice : choices_) choice.tokens.clear();
  return taken;
}

bool Channel::Wait(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, patience, [&] { return fresh_; });
}

std::string Channel::error() {
  std::lock_guard lock(mutex_);
  return error_;
}

std::string Channel::fingerprint() {
  std::lock_guard lock(mutex_);
  return fingerprint_;
}

void Channel::Begin(const std::string& fingerprint) {
  std::lock_guard lock(mutex_);
  fingerprint_ = fingerprint;
}

void Channel::Add(size_t choice, Token token) {
  std::lock_guard lock(mutex_);
  choices_[choice].tokens.push_back(std::move(token));
  fresh_ = true;
  changed_.notify_all();
}

void Channel::Finish(size_t choice, rl::FinishReason reason) {
  std::lock_guard lock(mutex_);
  choices_[choice].done = true;
  choices_[choice].finish = reason;
  fresh_ = true;
  changed_.notify_all();
}

void Channel::Fail(const std::string& error) {
  std::lock_guard lock(mutex_);
  error_ = error;
  for (Choice& choice : choices_) choice.done = true;
  fresh_ = true;
  changed_.notify_all();
}

EngineThread::EngineThread(rl::LoadedModel& model, const rl::EngineConfig& config,
                           int64_t max_waiting)
    : engine_(*model.ctx, *model.stage, config,
              [&model](int32_t id) { return model.TokenBytes(id); }),
      max_waiting_(max_waiting),
      thread_([this] { Run(); }) {}

EngineThread::~EngineThread() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  ordered_.notify_all();
  replaced_.notify_all();
  thread_.join();
}

std::shared_ptr<Channel> EngineThread::Submit(const rl::GenerateRequest& request,
                                              const std::vector<RandomStream>& streams) {
  std::lock_guard lock(mutex_);
  if (stop_ || static_cast<int64_t>(places_.size() + streams.size()) > max_waiting_) return nullptr;
  auto channel = std::make_shared<Channel>(static_cast<int>(streams.size()));
  const uint64_t group = streams.size() > 1 ? next_id_ : 0;
  for (size_t i = 0; i < streams.size(); ++i) {
    rl::GenerateRequest one = request;
    one.id = next_id_++;
    one.group = group;
    one.stream = streams[i];
    places_[one.id] = {channel, i};
    added_.push_back(std::move(one));
  }
  ordered_.notify_all();
  return channel;
}

void EngineThread::Cancel(const std::shared_ptr<Channel>& channel) {
  std::lock_guard lock(mutex_);
  for (auto it = places_.begin(); it != places_.end();) {
    if (it->second.channel == channel) {
      cancelled_.push_back(it->first);
      ++cancelled_count_;
      it = places_.erase(it);
    } else {
      ++it;
    }
  }
  ordered_.notify_all();
}

int64_t EngineThread::under_way() {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(places_.size());
}

int64_t EngineThread::cancelled() {
  std::lock_guard lock(mutex_);
  return cancelled_count_;
}

EngineThread::Place EngineThread::PlaceOf(uint64_t id, bool remove) {
  std::lock_guard lock(mutex_);
  auto it = places_.find(id);
  if (it == places_.end()) return {};  // cancelled meanwhile
  Place place = it->second;
  if (remove) places_.erase(it);
  return place;
}

void EngineThread::FailAll(const std::string& error) {
  std::lock_guard lock(mutex_);
  for (auto& [id, place] : places_) place.channel->Fail(error);
  places_.clear();
  added_.clear();
  cancelled_.clear();
}

void EngineThread::TakeOrders(std::vector<rl::GenerateRequest>* added,
                              std::vector<uint64_t>* cancelled) {
  std::unique_lock lock(mutex_);
  if (engine_.pending() == 0) {
    ordered_.wait(lock,
                  [&] { return stop_ || replace_ || !added_.empty() || !cancelled_.empty(); });
  }
  for (uint64_t id : cancelled_) {
    std::erase_if(added_, [id](const rl::GenerateRequest& request) { return request.id == id; });
  }
  cancelled->swap(cancelled_);
  if (replace_) return;
  added->swap(added_);
  for (const rl::GenerateRequest& request : *added) {
    auto it = places_.find(request.id);
    if (it != places_.end()) it->second.channel->Begin(fingerprint_);
  }
}

bool EngineThread::Replace(std::function<void()> replace, const std::string& fingerprint) {
  std::unique_lock lock(mutex_);
  replace_ = std::move(replace);
  next_fingerprint_ = fingerprint;
  ordered_.notify_all();
  replaced_.wait(lock, [&] { return stop_ || !replace_; });
  if (replace_error_) std::rethrow_exception(std::exchange(replace_error_, nullptr));
  return !replace_;
}

void EngineThread::ReplaceIfIdle() {
  std::unique_lock lock(mutex_);
  if (!replace_ || engine_.pending() > 0) return;
  engine_.Drain();  // no key of the old weights is used with the new
  try {
    replace_();
    fingerprint_ = next_fingerprint_;
  } catch (...) {
    replace_error_ = std::current_exception();  // of who asked for it
  }
  replace_ = nullptr;
  replaced_.notify_all();
}

// What the engine does not take fails that request alone.
void EngineThread::Add(rl::GenerateRequest request) {
  const uint64_t id = request.id;
  try {
    engine_.Add(std::move(request));
  } catch (const std::exception& e) {
    const auto channel = PlaceOf(id, false).channel;
    if (!channel) return;  // with another of its choices
    std::cerr << "hone serve: " << e.what() << "\n";
    channel->Fail(e.what());
    Cancel(channel);
  }
}

void EngineThread::Step() {
  auto finished = engine_.Step([&](uint64_t id, const rl::DrawnToken& drawn) {
    ++drawn_;
    Place place = PlaceOf(id, false);
    if (place.channel) place.channel->Add(place.choice, drawn);
  });
  for (const rl::GenerateResult& result : finished) {
    Place place = PlaceOf(result.id, true);
    if (place.channel) place.channel->Finish(place.choice, result.finish);
  }
}

void EngineThread::Run() {
  for (;;) {
    std::vector<rl::GenerateRequest> added;
    std::vector<uint64_t> cancelled;
    TakeOrders(&added, &cancelled);
    {
      std::lock_guard lock(mutex_);
      if (stop_) break;
    }
    try {
      for (rl::GenerateRequest& request : added) Add(std::move(request));
      for (uint64_t id : cancelled) engine_.Cancel(id);
      if (engine_.pending() > 0) Step();
      ReplaceIfIdle();
    } catch (const std::exception& e) {
      std::cerr << "hone serve: " << e.what() << "\n";
      engine_.Drain();
      FailAll(e.what());
    }
  }
  FailAll("the server is ending");
}

}  // namespace hone::launcher
