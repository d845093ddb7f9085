#include "rl/rollout/lease_book.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

constexpr int64_t kTokensAnAnswer = 1 << 20;  // of samples to read that one answer carries

std::string List(const std::vector<int32_t>& values) {
  std::string text;
  for (int32_t value : values) text += std::to_string(value) + ",";
  return text;
}

// Of everything but the weights that decides a sample. Not of the group's size: a larger group
// keeps what the smaller one drew.
std::string PlanDigest(const RolloutPlan& plan) {
  std::string all = fmt::format("{} {} {} {} {} {} {}", plan.seed, plan.sampling.temperature,
                                plan.sampling.top_p, plan.sampling.top_k, plan.max_new_tokens,
                                plan.record_routing, List(plan.stop_ids));
  for (const std::string& text : plan.stop_strings) {
    all += fmt::format("\n{}:{}", text.size(), text);
  }
  if (const EnvironmentConfig& e = plan.environment; e.defined()) {
    all += fmt::format("\n{} {} {}:{} {}:{} {}:{} {}:{}", e.name, e.max_calls, e.call_begin.size(),
                       e.call_begin, e.call_end.size(), e.call_end, e.answer_begin.size(),
                       e.answer_begin, e.answer_end.size(), e.answer_end);
  }
  for (const Sample& s : plan.given) {
    all += fmt::format("\n{} {} {}:", static_cast<int>(plan.kind), s.key.prompt, s.key.sample);
    for (const SampleToken& t : s.tokens) {
      all += fmt::format("{}/{},", t.id, static_cast<int>(t.source));
    }
  }
  for (const RolloutPrompt& p : plan.prompts) {
    all += fmt::format("\n{} {} {} {}:{} {}", p.index, p.problem.verifier, p.problem.language,
                       p.problem.answer.size(), p.problem.answer, List(p.tokens));
  }
  return fmt::format("{:016x}", HashName(all));
}

}  // namespace

std::string LeaseBook::JournalPath(const RolloutPlan& plan) const {
  return fmt::format("{}/{}/rollout-{:06d}.bin", journal_dir_, plan.stage, plan.rollout);
}

void LeaseBook::Recover(OpenPlan* open, bool drawable) const {
  const RolloutPlan& plan = open->plan;
  open->journal_path = JournalPath(plan);
  open->journal = std::make_unique<Journal>(
      fs_, open->journal_path,
      JournalHeader{plan.stage, plan.rollout, plan.weight_version, plan.weight_digest,
                    PlanDigest(plan)},
      drawable ? Journal::Otherwise::kBeginAnew : Journal::Otherwise::kRefuse);
  for (const Sample& sample : open->journal->recovered()) {
    auto key = std::make_pair(sample.key.prompt, sample.key.sample);
    if (!open->waiting.erase(key)) continue;
    open->tokens += sample.completion_tokens();
    open->done[key] = sample;
  }
}

void LeaseBook::Open(const RolloutPlan& plan, bool drawable) {
  Check(Find(plan.stage, plan.rollout) == nullptr, "[rollout] {} {} is already under way",
        plan.stage, plan.rollout);
  OpenPlan open;
  open.plan = plan;
  for (size_t p = 0; p < plan.prompts.size(); ++p) {
    open.prompt_at[plan.prompts[p].index] = p;
    for (int64_t s = 0; s < plan.group_size; ++s) open.waiting.insert({plan.prompts[p].index, s});
  }
  for (size_t i = 0; i < plan.given.size(); ++i) {
    OpenPlan::Place place{plan.given[i].key.prompt, plan.given[i].key.sample};
    Check(open.given_at.emplace(place, i).second, "[rollout] {} rollout {} has two samples {}/{}",
          plan.stage, plan.rollout, place.first, place.second);
    open.waiting.insert(place);
  }
  open.total = static_cast<int64_t>(open.waiting.size());
  if (!journal_dir_.empty()) Recover(&open, drawable);
  Check<DataError>(drawable || open.complete(),
                   "[rollout] {} holds {} of the {} samples of '{}' rollout {}, and the weights {} "
                   "that drew them are no more; undo a change of group_size, or go back to an "
                   "earlier checkpoint",
                   open.journal_path, open.done.size(), open.total, plan.stage, plan.rollout,
                   plan.weight_digest);
  plans_.push_back(std::move(open));
}

OpenPlan* LeaseBook::Find(const std::string& stage, int64_t rollout) {
  for (OpenPlan& p : plans_) {
    if (p.plan.stage == stage && p.plan.rollout == rollout) return &p;
  }
  return nullptr;
}

void LeaseBook::WriteJsonl(const OpenPlan& p) const {
  std::string jsonl;
  for (const auto& [key, sample] : p.done) {
    jsonl += SampleToJson(sample, p.plan.prompts[p.prompt_at.at(key.first)].problem) + "\n";
  }
  std::string dir = journal_dir_.substr(0, journal_dir_.rfind('/')) + "/rollouts/" + p.plan.stage;
  fs_.MakeDirs(dir);
  fs_.WriteAtomically(fmt::format("{}/rollout-{:06d}.jsonl", dir, p.plan.rollout), jsonl);
}

std::vector<Sample> LeaseBook::Close(OpenPlan* plan) {
  if (plan->journal) {
    plan->journal->Commit();
    if (!plan->reads()) WriteJsonl(*plan);
  }
  for (auto it = leases_.begin(); it != leases_.end();) {
    if (it->second.plan != plan) {
      ++it;
      continue;
    }
    cancelled_[it->second.worker].push_back(it->first);
    it = leases_.erase(it);
  }
  // A plan that reads ends between two of those that draw, whose late samples are still to come.
  if (!plan->reads()) closed_.clear();
  std::vector<Sample> samples;
  for (auto& [key, sample] : plan->done) {
    closed_.insert(sample.key);
    samples.push_back(std::move(sample));
  }
  plans_.remove_if([plan](const OpenPlan& p) { return &p == plan; });
  return samples;
}

OpenLease LeaseBook::MakeLease(OpenPlan& plan, int64_t worker, int64_t* samples, int64_t* tokens) {
  OpenLease lease;
  lease.id = next_lease_++;
  lease.worker = worker;
  lease.plan = &plan;
  lease.prompt = plan.waiting.begin()->first;
  lease.expires = Clock::now() + lease_;
  while (!plan.waiting.empty() && plan.waiting.begin()->first == lease.prompt && *samples > 0 &&
         *tokens > 0) {
    if (plan.reads()) {
      *tokens -= static_cast<int64_t>(plan.Given(*plan.waiting.begin()).tokens.size());
    }
    lease.samples.insert(plan.waiting.begin()->second);
    plan.waiting.erase(plan.waiting.begin());
    --*samples;
  }
  return lease;
}

std::vector<OpenLease*> LeaseBook::Take(int64_t worker, int64_t prompts, int64_t samples,
                                        int64_t readings) {
  std::vector<OpenLease*> taken;
  int64_t tokens = kTokensAnAnswer;
  for (bool reads : {true, false}) {
    int64_t room = reads ? readings : samples;
    for (OpenPlan& plan : plans_) {
      if (plan.reads() != reads) continue;
      while (!plan.waiting.empty() && static_cast<int64_t>(taken.size()) < prompts && room > 0 &&
             tokens > 0) {
        OpenLease lease = MakeLease(plan, worker, &room, &tokens);
        taken.push_back(&(leases_[lease.id] = lease));
      }
      if (!taken.empty()) return taken;  // leases of one answer want one weight version
    }
  }
  return taken;
}

std::string LeaseBook::BadToken(const OpenPlan& p, const Sample& sample) const {
  int64_t prompt = sample.prompt_tokens();
  for (size_t i = static_cast<size_t>(prompt); i < sample.tokens.size(); ++i) {
    const SampleToken& t = sample.tokens[i];
    if (t.id < 0 || (vocab_size_ > 0 && t.id >= vocab_size_)) {
      return fmt::format("token {} is {}, outside the vocabulary of {}", i, t.id, vocab_size_);
    }
    if (t.source == TokenSource::kPrompt) return fmt::format("token {} is the prompt's again", i);
    if (t.source == TokenSource::kEnvironment && !p.reads() && !p.plan.environment.defined()) {
      return fmt::format("token {} is an environment's, and there is none", i);
    }
    if (t.source != TokenSource::kModel) continue;
    if (!std::isfinite(t.logp) || t.logp > 0) {
      return fmt::format("token {} has the log-probability {}", i, t.logp);
    }
    if (p.plan.weight_version != 0 && t.weight_version != p.plan.weight_version) {
      return fmt::format("token {} was drawn with weights {}, not {}", i, t.weight_version,
                         p.plan.weight_version);
    }
  }
  return "";
}

// Of a sample that was read: the tokens are those given, and what was asked for is there.
std::string LeaseBook::Misread(const OpenPlan& p, const Sample& sample) const {
  OpenPlan::Place place{sample.key.prompt, sample.key.sample};
  std::string name = fmt::format("{} rollout {} prompt {} sample {}", p.plan.stage, p.plan.rollout,
                                 place.first, place.second);
  if (!p.given_at.count(place)) return fmt::format("there is no {}", name);
  const std::vector<SampleToken>& given = p.Given(place).tokens;
  bool same = given.size() == sample.tokens.size();
  for (size_t i = 0; same && i < given.size(); ++i) {
    same = given[i].id == sample.tokens[i].id && given[i].source == sample.tokens[i].source;
  }
  if (!same) return fmt::format("{} came back with other tokens", name);
  if (p.plan.kind == LeaseKind::kScore) {
    auto value = sample.rewards.find("value");
    bool scored = value != sample.rewards.end() && std::isfinite(value->second);
    return scored ? "" : fmt::format("{} has no finite value", name);
  }
  std::string bad = BadToken(p, sample);
  return bad.empty() ? "" : fmt::format("{}: {}", name, bad);
}

std::string LeaseBook::Misfit(const OpenPlan& p, const Sample& sample) const {
  if (p.reads()) return Misread(p, sample);
  auto at = p.prompt_at.find(sample.key.prompt);
  bool known =
      at != p.prompt_at.end() && sample.key.sample >= 0 && sample.key.sample < p.plan.group_size;
  std::string name = fmt::format("{} rollout {} prompt {} sample {}", p.plan.stage, p.plan.rollout,
                                 sample.key.prompt, sample.key.sample);
  if (!known) return fmt::format("there is no {}", name);
  const auto& prompt = p.plan.prompts[at->second].tokens;
  bool same = static_cast<int64_t>(prompt.size()) == sample.prompt_tokens();
  for (size_t i = 0; same && i < prompt.size(); ++i) same = sample.tokens[i].id == prompt[i];
  if (!same) return fmt::format("{} has other tokens as its prompt", name);
  int64_t drawn = sample.completion_tokens();
  if (drawn == 0 || drawn > p.plan.max_new_tokens) {
    return fmt::format("{} has {} tokens, 1 to {} were asked for", name, drawn,
                       p.plan.max_new_tokens);
  }
  std::string bad = BadToken(p, sample);
  if (!bad.empty()) return fmt::format("{}: {}", name, bad);
  for (const auto& [part, value] : sample.rewards) {
    if (!std::isfinite(value)) return fmt::format("{}: its reward {} is {}", name, part, value);
  }
  bool finished = sample.finish != FinishReason::kCancelled;
  int64_t routed = static_cast<int64_t>(sample.tokens.size()) - 1;
  int64_t routing = static_cast<int64_t>(sample.routing_TLK.size());
  if (finished && p.plan.record_routing && (routing == 0 || routing % routed != 0)) {
    return fmt::format("{} has {} expert choices for {} tokens", name, routing, routed);
  }
  return "";
}

std::string LeaseBook::Accept(const Sample& sample, bool* repeat) {
  *repeat = false;
  OpenPlan* plan = Find(sample.key.stage, sample.key.rollout);
  if (!plan) {
    *repeat = closed_.count(sample.key) > 0;
    return *repeat ? ""
                   : fmt::format("no rollout {} of '{}' is under way", sample.key.rollout,
                                 sample.key.stage);
  }
  auto key = std::make_pair(sample.key.prompt, sample.key.sample);
  if (plan->done.count(key)) {
    *repeat = true;
    return "";
  }
  if (std::string why = Misfit(*plan, sample); !why.empty()) return why;
  if (sample.finish == FinishReason::kCancelled) {
    return fmt::format("prompt {} sample {} is not finished", key.first, key.second);
  }
  if (plan->journal) plan->journal->Append(sample);
  plan->waiting.erase(key);
  plan->partial.erase(key);
  plan->tokens += sample.completion_tokens();
  plan->done[key] = sample;
  last_sample_ = Clock::now();
  for (auto it = leases_.begin(); it != leases_.end();) {
    OpenLease& lease = it->second;
    bool owes = lease.plan == plan && lease.prompt == sample.key.prompt;
    if (owes) lease.samples.erase(sample.key.sample);
    it = owes && lease.samples.empty() ? leases_.erase(it) : std::next(it);
  }
  return "";
}

void LeaseBook::Commit() {
  for (OpenPlan& p : plans_) {
    if (p.journal) p.journal->Commit();
  }
}

std::string LeaseBook::Continue(const Sample& sample) {
  OpenPlan* plan = Find(sample.key.stage, sample.key.rollout);
  if (!plan) return "";  // nobody needs it any more
  auto key = std::make_pair(sample.key.prompt, sample.key.sample);
  if (plan->done.count(key)) return "";
  if (plan->reads()) return fmt::format("a sample of {} is read whole or not", plan->plan.stage);
  if (std::string why = Misfit(*plan, sample); !why.empty()) return why;
  if (sample.completion_tokens() >= plan->plan.max_new_tokens) {
    return fmt::format("prompt {} sample {} has nothing left to draw", key.first, key.second);
  }
  plan->partial[key] = sample;
  return "";
}

void LeaseBook::Return(int64_t lease, int64_t worker) {
  auto it = leases_.find(lease);
  if (it == leases_.end() || (worker != 0 && it->second.worker != worker)) return;
  for (int64_t sample : it->second.samples) {
    auto key = std::make_pair(it->second.prompt, sample);
    if (!it->second.plan->done.count(key)) it->second.plan->waiting.insert(key);
  }
  leases_.erase(it);
}

void LeaseBook::ReturnAllOf(int64_t worker) {
  std::vector<int64_t> ids;
  for (auto& [id, lease] : leases_) {
    if (lease.worker == worker) ids.push_back(id);
  }
  for (int64_t id : ids) Return(id);
  cancelled_.erase(worker);
}

void LeaseBook::Renew(int64_t worker) {
  for (auto& [id, lease] : leases_) {
    if (lease.worker == worker) lease.expires = Clock::now() + lease_;
  }
}

int64_t LeaseBook::ExpireOld() {
  std::vector<int64_t> ids;
  for (auto& [id, lease] : leases_) {
    if (lease.expires < Clock::now()) ids.push_back(id);
  }
  for (int64_t id : ids) {
    cancelled_[leases_[id].worker].push_back(id);
    Return(id);
  }
  return static_cast<int64_t>(ids.size());
}

std::vector<int64_t> LeaseBook::TakeCancelled(int64_t worker) {
  std::vector<int64_t> ids;
  std::swap(ids, cancelled_[worker]);
  return ids;
}

}  // namespace hone::rl
