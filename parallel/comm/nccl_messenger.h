// Messages between two ranks over NCCL, which knows neither tags nor buffers.
//
// Each pair of ranks has a communicator for each direction, made at the first message. To receive,
// a rank puts a receive on the lane at once and tells the sender its tag and its number on that
// lane over the control group. The sender keeps a copy of what it was given to send until it is
// told so, and sends in the order of the numbers.
#pragma once

#include <map>
#include <optional>

#include "parallel/comm/nccl_lane.h"
#include "runtime/context.h"

namespace hone::parallel {

class NcclMessenger : public NcclWatched {
 public:
  // `control` is for this messenger alone; `watcher` outlives its work.
  NcclMessenger(Context ctx, GroupPtr control, NcclWatcher* watcher,
                std::chrono::milliseconds deadline);

  void Send(const Tensor& tensor, int peer, int tag, const std::string& place);
  // A receive under way; `issued` once it is on its lane.
  struct Receipt {
    Receipt(const std::string& place, Device device)
        : operation(std::make_shared<NcclOperation>(place, device)), ready(device) {}
    NcclOperationPtr operation;
    std::shared_ptr<NcclLane> lane;
    Tensor tensor;
    NcclEvent ready;  // when the tensor may be written
    bool issued = false;
  };
  using ReceiptPtr = std::shared_ptr<Receipt>;
  ReceiptPtr Receive(const Tensor& tensor, int peer, int tag, const std::string& place);
  bool Received(const Receipt& receipt);
  // Blocks the host until the receive is on its lane.
  void AwaitIssue(const Receipt& receipt);
  // Waits until everything given to Send has gone, at most as long as the deadline.
  void Drain();

  bool Watch(StallAlarm& alarm) override;

 private:
  struct Letter {  // to be sent
    int peer = 0;
    std::string place;
    Tensor copy, header;
    WorkPtr told;  // the receiver's header
    std::shared_ptr<NcclEvent> copied;
  };
  struct Outgoing {
    std::shared_ptr<NcclLane> lane;
    bool connected = false;
    int64_t next = 0;
    std::map<int64_t, Letter> letters;  // by number, told for
    std::optional<Letter> settling;
    std::deque<std::pair<NcclOperationPtr, Letter>> flying;
  };
  struct Incoming {
    std::shared_ptr<NcclLane> lane;
    ncclUniqueId id;
    bool connected = false, settling = false;
    int64_t next = 0;
    std::deque<ReceiptPtr> receipts;
  };

  StallAlarm::Attempt Attempt(StallAlarm& alarm, std::string_view what) const;
  void ReadHeaders();
  void Advance(int peer, Outgoing& out);
  void Advance(int peer, Incoming& in);
  std::shared_ptr<NcclLane> MakeLane() const;

  Context ctx_;
  GroupPtr control_;
  NcclWatcher* watcher_;
  const std::chrono::milliseconds deadline_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Letter> outbox_;
  std::map<int, Outgoing> outgoing_;
  std::map<int, Incoming> incoming_;
  std::string failure_;
};

}  // namespace hone::parallel
