#include "parallel/gradient_reducer.h"

#include <deque>
#include <map>
#include <utility>

#include "parallel/tied_replicas.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

// Buffers of finished buckets are freed as later ones start, so that they never add up to all
// gradients.
constexpr size_t kMostInFlight = 4;

}  // namespace

struct GradientReducer::Impl {
  struct Bucket {
    ShardBucket layout;
    bool last = false;  // holds replicated parameters: only Finish knows their sum
    int unready = 0;
    bool started = false;
    Tensor sum;    // this rank's section
    Tensor input;  // while under way
    WorkPtr work;
  };
  struct Item {
    size_t bucket = 0;
    const BucketEntry* entry = nullptr;
    int names = 0, unmarked = 0;  // parameters in this storage
    Tensor shard;
  };

  Impl(Context& context, const Mesh& mesh, const std::vector<Parameter*>& parameters, Options opts);
  void MarkReady(const Parameter* parameter);
  void StartReady();
  void Start(Bucket& bucket);
  void WaitOldest();
  void Finish();
  const Item& Find(const Parameter* parameter) const;

  Context& ctx;
  Options options;
  TiedReplicas tied;
  std::vector<Bucket> buckets;
  std::vector<Item> items;
  std::map<const Parameter*, size_t> item_of;
  std::map<const Parameter*, bool> marked;
  std::deque<Bucket*> in_flight;
};

GradientReducer::Impl::Impl(Context& context, const Mesh& mesh,
                            const std::vector<Parameter*>& parameters, Options opts)
    : ctx(context), options(opts), tied(mesh, TrainableParameters(parameters)) {
  std::vector<Parameter*> plain, replicated;
  for (Parameter* p : TrainableParameters(parameters)) {
    (tied.replicated(p) ? replicated : plain).push_back(p);
  }
  for (bool last : {false, true}) {
    for (ShardBucket& layout : MakeShardBuckets(
             mesh, last ? replicated : plain, [](const ParamSpec& spec) { return spec.gradient; },
             options.bucket_bytes)) {
      buckets.push_back(
          {.layout = std::move(layout), .last = last, .sum = {}, .input = {}, .work = {}});
    }
  }
  std::map<const void*, size_t> by_storage;
  for (size_t b = 0; b < buckets.size(); ++b) {
    Bucket& bucket = buckets[b];
    ShardBucket& layout = bucket.layout;
    bool alone = layout.group->size() == 1;
    if (!alone)
      bucket.sum = ctx.Empty({layout.section}, layout.dtype, MemoryCategory::kCommunication);
    for (const BucketEntry& entry : layout.entries) {
      by_storage[entry.parameter->gradient.raw()] = items.size();
      items.push_back({.bucket = b,
                       .entry = &entry,
                       .shard = alone ? entry.parameter->gradient
                                      : layout.View(bucket.sum, entry, layout.group->rank())});
    }
    bucket.unready = static_cast<int>(layout.entries.size());
  }
  for (const Parameter* p : parameters) {
    if (!p->spec.trainable || p->spec.buffer) continue;
    item_of[p] = by_storage.at(p->gradient.raw());
    marked[p] = false;
    items[item_of[p]].unmarked = ++items[item_of[p]].names;
  }
}

void GradientReducer::Impl::MarkReady(const Parameter* parameter) {
  auto it = item_of.find(parameter);
  if (it == item_of.end()) {
    Check(!parameter->spec.trainable || parameter->spec.buffer,
          "[gradient_reducer] {} is not one of its parameters", parameter->spec.name);
    return;
  }
  Check(!std::exchange(marked[parameter], true),
        "[gradient_reducer] {} was marked ready twice in a step", parameter->spec.name);
  Item& item = items[it->second];
  if (--item.unmarked > 0) return;
  --buckets[item.bucket].unready;
  const Parameter* first = item.entry->parameter;
  if (tied.replicated(first)) tied.Send(first);
  if (options.overlap) StartReady();
}

// In order, on every rank the same: a bucket waits for those before it in its list.
void GradientReducer::Impl::StartReady() {
  for (Bucket& bucket : buckets) {
    if (bucket.started) continue;
    if (bucket.unready > 0 || bucket.last) return;
    Start(bucket);
  }
}

void GradientReducer::Impl::Start(Bucket& bucket) {
  bucket.started = true;
  const ShardBucket& layout = bucket.layout;
  int size = layout.group->size();
  if (size == 1) return;
  if (in_flight.size() >= kMostInFlight) WaitOldest();
  bucket.input = ctx.Empty({size * layout.section}, layout.dtype, MemoryCategory::kCommunication);
  for (const BucketEntry& entry : layout.entries) {
    int64_t room = layout.Rows(entry, 0).size() * entry.row_size;
    for (int r = 0; r < size; ++r) {
      RowRange rows = layout.Rows(entry, r);
      Tensor section = layout.Section(bucket.input, r);
      Tensor view = layout.View(section, entry, r);
      CopyTo(entry.parameter->gradient.Slice(rows.begin, rows.end), view, &ctx.stream());
      Tensor unused = section.Slice(entry.offset + view.size(), entry.offset + room);
      runtime::FillZero(unused.raw(), unused.device(), unused.bytes(), &ctx.stream());
    }
  }
  bucket.work = layout.group->ReduceScatter(bucket.input, bucket.sum);
  in_flight.push_back(&bucket);
}

void GradientReducer::Impl::WaitOldest() {
  Bucket& bucket = *in_flight.front();
  bucket.work->Wait();
  bucket.work = nullptr;
  bucket.input = Tensor();
  in_flight.pop_front();
}

void GradientReducer::Impl::Finish() {
  for (auto& [parameter, is_marked] : marked) {
    if (is_marked) continue;
    Item& item = items[item_of[parameter]];
    const Parameter* first = item.entry->parameter;
    if (--item.unmarked == 0 && tied.replicated(first)) tied.Send(first);
  }
  for (Bucket& bucket : buckets) {
    if (!bucket.started && !bucket.last) Start(bucket);
  }
  tied.ReceiveAndAdd(ctx);
  for (Bucket& bucket : buckets) {
    if (!bucket.started) Start(bucket);
  }
  while (!in_flight.empty()) WaitOldest();
  for (Bucket& bucket : buckets) {
    bucket.started = false;
    bucket.unready = static_cast<int>(bucket.layout.entries.size());
  }
  for (Item& item : items) item.unmarked = item.names;
  for (auto& [_, is_marked] : marked) is_marked = false;
}

const GradientReducer::Impl::Item& GradientReducer::Impl::Find(const Parameter* parameter) const {
  auto it = item_of.find(parameter);
  Check(it != item_of.end(), "[gradient_reducer] {} is frozen or unknown", parameter->spec.name);
  return items[it->second];
}

GradientReducer::GradientReducer(Context& ctx, const Mesh& mesh, std::vector<Parameter*> parameters,
                                 Options options)
    : impl_(std::make_unique<Impl>(ctx, mesh, parameters, options)) {}
GradientReducer::~GradientReducer() = default;

void GradientReducer::MarkReady(const Parameter* parameter) { impl_->MarkReady(parameter); }
void GradientReducer::Finish() { impl_->Finish(); }
const Tensor& GradientReducer::Shard(const Parameter* parameter) const {
  return impl_->Find(parameter).shard;
}
RowRange GradientReducer::Rows(const Parameter* parameter) const {
  const Impl::Item& item = impl_->Find(parameter);
  const ShardBucket& layout = impl_->buckets[item.bucket].layout;
  return layout.Rows(*item.entry, layout.group->rank());
}

}  // namespace hone::parallel
