#include "parallel/comm/nccl_messenger.h"

#include <cstring>
#include <utility>

#include "parallel/comm/nccl_library.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

// What a receiver tells: the number of the receive on the lane, and how to form the lane.
struct Header {
  int64_t number;
  ncclUniqueId id;
};

Tensor HeaderTensor() {
  static const std::shared_ptr<Allocator> allocator = runtime::MakeAllocator(Device::Cpu());
  return Tensor(allocator, {static_cast<int64_t>(sizeof(Header))}, DType::kU8,
                MemoryCategory::kCommunication);
}

cudaStream_t HandleOf(Context& ctx) { return static_cast<cudaStream_t>(ctx.stream().handle()); }

}  // namespace

NcclMessenger::NcclMessenger(Context ctx, GroupPtr control, NcclWatcher* watcher,
                             std::chrono::milliseconds deadline)
    : ctx_(std::move(ctx)), control_(std::move(control)), watcher_(watcher), deadline_(deadline) {}

std::shared_ptr<NcclLane> NcclMessenger::MakeLane() const {
  auto lane = std::make_shared<NcclLane>(ctx_.device(), deadline_);
  watcher_->Add(lane);
  return lane;
}

void NcclMessenger::Send(const Tensor& tensor, int peer, int tag, const std::string& place) {
  Letter letter;
  letter.peer = peer;
  letter.place = place;
  letter.copy = ctx_.Clone(tensor, MemoryCategory::kCommunication);
  letter.header = HeaderTensor();
  letter.copied = std::make_shared<NcclEvent>(ctx_.device());
  letter.copied->Record(HandleOf(ctx_));
  letter.told = control_->Receive(letter.header, peer, tag);
  {
    std::lock_guard lock(mutex_);
    Check<CommError>(failure_.empty(), "{}: not possible after {}", place, failure_);
    outbox_.push_back(std::move(letter));
  }
  watcher_->Wake();
}

NcclMessenger::ReceiptPtr NcclMessenger::Receive(const Tensor& tensor, int peer, int tag,
                                                 const std::string& place) {
  auto receipt = std::make_shared<Receipt>(place, ctx_.device());
  receipt->tensor = tensor;
  receipt->operation->awaits = fmt::format("rank {}", peer);
  receipt->ready.Record(HandleOf(ctx_));
  Header header{};
  {
    std::lock_guard lock(mutex_);
    Check<CommError>(failure_.empty(), "{}: not possible after {}", place, failure_);
    Incoming& in = incoming_[peer];
    if (!in.lane) {
      in.lane = MakeLane();
      Check<CommError>(Nccl().ncclGetUniqueId(&in.id) == ncclSuccess, "{}: NCCL gives no unique id",
                       place);
      in.lane->BeginInit(in.id, 2, 1, place);
    }
    receipt->lane = in.lane;
    header = {in.next++, in.id};
    in.receipts.push_back(receipt);
  }
  Tensor told = HeaderTensor();
  std::memcpy(told.raw(), &header, sizeof header);
  control_->Send(told, peer, tag);
  watcher_->Wake();
  return receipt;
}

// An event that nothing was recorded in counts as passed.
bool NcclMessenger::Received(const Receipt& receipt) {
  std::lock_guard lock(mutex_);
  return receipt.issued && receipt.operation->done.Passed();
}

void NcclMessenger::AwaitIssue(const Receipt& receipt) {
  std::unique_lock lock(mutex_);
  bool heard =
      changed_.wait_for(lock, deadline_, [&] { return receipt.issued || !failure_.empty(); });
  const std::string& place = receipt.operation->place;
  Check<TimeoutError>(heard, "{}: waited {:.1f} s for {} to connect", place,
                      std::chrono::duration<double>(deadline_).count(), receipt.operation->awaits);
  Check<CommError>(receipt.issued, "{}: {}", place, failure_);
}

void NcclMessenger::Drain() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, deadline_, [this] {
    bool flying = false;
    for (const auto& [peer, out] : outgoing_) {
      flying |= !out.letters.empty() || out.settling || !out.flying.empty();
    }
    return (outbox_.empty() && !flying) || !failure_.empty();
  });
}

void NcclMessenger::ReadHeaders() {
  for (auto letter = outbox_.begin(); letter != outbox_.end();) {
    if (!letter->told->Done()) {
      ++letter;
      continue;
    }
    letter->told->Wait();
    Header header;
    std::memcpy(&header, letter->header.raw(), sizeof header);
    Outgoing& out = outgoing_[letter->peer];
    if (!out.lane) {
      out.lane = MakeLane();
      out.lane->BeginInit(header.id, 2, 0, letter->place);
    }
    out.letters.emplace(header.number, std::move(*letter));
    letter = outbox_.erase(letter);
  }
}

// The sender is rank 0 of a lane, the receiver rank 1.
void NcclMessenger::Advance(int peer, Outgoing& out) {
  const std::string lane_place = fmt::format("[send] to rank {}", peer);
  out.lane->CheckAlive(lane_place);
  while (!out.flying.empty() && out.flying.front().first->done.Passed()) out.flying.pop_front();
  out.connected = out.connected || out.lane->Settled(lane_place);
  while (out.connected) {
    if (out.settling) {
      if (!out.lane->Settled(out.settling->place)) return;
      auto operation = std::make_shared<NcclOperation>(out.settling->place, ctx_.device());
      operation->awaits = fmt::format("rank {}", peer);
      out.lane->Finish(operation);
      out.flying.emplace_back(std::move(operation), std::move(*out.settling));
      out.settling.reset();
    }
    auto found = out.letters.find(out.next);
    if (found == out.letters.end()) return;
    out.settling = std::move(found->second);
    out.letters.erase(found);
    ++out.next;
    const Letter& letter = *out.settling;
    letter.copied->Hold(out.lane->stream());
    out.lane->Begin(letter.place, [&](ncclComm_t comm, cudaStream_t stream) {
      return Nccl().ncclSend(letter.copy.raw(), letter.copy.bytes(), ncclUint8, 1, comm, stream);
    });
  }
}

void NcclMessenger::Advance(int peer, Incoming& in) {
  const std::string lane_place = fmt::format("[receive] from rank {}", peer);
  in.connected = in.connected || in.lane->Settled(lane_place);
  while (in.connected && !in.receipts.empty()) {
    Receipt& receipt = *in.receipts.front();
    const std::string& place = receipt.operation->place;
    if (!in.settling) {
      receipt.ready.Hold(in.lane->stream());
      in.lane->Begin(place, [&](ncclComm_t comm, cudaStream_t stream) {
        return Nccl().ncclRecv(receipt.tensor.raw(), receipt.tensor.bytes(), ncclUint8, 0, comm,
                               stream);
      });
      in.settling = true;
    }
    if (!in.lane->Settled(place)) return;
    in.settling = false;
    in.lane->Finish(receipt.operation);
    receipt.issued = true;
    in.receipts.pop_front();
    changed_.notify_all();
  }
}

StallAlarm::Attempt NcclMessenger::Attempt(StallAlarm& alarm, std::string_view what) const {
  return {alarm,
          fmt::format("{}, group {}, rank {} of {}", what, control_->name(), control_->rank(),
                      control_->size()),
          StallLimit(deadline_)};
}

bool NcclMessenger::Watch(StallAlarm& alarm) {
  std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return true;
  if (!failure_.empty()) return false;
  try {
    if (!outbox_.empty()) {
      const auto attempt = Attempt(alarm, "[send]");
      ReadHeaders();
    }
    bool busy = !outbox_.empty();
    for (auto& [peer, out] : outgoing_) {
      const auto attempt = Attempt(alarm, fmt::format("[send] to rank {}", peer));
      Advance(peer, out);
      busy |= !out.letters.empty() || out.settling || !out.flying.empty();
    }
    for (auto& [peer, in] : incoming_) {
      const auto attempt = Attempt(alarm, fmt::format("[receive] from rank {}", peer));
      Advance(peer, in);
      busy |= !in.receipts.empty();
    }
    if (!busy) changed_.notify_all();
    return busy;
  } catch (const std::exception& error) {
    failure_ = error.what();
    changed_.notify_all();
    return false;
  }
}

}  // namespace hone::parallel
