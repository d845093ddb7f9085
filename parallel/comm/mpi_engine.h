// The one thread of a process that talks to MPI.
//
// It is the only one that calls MPI, from initialisation to finalisation, and calls only what
// returns at once (but for setting up and tearing down). An operation is a list of rounds; a round
// is a list of transfers, all posted together; when they have arrived, the operation's own code
// (sums, copies) runs on this thread and names the next round. Between tests the thread sleeps:
// shortly while someone waits for an operation that is likely to end soon, longer when nobody
// waits, and without end when there is nothing to do.
//
// Order: messages between two ranks with one tag are received in the order sent, and every round of
// a collective has a tag of its own, so any number of operations may be under way.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/comm/process_group.h"

namespace hone::parallel {

struct Transfer {
  enum class Kind { kSend, kReceive } kind;
  int peer;  // rank in MPI_COMM_WORLD
  void* data;
  int64_t bytes;  // of a receive: exactly as many must come
};

enum class Channel { kCollectives, kMessages };

// One operation under way. Made by the caller, driven by the communication thread.
struct MpiOperation {
  std::string place;  // "[all_reduce] group dp, rank 1 of 4": begins messages
  Channel channel = Channel::kCollectives;
  std::function<int(int)> tag;         // of a round
  std::function<int(int)> group_rank;  // of a world rank, for messages
  // Called when all of round − 1 has come and gone: fills in what round moves; false: complete.
  std::function<bool(int, std::vector<Transfer>*)> next_round;

  std::mutex mutex;
  std::condition_variable ended;
  bool done = false;
  std::exception_ptr error;
  std::vector<int> awaited;  // world ranks whose messages have not come, by transfer
};

// How the bits of MPI's tags are shared, of which `upper_bound` is the highest: a group's number,
// and beside it a message's tag or a round's number.
struct TagBits {
  int group, payload;
};
TagBits ShareTagBits(int upper_bound);

class MpiEngine {
 public:
  // Starts the thread and MPI with it; one at a time in a process, and once in its life.
  explicit MpiEngine(GroupOptions options);
  // Waits, asleep, for operations under way and for the other ranks to get here, then finalises.
  // During an exception, or past the deadline, it leaves without: then the launcher ends the other
  // ranks.
  ~MpiEngine();

  int rank() const { return rank_; }
  int size() const { return size_; }
  int payload_bits() const { return bits_.payload; }  // of a tag, beside the group's number
  std::chrono::milliseconds deadline() const { return options_.deadline; }

  void Submit(std::shared_ptr<MpiOperation> operation);
  // Blocks until it is done; rethrows its error; TimeoutError past the deadline.
  void Wait(MpiOperation& operation);

  // Groups are numbered so that two groups with a rank in common never share a number: see
  // MpiProcessGroup::Split.
  int next_group = 1;
  int max_groups() const { return 1 << bits_.group; }

 private:
  struct Thread;

  GroupOptions options_;
  int rank_ = 0, size_ = 1;
  TagBits bits_ = {};
  std::unique_ptr<Thread> thread_;
};

}  // namespace hone::parallel
