// Runs one rank's list of a schedule.
//
// What stage s hands to s + 1 travels under a tag of (forward, s, microbatch), the gradient that s
// hands to s − 1 under (backward, s, microbatch); several tensors of one hand-over follow each
// other in order. Between chunks of the same rank it waits in `inbox_` instead. Both ends know the
// shapes, so tensors without elements are not sent.
#include <deque>
#include <map>
#include <tuple>
#include <utility>

#include "parallel/train_engine.h"

namespace hone::parallel {
namespace {

enum class Direction { kForward = 0, kBackward = 1 };
using Kind = Action::Kind;

bool AddsGradient(const Action& a) { return a.kind != Kind::kForward; }
int GradientChunk(const Action& a) {
  return a.kind == Kind::kForwardBackward ? a.pair_chunk : a.chunk;
}

// What a gradient's receiver must allocate: the form of a forward output, without its memory.
struct TensorForm {
  std::string name;
  Shape shape;
  DType dtype;
};

// Messages under way keep their tensors alive.
class Outbox {
 public:
  void Send(ProcessGroup& group, const Tensor& tensor, int peer, int tag) {
    while (!messages_.empty() && messages_.front().work->Done()) Pop();
    messages_.push_back({group.Send(tensor, peer, tag), tensor});
  }
  void Flush() {
    while (!messages_.empty()) Pop();
  }

 private:
  struct Message {
    WorkPtr work;
    Tensor tensor;
  };
  void Pop() {
    messages_.front().work->Wait();  // an error of the message surfaces here
    messages_.pop_front();
  }
  std::deque<Message> messages_;
};

// Sets ctx.weight_gradients for a scope.
class QueueScope {
 public:
  QueueScope(Context& ctx, WeightGradientQueue* queue) : ctx_(ctx), before_(ctx.weight_gradients) {
    ctx_.weight_gradients = queue;
  }
  ~QueueScope() { ctx_.weight_gradients = before_; }
  QueueScope(const QueueScope&) = delete;
  QueueScope& operator=(const QueueScope&) = delete;

 private:
  Context& ctx_;
  WeightGradientQueue* before_;
};

class ListRunner {
 public:
  ListRunner(Context& ctx, const PipelineShape& shape, GroupPtr pp,
             const std::vector<PipelineStage*>& chunks, const std::vector<TokenBatch>& microbatches,
             const LossFunction* loss, bool train)
      : ctx_(ctx),
        shape_(shape),
        pp_(std::move(pp)),
        rank_(pp_ ? pp_->rank() : 0),
        chunks_(chunks),
        microbatches_(microbatches),
        loss_(loss),
        train_(train) {}

  void Run(const std::vector<Action>& actions, const PipelineStage::GradientListener& on_gradient) {
    std::vector<size_t> last(chunks_.size(), actions.size());  // a chunk's last gradient
    for (size_t i = 0; i < actions.size(); ++i) {
      if (AddsGradient(actions[i])) last.at(GradientChunk(actions[i])) = i;
    }
    for (size_t i = 0; i < actions.size(); ++i) {
      const Action& a = actions[i];
      if (on_gradient && AddsGradient(a) && last[GradientChunk(a)] == i) {
        RunLast(a, on_gradient);
      } else {
        RunOne(a);
      }
    }
    outbox_.Flush();
  }

 private:
  void RunOne(const Action& a) {
    switch (a.kind) {
      case Kind::kForward:
        return Forward(a.chunk, a.microbatch);
      case Kind::kBackward:
        return Backward(a.chunk, a.microbatch, nullptr);
      case Kind::kBackwardInput:
        return Backward(a.chunk, a.microbatch, &weight_halves_[{a.chunk, a.microbatch}]);
      case Kind::kBackwardWeight:
        return BackwardWeight(a.chunk, a.microbatch);
      case Kind::kForwardBackward:
        return Pair(a);
    }
  }

  // The action after which the chunk's gradients are final: the stage may report them as they come,
  // the others are reported in reverse, the order in which a backward pass finishes them.
  void RunLast(const Action& a, const PipelineStage::GradientListener& on_gradient) {
    PipelineStage& stage = *chunks_[GradientChunk(a)];
    std::map<const Parameter*, bool> reported;
    auto report = [&](const Parameter& parameter) {
      if (!std::exchange(reported[&parameter], true)) on_gradient(parameter);
    };
    stage.set_gradient_listener(report);
    try {
      RunOne(a);
    } catch (...) {
      stage.set_gradient_listener(nullptr);
      throw;
    }
    stage.set_gradient_listener(nullptr);
    const std::vector<Parameter*> parameters = stage.Parameters();
    for (auto it = parameters.rbegin(); it != parameters.rend(); ++it) report(**it);
  }

  void Forward(int chunk, int microbatch) {
    StageIO in = TakeInput(chunk, microbatch);
    HandOn(chunk, microbatch,
           chunks_[chunk]->Forward(ctx_, microbatch, microbatches_[microbatch], std::move(in),
                                   loss_, train_));
  }

  void Backward(int chunk, int microbatch, WeightGradientQueue* weight_halves) {
    StageIO doutput = TakeGradient(chunk, microbatch);
    QueueScope scope(ctx_, weight_halves);
    HandBack(chunk, microbatch, chunks_[chunk]->Backward(ctx_, microbatch, std::move(doutput)));
  }

  void BackwardWeight(int chunk, int microbatch) {
    auto node = weight_halves_.extract({chunk, microbatch});
    Check(!node.empty(), "[pipeline] weight half of chunk {}, microbatch {} before its input half",
          chunk, microbatch);
    WeightGradientQueue& queue = node.mapped();
    for (; !queue.empty(); queue.pop_front()) queue.front()();
  }

  void Pair(const Action& a) {
    PipelineStage& forward = *chunks_[a.chunk];
    if (!forward.overlaps_forward_backward()) {
      Forward(a.chunk, a.microbatch);
      Backward(a.pair_chunk, a.pair_microbatch, nullptr);
      return;
    }
    StageIO in = TakeInput(a.chunk, a.microbatch);
    StageIO doutput = TakeGradient(a.pair_chunk, a.pair_microbatch);
    QueueScope scope(ctx_, nullptr);
    auto [out, dinput] =
        forward.Overlap(ctx_, a.microbatch, microbatches_[a.microbatch], std::move(in), loss_,
                        *chunks_[a.pair_chunk], a.pair_microbatch, std::move(doutput));
    HandOn(a.chunk, a.microbatch, std::move(out));
    HandBack(a.pair_chunk, a.pair_microbatch, std::move(dinput));
  }

  StageIO TakeInput(int chunk, int microbatch) {
    const int stage = shape_.StageOf(rank_, chunk);
    if (stage == 0) return {};
    if (IsHere(stage - 1)) return TakeLocal(Direction::kForward, stage - 1, microbatch);
    StageIO in = chunks_[chunk]->InputBuffers(ctx_, microbatches_[microbatch]);
    Receive(in, Direction::kForward, stage - 1, microbatch);
    return in;
  }

  StageIO TakeGradient(int chunk, int microbatch) {
    const int stage = shape_.StageOf(rank_, chunk);
    if (stage + 1 == shape_.stages()) return {};
    auto forms = output_forms_.extract({chunk, microbatch});
    if (IsHere(stage + 1)) return TakeLocal(Direction::kBackward, stage + 1, microbatch);
    Check(!forms.empty(), "[pipeline] backward of chunk {}, microbatch {} before its forward",
          chunk, microbatch);
    StageIO doutput;
    for (const TensorForm& form : forms.mapped()) {
      doutput.emplace_back(form.name, ctx_.Empty(form.shape, form.dtype));
    }
    Receive(doutput, Direction::kBackward, stage + 1, microbatch);
    return doutput;
  }

  void HandOn(int chunk, int microbatch, StageIO out) {
    const int stage = shape_.StageOf(rank_, chunk);
    if (stage + 1 == shape_.stages()) return;
    if (train_) {
      auto& forms = output_forms_[{chunk, microbatch}];
      for (const auto& [name, tensor] : out)
        forms.push_back({name, tensor.shape(), tensor.dtype()});
    }
    Send(std::move(out), Direction::kForward, stage, stage + 1, microbatch);
  }

  void HandBack(int chunk, int microbatch, StageIO dinput) {
    const int stage = shape_.StageOf(rank_, chunk);
    if (stage > 0) Send(std::move(dinput), Direction::kBackward, stage, stage - 1, microbatch);
  }

  bool IsHere(int stage) const { return shape_.RankOf(stage) == rank_; }

  StageIO TakeLocal(Direction direction, int from, int microbatch) {
    auto node = inbox_.extract({direction, from, microbatch});
    Check(!node.empty(), "[pipeline] stage {} has not handed on microbatch {}", from, microbatch);
    return std::move(node.mapped());
  }

  void Send(StageIO io, Direction direction, int from, int to, int microbatch) {
    if (IsHere(to)) {
      inbox_[{direction, from, microbatch}] = std::move(io);
      return;
    }
    for (const auto& [name, tensor] : io) {
      if (tensor.size() == 0) continue;
      outbox_.Send(*pp_, tensor.contiguous() ? tensor : ctx_.Clone(tensor), shape_.RankOf(to),
                   Tag(direction, from, microbatch));
    }
  }

  void Receive(const StageIO& io, Direction direction, int from, int microbatch) {
    std::vector<WorkPtr> works;
    for (const auto& [name, tensor] : io) {
      if (tensor.size() == 0) continue;
      works.push_back(pp_->Receive(tensor, shape_.RankOf(from), Tag(direction, from, microbatch)));
    }
    for (const WorkPtr& work : works) work->Wait();
  }

  // Groups have 2^16 tags; a tag may come again, since a stage takes its microbatches in order.
  int Tag(Direction direction, int from, int microbatch) const {
    constexpr int kRound = 64;
    return (microbatch % kRound * shape_.stages() + from) * 2 + static_cast<int>(direction);
  }

  Context& ctx_;
  const PipelineShape& shape_;
  GroupPtr pp_;
  int rank_;
  const std::vector<PipelineStage*>& chunks_;
  const std::vector<TokenBatch>& microbatches_;
  const LossFunction* loss_;
  bool train_;
  Outbox outbox_;
  std::map<std::tuple<Direction, int, int>, StageIO> inbox_;  // (direction, from stage, microbatch)
  std::map<std::pair<int, int>, WeightGradientQueue> weight_halves_;     // (chunk, microbatch)
  std::map<std::pair<int, int>, std::vector<TensorForm>> output_forms_;  // (chunk, microbatch)
};

}  // namespace

PipelineExecutor::PipelineExecutor(const PipelineShape& shape, GroupPtr pp,
                                   std::vector<PipelineStage*> chunks)
    : shape_(shape), pp_(std::move(pp)), chunks_(std::move(chunks)) {
  shape_.ValidateLayout();
  const int ranks = pp_ ? pp_->size() : 1;
  Check<ConfigError>(ranks == shape_.ranks, "[pipeline] a schedule for {} ranks on a group of {}",
                     shape_.ranks, ranks);
  Check<ConfigError>(static_cast<int>(chunks_.size()) == shape_.chunks,
                     "[pipeline] {}: {} chunks on this rank; the schedule has {}",
                     ScheduleName(shape_.kind), chunks_.size(), shape_.chunks);
}

void PipelineExecutor::Run(Context& ctx, const std::vector<Action>& actions,
                           const std::vector<TokenBatch>& microbatches, const LossFunction* loss,
                           bool train, const PipelineStage::GradientListener& on_gradient) {
  ListRunner(ctx, shape_, pp_, chunks_, microbatches, loss, train).Run(actions, on_gradient);
}

}  // namespace hone::parallel
