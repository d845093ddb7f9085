#include "parallel/comm/thread_group_state.h"

#include <cstring>

#include "parallel/comm/list_text.h"
#include "runtime/error.h"

namespace hone::parallel {

void ThreadWorld::Fail(const std::string& reason) {
  std::lock_guard lock(mutex);
  if (failure.empty()) failure = reason;
  for (auto& condition : wake) condition.notify_all();
}

std::string Collective::Missing() const {
  std::vector<int> ranks;
  for (size_t r = 0; r < arrived.size(); ++r) {
    if (!arrived[r]) ranks.push_back(static_cast<int>(r));
  }
  return ListText(ranks);
}

std::string Receipt::Missing() const { return fmt::format("{} (tag {})", peer, tag); }

void Receipt::Deliver(const std::string& where, const void* data, int64_t bytes) {
  if (bytes == into.bytes()) {
    if (bytes > 0) std::memcpy(into.raw(), data, bytes);
  } else {
    error = std::make_exception_ptr(CommError(
        fmt::format("{}: the message has {} bytes, the buffer {}", where, bytes, into.bytes())));
  }
  done = true;
}

std::string ThreadGroupState::Place(int rank) const {
  return fmt::format("group {}, rank {} of {}", name, rank, size());
}

void ThreadGroupState::WakeAll() {
  for (int r : world_ranks) world->wake[r].notify_all();
}

std::shared_ptr<Collective> ThreadGroupState::Join(int rank, uint64_t number, const std::string& op,
                                                   const std::string& signature, Part part) {
  Check<CommError>(world->failure.empty(), "[{}] {}: {}", op, Place(rank), world->failure);
  auto& slot = open[number];
  if (!slot) {
    slot = std::make_shared<Collective>();
    slot->signature = signature;
    slot->first_rank = rank;
    slot->arrived.resize(size());
    slot->missing = size();
    slot->parts.resize(size());
  }
  std::shared_ptr<Collective> collective = slot;
  collective->arrived[rank] = true;
  if (--collective->missing == 0) open.erase(number);
  Check<TimeoutError>(collective->given_up_for.empty(),
                      "[{}] {}: came too late, the others had given up waiting", op, Place(rank));
  if (collective->signature != signature && !collective->done) {
    collective->error = std::make_exception_ptr(
        CommError(fmt::format("[{}] group {}: rank {} calls it where rank {} called {}", signature,
                              name, rank, collective->first_rank, collective->signature)));
    collective->done = true;
    WakeAll();
  }
  if (!collective->done) collective->parts[rank] = std::move(part);
  collective->running = collective->missing == 0 && !collective->done;
  return collective;
}

ThreadWork::ThreadWork(std::shared_ptr<ThreadGroupState> group, int rank, std::string op,
                       std::shared_ptr<Pending> pending)
    : group_(std::move(group)), rank_(rank), op_(std::move(op)), pending_(std::move(pending)) {}

bool ThreadWork::Done() {
  std::lock_guard lock(group_->world->mutex);
  return pending_->done || (!group_->world->failure.empty() && !pending_->running);
}

void ThreadWork::Wait() {
  ThreadWorld& world = *group_->world;
  Pending& pending = *pending_;
  std::unique_lock lock(world.mutex);
  auto& wake = world.wake[group_->world_ranks[rank_]];
  auto ended = [&] { return pending.done || (!world.failure.empty() && !pending.running); };
  if (!wake.wait_for(lock, world.options.deadline, ended) && !pending.running) {
    // Who comes later must not touch the tensors of a rank that has gone.
    pending.given_up_for = pending.Missing();
    pending.done = true;
    group_->WakeAll();
  }
  wake.wait(lock, ended);
  Check<CommError>(pending.done, "[{}] {}: {}", op_, group_->Place(rank_), world.failure);
  Check<TimeoutError>(pending.given_up_for.empty(), "[{}] {}: waited {:.1f} s for rank {}", op_,
                      group_->Place(rank_),
                      std::chrono::duration<double>(world.options.deadline).count(),
                      pending.given_up_for);
  if (pending.error) std::rethrow_exception(pending.error);
}

}  // namespace hone::parallel
