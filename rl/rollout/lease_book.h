// What is to be sampled, by whom, and what has come back: the coordinator's state without the wire.
// Not thread safe: the coordinator holds its lock.
#pragma once

#include <chrono>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "rl/rollout/coordinator.h"
#include "rl/rollout/journal.h"

namespace hone::rl {

using Clock = std::chrono::steady_clock;

// One plan under way.
struct OpenPlan {
  using Place = std::pair<int64_t, int64_t>;  // prompt, sample
  RolloutPlan plan;
  std::map<int64_t, size_t> prompt_at;  // prompt index → place in plan.prompts
  std::map<Place, size_t> given_at;     // → place in plan.given
  std::set<Place> waiting;              // nobody's
  std::map<Place, Sample> done;
  std::map<Place, Sample> partial;  // begun and given back
  std::unique_ptr<Journal> journal;
  std::string journal_path;
  int64_t total = 0, tokens = 0;

  bool complete() const { return static_cast<int64_t>(done.size()) == total; }
  bool reads() const { return plan.kind != LeaseKind::kGenerate; }
  const Sample& Given(const Place& place) const { return plan.given[given_at.at(place)]; }
};

// All samples of one prompt that one worker draws or reads.
struct OpenLease {
  int64_t id = 0, worker = 0;
  OpenPlan* plan = nullptr;
  int64_t prompt = 0;
  std::set<int64_t> samples;  // still owed
  Clock::time_point expires;
};

class LeaseBook {
 public:
  // `vocab_size`: token ids lie below it; 0 leaves that unchecked.
  LeaseBook(FileSystem& fs, std::string journal_dir, std::chrono::milliseconds lease,
            int64_t vocab_size = 0)
      : fs_(fs), journal_dir_(std::move(journal_dir)), lease_(lease), vocab_size_(vocab_size) {}

  // Recovers what the journal holds. Of a plan that cannot be drawn that must be all of it:
  // DataError otherwise, with journal and book as they were.
  void Open(const RolloutPlan& plan, bool drawable = true);
  OpenPlan* Find(const std::string& stage, int64_t rollout);
  // Journal closed, derived JSONL written for training rollouts; samples in (prompt, sample) order.
  std::vector<Sample> Close(OpenPlan* plan);

  // Up to `prompts` leases of the earliest plan with work: of those that read, since a learner
  // waits for them, before those that draw; of at most `readings` or `samples` samples in all.
  std::vector<OpenLease*> Take(int64_t worker, int64_t prompts, int64_t samples,
                               int64_t readings = 0);
  // "" when taken (journalled, not yet committed) or a repeat; else why it is refused.
  std::string Accept(const Sample& sample, bool* repeat);
  void Commit();
  // A sample given back: its tokens so far are kept for the next lease.
  std::string Continue(const Sample& sample);
  // Its samples are to be had again. By `worker`, if given: nobody returns what another holds.
  void Return(int64_t lease, int64_t worker = 0);
  void ReturnAllOf(int64_t worker);
  void Renew(int64_t worker);  // it made progress
  int64_t ExpireOld();         // how many leases were taken back
  // Leases of this worker that nobody needs any more.
  std::vector<int64_t> TakeCancelled(int64_t worker);
  int64_t open_leases() const { return static_cast<int64_t>(leases_.size()); }
  // When the newest sample came, of whichever plan.
  Clock::time_point last_sample() const { return last_sample_; }

 private:
  std::string JournalPath(const RolloutPlan& plan) const;
  void Recover(OpenPlan* plan, bool drawable) const;
  void WriteJsonl(const OpenPlan& plan) const;
  // Why a sample cannot be one of the plan's; "" when it can.
  std::string Misfit(const OpenPlan& plan, const Sample& sample) const;
  std::string Misread(const OpenPlan& plan, const Sample& sample) const;
  std::string BadToken(const OpenPlan& plan, const Sample& sample) const;
  OpenLease MakeLease(OpenPlan& plan, int64_t worker, int64_t* samples, int64_t* tokens);

  FileSystem& fs_;
  std::string journal_dir_;
  std::chrono::milliseconds lease_;
  int64_t vocab_size_;
  std::list<OpenPlan> plans_;
  std::map<int64_t, OpenLease> leases_;
  std::map<int64_t, std::vector<int64_t>> cancelled_;
  std::set<SampleKey> closed_;  // keys of the plan closed last: late repeats are harmless
  int64_t next_lease_ = 1;
  Clock::time_point last_sample_;
};

}  // namespace hone::rl
