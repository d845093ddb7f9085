// Counts what is alive while layers run, without running them: the inside of memory_estimate.h.
//
// Each function of memory_layers.cc walks one function of model/layers/ and says of every tensor
// when it comes and goes. Widths are elements a token; T tokens. "Wide" tensors hold accumulators
// (f32 beside bf16), the others the stage's dtype.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hone::model {

class Tape {
 public:
  void Take(int64_t bytes) {
    live_ += bytes;
    peak_ = std::max(peak_, live_);
  }
  void Give(int64_t bytes) { live_ -= bytes; }
  int64_t live() const { return live_; }
  // The highest since the last call.
  int64_t TakePeak() {
    const int64_t peak = peak_;
    peak_ = live_;
    return peak;
  }

 private:
  int64_t live_ = 0, peak_ = 0;
};

// A tape in terms of one microbatch's rows.
class Ledger {
 public:
  struct Sizes {
    int64_t tokens, element, accumulator;  // bytes of one
    bool f32_copies;                       // CPU kernels work on f32 copies of bf16 tensors
  };
  Ledger(Tape& tape, Sizes sizes) : tape_(tape), sizes_(sizes) {}
  Ledger WithTokens(int64_t tokens) const {
    Ledger other = *this;
    other.sizes_.tokens = tokens;
    return other;
  }

  void Take(int64_t width) const { tape_.Take(Bytes(width)); }
  void Give(int64_t width) const { tape_.Give(Bytes(width)); }
  void TakeWide(int64_t width) const { tape_.Take(WideBytes(width)); }
  void GiveWide(int64_t width) const { tape_.Give(WideBytes(width)); }
  // A product's result; the CPU sums one of bf16 in a tensor of f32 first.
  void Product(int64_t width) const {
    Take(width);
    if (copies()) {
      TakeWide(width);
      GiveWide(width);
    }
  }
  // The input gradient of several layers: those after the first are added to it.
  void SumOfProducts(int64_t width) const {
    Product(width);
    Product(width);
    Give(width);
  }
  // Something of fixed size that comes and goes.
  void Pass(int64_t bytes) const {
    tape_.Take(bytes);
    tape_.Give(bytes);
  }

  // f32 copies are made of what is not f32 (or f64) already.
  bool copies() const { return sizes_.f32_copies && mixed(); }
  bool mixed() const { return sizes_.accumulator != sizes_.element; }
  int64_t Bytes(int64_t width) const { return sizes_.tokens * width * sizes_.element; }
  int64_t WideBytes(int64_t width) const { return sizes_.tokens * width * sizes_.accumulator; }
  const Sizes& sizes() const { return sizes_; }
  Tape& tape() const { return tape_; }

 private:
  Tape& tape_;
  Sizes sizes_;
};

struct ModelConfig;

// Walks through the parts of a stage. Gradients and results that a function returns stay taken for
// the caller to give back. `saved`: what backward needs stays taken; `split`: what the weight half
// of the backward needs does.
class LayerWalk {
 public:
  LayerWalk(const ModelConfig& config, int ep, int threads)
      : config_(config), ep_(ep), threads_(threads) {}

  // Takes the block's output. Its input is the caller's; with `saved` it has become the record's.
  void BlockForward(const Ledger& ledger, bool moe, bool saved) const;
  // Takes the input's gradient; gives back the output's, the record and the block's input.
  void BlockBackward(const Ledger& ledger, bool moe, bool split) const;
  void CheckpointedForward(const Ledger& ledger, bool moe) const {
    BlockForward(ledger, moe, false);
  }
  void CheckpointedBackward(const Ledger& ledger, bool moe, bool split) const;

 private:
  void AttentionForward(const Ledger& l, bool saved) const;
  void AttentionBackward(const Ledger& l, bool split) const;
  void LatentForward(const Ledger& l, bool saved) const;
  void LatentBackward(const Ledger& l, bool split) const;
  void LatentQueryBackward(const Ledger& l, bool split) const;
  void AttentionGradients(const Ledger& l, int64_t q, int64_t k, int64_t v, int64_t out) const;
  void MlpForward(const Ledger& l, int64_t intermediate, bool saved) const;
  void MlpBackward(const Ledger& l, int64_t intermediate, bool split) const;
  void MoeForward(const Ledger& l, bool saved) const;
  void MoeBackward(const Ledger& l, bool split) const;
  void RouterBackward(const Ledger& l, bool split) const;
  void ExpertsBackward(const Ledger& l, bool split) const;
  int64_t AttentionWorkspace(const Ledger& l) const;

  const ModelConfig& config_;
  int ep_, threads_;
};

}  // namespace hone::model
