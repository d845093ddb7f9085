#include "rl/rollout/inference_engine.h"

#include <algorithm>
#include <deque>
#include <list>
#include <map>

#include "kernels/sampling/likeliest.h"
#include "model/kv_cache.h"
#include "runtime/packed_weights.h"
#include "runtime/replay.h"

namespace hone::rl {
namespace {

// A request on its way. `tokens` is prompt and completion; the first `computed` of them have their
// keys in the cache, on `pages`.
struct Sequence {
  GenerateRequest request;
  std::vector<int32_t> tokens;
  int64_t computed = 0;
  std::vector<int32_t> pages;
  std::vector<float> logp;
  std::vector<int32_t> routing;  // of the computed tokens
  std::string tail;              // last bytes of the completion, for stop strings
  size_t newest = 0;             // of these, the newest token's

  int64_t prompt_tokens() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t completion_tokens() const {
    return static_cast<int64_t>(tokens.size()) - prompt_tokens();
  }
  int64_t to_compute() const { return static_cast<int64_t>(tokens.size()) - computed; }
};

// A prompt that several requests share. The first of them computes it; then `pages` hold its keys
// (the last one, if not full, is a copy nobody writes to) and `logits` what follows it.
struct SharedPrompt {
  bool ready = false;
  std::vector<int32_t> prompt, pages, routing;
  Tensor logits_1V;
};

// Lends a context packed weights for as long as it lives.
class PackedWeightsInUse {
 public:
  PackedWeightsInUse(Context& ctx, runtime::PackedWeights& weights) : ctx_(ctx) {
    ctx_.packed_weights = &weights;
  }
  ~PackedWeightsInUse() { ctx_.packed_weights = nullptr; }

 private:
  Context& ctx_;
};

int64_t PagesFor(int64_t tokens, int64_t page_size) { return (tokens + page_size - 1) / page_size; }

}  // namespace

struct InferenceEngine::Impl {
  Impl(Context& c, model::TransformerStage& m, const EngineConfig& e,
       std::function<std::string(int32_t)> bytes)
      : ctx(c),
        model(m),
        config(e),
        token_bytes(std::move(bytes)),
        replay(runtime::MakeReplay(c.allocator())) {
    if (!config.lazy_cache) MakeCache();
    for (parallel::Parameter* p : model.Parameters()) weights.Register(p->value);
  }

  // Unless it is there.
  void MakeCache() {
    if (cache) return;
    const int64_t pages =
        config.cache_pages > 0
            ? config.cache_pages
            : config.max_batch * PagesForSequence(config.max_tokens, config.page_size);
    // Rebuilding keys and values at every step costs far more time than keeping them costs memory.
    const auto mla = config.mla_decode == model::MlaDecode::kExpand ? model::KvCache::Mla::kExpanded
                                                                    : model::KvCache::Mla::kLatent;
    cache = std::make_unique<model::KvCache>(
        ctx, model.config(), model.options().end_layer - model.options().first_layer, pages,
        config.page_size, model.options().dtype, mla);
  }

  using SequenceList = std::list<Sequence>;

  void Admit();
  void AdmitWhatFits();
  int64_t PromisedPages() const;
  bool AdmitShared(SequenceList::iterator it, SharedPrompt& shared);
  bool EnsurePages(Sequence& sequence, int64_t tokens);
  bool PreemptYoungest(const Sequence* keep);
  void ReleasePages(Sequence& sequence);
  void OfferPrompt(Sequence& leader, const Tensor& logits_1V);
  void DropSharedPrompt(uint64_t group);
  bool DropAnySharedPrompt();
  void Compute(std::vector<SequenceList::iterator>* sampled_from, Tensor* logits);
  Tensor Forward(model::DecodeBatch batch, std::vector<int32_t>* routing);
  void Draw(SequenceList::iterator it, const kernels::SampledToken& token);
  void ExtendTail(Sequence& sequence, int32_t token) const;
  GenerateResult Finish(SequenceList::iterator it, FinishReason reason);

  Context& ctx;
  model::TransformerStage& model;
  EngineConfig config;
  std::function<std::string(int32_t)> token_bytes;
  std::unique_ptr<model::KvCache> cache;  // null while its memory is released
  runtime::PackedWeights weights;         // as they are until Drain
  std::unique_ptr<runtime::Replay> replay;
  SequenceList waiting, active;
  std::map<uint64_t, SharedPrompt> prompts;  // by group
  std::map<uint64_t, int64_t> waiting_in_group;
  // Sequences whose first token comes from a shared prompt's logits, this step.
  std::vector<std::pair<SequenceList::iterator, Tensor>> primed;
  EngineStats stats;
};

int64_t PagesForSequence(int64_t tokens, int64_t page_size) {
  return PagesFor(tokens, page_size) + 1;
}

InferenceEngine::InferenceEngine(Context& ctx, model::TransformerStage& model,
                                 const EngineConfig& config,
                                 std::function<std::string(int32_t)> token_bytes)
    : impl_(std::make_unique<Impl>(ctx, model, config, std::move(token_bytes))) {}
InferenceEngine::~InferenceEngine() = default;

void InferenceEngine::Add(GenerateRequest request) {
  int64_t prompt = static_cast<int64_t>(request.prompt.size());
  CheckShape(prompt > 0, "[engine] request {} has an empty prompt", request.id);
  CheckShape(prompt < impl_->config.max_tokens,
             "[engine] request {}: a prompt of {} tokens leaves no room in max_tokens = {}",
             request.id, prompt, impl_->config.max_tokens);
  int64_t begun = static_cast<int64_t>(request.generated.size());
  CheckShape(request.max_new_tokens > begun && prompt + begun < impl_->config.max_tokens,
             "[engine] request {} has {} tokens already and may draw {} (max_tokens = {})",
             request.id, begun, request.max_new_tokens, impl_->config.max_tokens);
  int64_t pages = PagesForSequence(
      std::min(prompt + request.max_new_tokens, impl_->config.max_tokens), impl_->config.page_size);
  impl_->MakeCache();
  CheckShape(pages <= impl_->cache->pages(),
             "[engine] request {} could need {} pages of {} tokens, and the cache has {}; set "
             "rollout.cache_pages to at least {}",
             request.id, pages, impl_->config.page_size, impl_->cache->pages(), pages);
  for (const auto* tokens : {&request.prompt, &request.generated}) {
    for (int32_t token : *tokens) {
      CheckShape(token >= 0 && token < impl_->model.config().vocab_size,
                 "[engine] request {}: token {} lies outside the vocabulary of {}", request.id,
                 token, impl_->model.config().vocab_size);
    }
  }
  Sequence sequence;
  sequence.tokens = request.prompt;
  sequence.tokens.insert(sequence.tokens.end(), request.generated.begin(), request.generated.end());
  sequence.request = std::move(request);
  // A stop string may begin in what an earlier lease drew.
  for (int32_t token : sequence.request.generated) impl_->ExtendTail(sequence, token);
  if (sequence.request.group != 0) ++impl_->waiting_in_group[sequence.request.group];
  impl_->waiting.push_back(std::move(sequence));
}

// ---- Pages --------------------------------------------------------------------------------------

void InferenceEngine::Impl::ReleasePages(Sequence& sequence) {
  for (int32_t page : sequence.pages) cache->Release(page);
  sequence.pages.clear();
  sequence.computed = 0;
  sequence.routing.clear();
}

// The last admitted goes back to wait; what it has drawn stays drawn.
bool InferenceEngine::Impl::PreemptYoungest(const Sequence* keep) {
  if (active.empty() || &active.back() == keep) return false;
  Sequence& victim = active.back();
  uint64_t group = victim.request.group;
  if (group != 0) {
    auto shared = prompts.find(group);
    bool leading = shared != prompts.end() && !shared->second.ready &&
                   victim.computed < victim.prompt_tokens();
    if (leading) prompts.erase(shared);
    ++waiting_in_group[group];
  }
  ReleasePages(victim);
  std::erase_if(primed, [&](auto& p) { return &*p.first == &victim; });
  waiting.splice(waiting.begin(), active, std::prev(active.end()));
  ++stats.preemptions;
  return true;
}

bool InferenceEngine::Impl::EnsurePages(Sequence& sequence, int64_t tokens) {
  int64_t needed = PagesFor(tokens, config.page_size);
  while (static_cast<int64_t>(sequence.pages.size()) < needed) {
    if (cache->free_pages() == 0 && !PreemptYoungest(&sequence) && !DropAnySharedPrompt())
      return false;
    if (cache->free_pages() == 0) continue;
    sequence.pages.push_back(cache->TakePage());
  }
  return true;
}

// ---- Shared prompts -----------------------------------------------------------------------------

void InferenceEngine::Impl::DropSharedPrompt(uint64_t group) {
  auto it = prompts.find(group);
  if (it == prompts.end()) return;
  for (int32_t page : it->second.pages) cache->Release(page);
  prompts.erase(it);
}

bool InferenceEngine::Impl::DropAnySharedPrompt() {
  for (auto& [group, shared] : prompts) {
    if (!shared.ready) continue;
    DropSharedPrompt(group);
    return true;
  }
  return false;
}

void InferenceEngine::Impl::OfferPrompt(Sequence& leader, const Tensor& logits_1V) {
  uint64_t group = leader.request.group;
  auto it = prompts.find(group);
  if (group == 0 || it == prompts.end() || it->second.ready) return;
  SharedPrompt& shared = it->second;
  if (shared.prompt != leader.request.prompt) return;  // another prompt of the same group
  int64_t full = leader.prompt_tokens() / config.page_size;
  bool partial = leader.prompt_tokens() % config.page_size != 0;
  if (!waiting_in_group.count(group) || (partial && cache->free_pages() == 0)) {
    prompts.erase(it);
    return;
  }
  for (int64_t p = 0; p < full; ++p) {
    cache->Share(leader.pages[p]);
    shared.pages.push_back(leader.pages[p]);
  }
  if (partial) {
    shared.pages.push_back(cache->TakePage());
    cache->CopyPage(ctx, leader.pages[full], shared.pages.back());
  }
  shared.routing = leader.routing;
  shared.logits_1V = ctx.Clone(logits_1V);
  shared.ready = true;
}

bool InferenceEngine::Impl::AdmitShared(SequenceList::iterator it, SharedPrompt& shared) {
  int64_t full = it->prompt_tokens() / config.page_size;
  bool partial = it->prompt_tokens() % config.page_size != 0;
  if (partial && cache->free_pages() == 0) return false;
  for (int64_t p = 0; p < full; ++p) {
    cache->Share(shared.pages[p]);
    it->pages.push_back(shared.pages[p]);
  }
  if (partial) {
    it->pages.push_back(cache->TakePage());
    cache->CopyPage(ctx, shared.pages[full], it->pages.back());
  }
  stats.shared_pages += full;
  it->computed = it->prompt_tokens();
  it->routing = shared.routing;
  primed.emplace_back(it, shared.logits_1V);
  return true;
}

// ---- A step -------------------------------------------------------------------------------------

// Pages that the active sequences are still to take for what they have to compute.
int64_t InferenceEngine::Impl::PromisedPages() const {
  int64_t promised = 0;
  for (const Sequence& s : active) {
    int64_t needed = PagesFor(static_cast<int64_t>(s.tokens.size()), config.page_size);
    promised += std::max<int64_t>(0, needed - static_cast<int64_t>(s.pages.size()));
  }
  return promised;
}

void InferenceEngine::Impl::Admit() {
  AdmitWhatFits();
  // With nothing active, only prompts that are kept for others can stand in the way.
  while (active.empty() && !waiting.empty() && DropAnySharedPrompt()) AdmitWhatFits();
}

void InferenceEngine::Impl::AdmitWhatFits() {
  for (auto it = waiting.begin();
       it != waiting.end() && static_cast<int64_t>(active.size()) < config.max_batch;) {
    auto next = std::next(it);
    uint64_t group = it->request.group;
    bool fresh = it->completion_tokens() == 0;
    auto shared = group != 0 && fresh ? prompts.find(group) : prompts.end();
    if (shared != prompts.end() && shared->second.prompt == it->request.prompt) {
      if (!shared->second.ready) {
        it = next;  // its leader is still at work
        continue;
      }
      if (!AdmitShared(it, shared->second)) return;
    } else {
      // Its pages must be free, or admitting would only preempt what runs.
      int64_t needed = PagesFor(it->to_compute(), config.page_size);
      if (cache->free_pages() - PromisedPages() < needed) return;
      if (group != 0 && fresh && shared == prompts.end()) {
        prompts[group].prompt = it->request.prompt;
      }
    }
    active.splice(active.end(), waiting, it);
    if (group != 0 && --waiting_in_group[group] == 0) {
      waiting_in_group.erase(group);
      auto ready = prompts.find(group);
      if (ready != prompts.end() && ready->second.ready) DropSharedPrompt(group);
    }
    it = next;
  }
}

// A batch of single tokens is filled up with copies of its last one and replayed, where a device
// can: copies write what the token itself writes, and their logits and choices are dropped.
Tensor InferenceEngine::Impl::Forward(model::DecodeBatch batch, std::vector<int32_t>* routing) {
  PackedWeightsInUse in_use(ctx, weights);
  const size_t rows = batch.token_T.size(), wanted = batch.logits_rows.size();
  if (!config.replay || batch.pages_S.size() != rows) {
    return model.Decode(ctx, batch, *cache, routing);
  }
  const auto padded = static_cast<size_t>(replay->PaddedRows(static_cast<int64_t>(rows)));
  batch.token_T.resize(padded, batch.token_T.back());
  batch.position_T.resize(padded, batch.position_T.back());
  batch.pages_S.resize(padded, batch.pages_S.back());
  for (size_t r = rows; r < padded; ++r) {
    batch.logits_rows.push_back(static_cast<int32_t>(r));
    batch.cu_seqlens.push_back(static_cast<int32_t>(r) + 1);
  }
  Tensor logits;
  const runtime::ReplayStats before = replay->stats();
  replay->Run(static_cast<int64_t>(padded), [&] {
    if (routing) routing->clear();
    logits = model.Decode(ctx, batch, *cache, routing);
  });
  if (routing) routing->resize(routing->size() / padded * rows);
  const runtime::ReplayStats after = replay->stats();
  stats.replayed_steps += after.replayed - before.replayed;
  stats.replayed_graphs += after.segments - before.segments;
  return logits.Slice(0, static_cast<int64_t>(wanted));
}

// One forward over chunks of prompts and single tokens. Logits come for sequences that are now
// computed to their end.
void InferenceEngine::Impl::Compute(std::vector<SequenceList::iterator>* sampled_from,
                                    Tensor* logits) {
  model::DecodeBatch batch;
  batch.cu_seqlens.push_back(0);
  std::vector<std::pair<SequenceList::iterator, int64_t>> parts;
  int64_t budget = config.prefill_chunk;
  for (auto it = active.begin(); it != active.end(); ++it) {
    int64_t count = it->to_compute();
    if (count == 0) continue;  // primed from a shared prompt
    if (count > 1) {
      count = std::min(count, budget);
      budget -= count;
    }
    if (count == 0) continue;
    // Preempting takes from the end of the list, so parts gathered before `it` stay.
    if (!EnsurePages(*it, it->computed + count)) break;
    parts.emplace_back(it, count);
  }
  for (auto& [it, count] : parts) {
    for (int64_t i = 0; i < count; ++i) {
      batch.token_T.push_back(it->tokens[it->computed + i]);
      batch.position_T.push_back(static_cast<int32_t>(it->computed + i));
    }
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.token_T.size()));
    batch.pages_S.push_back(it->pages);
    if (count == it->to_compute()) {
      batch.logits_rows.push_back(static_cast<int32_t>(batch.token_T.size()) - 1);
      sampled_from->push_back(it);
    }
    (count > 1 ? stats.prefill_tokens : stats.decoded_tokens) += count;
  }
  if (batch.token_T.empty()) return;
  std::vector<int32_t> routing;
  const size_t tokens = batch.token_T.size();
  *logits = Forward(std::move(batch), config.record_routing ? &routing : nullptr);
  size_t per_token = routing.size() / tokens, at = 0;
  for (auto& [it, count] : parts) {
    it->computed += count;
    auto begin = routing.begin() + static_cast<int64_t>(at);
    it->routing.insert(it->routing.end(), begin, begin + static_cast<int64_t>(per_token) * count);
    at += per_token * count;
  }
}

void InferenceEngine::Impl::Draw(SequenceList::iterator it, const kernels::SampledToken& token) {
  it->tokens.push_back(token.token);
  it->logp.push_back(token.logp);
  ExtendTail(*it, token.token);
}

// Keeps as many bytes as a stop string that ends in the newest token can reach back.
void InferenceEngine::Impl::ExtendTail(Sequence& sequence, int32_t token) const {
  if (sequence.request.stop_strings.empty() || !token_bytes) return;
  size_t longest = 0;
  for (auto& s : sequence.request.stop_strings) longest = std::max(longest, s.size());
  std::string bytes = token_bytes(token);
  sequence.tail += bytes;
  sequence.newest = bytes.size();
  size_t keep = longest + bytes.size();
  if (sequence.tail.size() > keep) sequence.tail.erase(0, sequence.tail.size() - keep);
}

GenerateResult InferenceEngine::Impl::Finish(SequenceList::iterator it, FinishReason reason) {
  GenerateResult result;
  result.id = it->request.id;
  result.tokens.assign(it->tokens.begin() + it->prompt_tokens(), it->tokens.end());
  result.logp = std::move(it->logp);
  result.finish = reason;
  result.routing_TLK = std::move(it->routing);
  ReleasePages(*it);
  active.erase(it);
  return result;
}

namespace {

// The reason to stop after the last token drawn; false to go on.
bool Stopped(const Sequence& s, int64_t max_tokens, FinishReason* reason) {
  int32_t last = s.tokens.back();
  const auto& stop = s.request.stop_ids;
  *reason = FinishReason::kStop;
  if (std::find(stop.begin(), stop.end(), last) != stop.end()) return true;
  // One that ended before the newest token stopped an earlier turn, and was answered.
  size_t before = s.tail.size() - s.newest;
  for (const std::string& text : s.request.stop_strings) {
    size_t first = before < text.size() ? 0 : before - text.size() + 1;
    if (!text.empty() && s.tail.find(text, first) != std::string::npos) return true;
  }
  *reason = FinishReason::kLength;
  return s.completion_tokens() >= s.request.max_new_tokens ||
         static_cast<int64_t>(s.tokens.size()) >= max_tokens;
}

DrawnToken Shown(const GenerateRequest& request, const Tensor& logits_BV, size_t row,
                 const kernels::SampledToken& drawn) {
  DrawnToken shown{drawn.token, drawn.logp, {}};
  if (request.likeliest > 0) {
    const int64_t r = static_cast<int64_t>(row);
    shown.likeliest = kernels::Likeliest(logits_BV.Slice(r, r + 1), request.sampling.temperature,
                                         request.likeliest);
  }
  return shown;
}

}  // namespace

std::vector<GenerateResult> InferenceEngine::Step(
    const std::function<void(uint64_t, const DrawnToken&)>& on_token) {
  Impl& e = *impl_;
  e.Admit();
  std::vector<Impl::SequenceList::iterator> from;
  Tensor logits;
  e.Compute(&from, &logits);
  ++e.stats.steps;

  // Rows to draw from: this forward's, and those of shared prompts.
  std::vector<Tensor> blocks;
  size_t computed = from.size();
  for (size_t i = 0; i < computed; ++i) {
    if (from[i]->completion_tokens() == 0) {
      e.OfferPrompt(*from[i], logits.Slice(static_cast<int64_t>(i), static_cast<int64_t>(i) + 1));
    }
  }
  if (logits.defined() && computed > 0) blocks.push_back(logits);
  for (auto& [it, row] : e.primed) {
    from.push_back(it);
    blocks.push_back(row);
  }
  e.primed.clear();
  std::vector<GenerateResult> finished;
  size_t next = 0;
  for (const Tensor& block : blocks) {
    std::vector<kernels::SamplingParams> params;
    std::vector<double> uniform;
    for (int64_t r = 0; r < block.rows(); ++r) {
      const Sequence& s = *from[next + static_cast<size_t>(r)];
      params.push_back(s.request.sampling);
      uniform.push_back(s.request.stream.Uniform(static_cast<uint64_t>(s.completion_tokens())));
    }
    auto drawn = kernels::Sample(e.ctx, block, params, uniform);
    for (size_t r = 0; r < drawn.size(); ++r) {
      auto it = from[next++];
      e.Draw(it, drawn[r]);
      if (on_token) on_token(it->request.id, Shown(it->request, block, r, drawn[r]));
      FinishReason reason;
      if (Stopped(*it, e.config.max_tokens, &reason)) finished.push_back(e.Finish(it, reason));
    }
  }
  return finished;
}

bool InferenceEngine::Cancel(uint64_t id) {
  Impl& e = *impl_;
  for (auto it = e.active.begin(); it != e.active.end(); ++it) {
    if (it->request.id != id) continue;
    uint64_t group = it->request.group;
    auto shared = e.prompts.find(group);
    if (group != 0 && shared != e.prompts.end() && !shared->second.ready) e.prompts.erase(shared);
    e.Finish(it, FinishReason::kCancelled);
    return true;
  }
  for (auto it = e.waiting.begin(); it != e.waiting.end(); ++it) {
    if (it->request.id != id) continue;
    uint64_t group = it->request.group;
    e.waiting.erase(it);
    if (group != 0 && --e.waiting_in_group[group] == 0) {
      e.waiting_in_group.erase(group);
      auto shared = e.prompts.find(group);
      if (shared != e.prompts.end() && shared->second.ready) e.DropSharedPrompt(group);
    }
    return true;
  }
  return false;
}

int64_t InferenceEngine::pending() const {
  return static_cast<int64_t>(impl_->waiting.size() + impl_->active.size());
}

std::vector<GenerateResult> InferenceEngine::Drain() {
  Impl& e = *impl_;
  std::vector<GenerateResult> results;
  e.active.splice(e.active.end(), e.waiting);
  while (!e.active.empty()) results.push_back(e.Finish(e.active.begin(), FinishReason::kCancelled));
  e.prompts.clear();
  e.waiting_in_group.clear();
  e.primed.clear();
  if (e.cache) e.cache->Clear();
  e.weights.Clear();
  return results;
}

void InferenceEngine::ReleaseCache() {
  Check<Error>(pending() == 0, "[engine] {} requests are pending: their keys cannot go", pending());
  Drain();  // shared prompts
  impl_->cache.reset();
  impl_->replay = runtime::MakeReplay(impl_->ctx.allocator());  // graphs have memory of their own
}

EngineStats InferenceEngine::stats() const { return impl_->stats; }

}  // namespace hone::rl
