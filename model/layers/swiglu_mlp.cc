// down(silu(gate(x)) · up(x)). A dense feed-forward part exchanges nothing: it does all its work in
// the Experts phase.
#include "kernels/swiglu/swiglu.h"
#include "model/layers/layer.h"

namespace hone::model {
namespace {

class SwiGluMlp : public FeedForward {
 public:
  SwiGluMlp(ParameterBuilder& builder, const std::string& prefix, int64_t hidden,
            int64_t intermediate)
      : gate_(builder, prefix + ".gate_proj", hidden, intermediate, false),
        up_(builder, prefix + ".up_proj", hidden, intermediate, false),
        down_(builder, prefix + ".down_proj", intermediate, hidden, false,
              ParameterBuilder::Init::kNormalScaledByDepth) {}

  StatePtr ForwardDispatch(Context&, const Tensor& x_TD, const MoeInput&,
                           RecordPtr* saved) override {
    auto state = std::make_unique<ForwardState>();
    state->x_TD = x_TD;
    if (saved) {
      auto record = std::make_unique<Saved>();
      state->saved = record.get();
      *saved = std::move(record);
    }
    return state;
  }
  void ForwardExperts(Context& ctx, State& state) override;
  Tensor ForwardCombine(Context&, StatePtr state) override {
    return static_cast<ForwardState&>(*state).y_TD;
  }
  StatePtr BackwardDispatch(Context&, const Tensor& dy_TD, RecordPtr saved) override {
    auto state = std::make_unique<BackwardState>();
    state->d_TD = dy_TD;
    state->saved.reset(static_cast<Saved*>(saved.release()));
    return state;
  }
  void BackwardExperts(Context& ctx, State& state) override;
  Tensor BackwardCombine(Context&, StatePtr state) override {
    return static_cast<BackwardState&>(*state).d_TD;
  }

 private:
  struct Saved : Record {
    Tensor x_TD, gate_TF, up_TF;
  };
  struct ForwardState : State {
    Tensor x_TD, y_TD;
    Saved* saved = nullptr;
  };
  struct BackwardState : State {
    Tensor d_TD;  // of the output, then of the input
    std::unique_ptr<Saved> saved;
  };

  Linear gate_, up_, down_;
};

void SwiGluMlp::ForwardExperts(Context& ctx, State& base) {
  auto& state = static_cast<ForwardState&>(base);
  const std::vector<Tensor> projected = Linear::ForwardEach(ctx, state.x_TD, {&gate_, &up_});
  const Tensor &gate_TF = projected[0], &up_TF = projected[1];
  state.y_TD = down_.Forward(ctx, kernels::SwiGlu(ctx, gate_TF, up_TF));
  if (state.saved) {
    state.saved->x_TD = state.x_TD;
    state.saved->gate_TF = gate_TF;
    state.saved->up_TF = up_TF;
  }
}

void SwiGluMlp::BackwardExperts(Context& ctx, State& base) {
  auto& state = static_cast<BackwardState&>(base);
  const Saved& saved = *state.saved;
  Tensor h_TF = down_.InputGradient(ctx, state.d_TD);  // dh, until the next line
  kernels::SwiGluBackward(ctx, h_TF, saved.gate_TF, saved.up_TF);
  const Tensor &dgate_TF = saved.gate_TF, &dup_TF = saved.up_TF;
  down_.AddWeightGradient(ctx, state.d_TD, h_TF);
  state.d_TD = Linear::BackwardSum(ctx, {{&gate_, dgate_TF}, {&up_, dup_TF}}, saved.x_TD);
  state.saved.reset();
}

}  // namespace

std::unique_ptr<FeedForward> MakeSwiGluMlp(ParameterBuilder& builder, const std::string& prefix,
                                           int64_t hidden, int64_t intermediate) {
  return std::make_unique<SwiGluMlp>(builder, prefix, hidden, intermediate);
}

}  // namespace hone::model
