// What `runtime` needs of the other ranks, so that it need not know `parallel`.
#pragma once

#include <string>
#include <vector>

namespace hone::runtime {

// Every rank calls the same methods in the same order. Deadlines are the implementation's.
class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Everyone's bytes, in rank order, on every rank.
  virtual std::vector<std::string> AllGather(const std::string& bytes) = 0;
  void Barrier() { AllGather(""); }
};

class SingleRank : public Rendezvous {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::vector<std::string> AllGather(const std::string& bytes) override { return {bytes}; }
};

// Each rank passes its own error text ("" for none); all of them throw the same CheckpointError if any
// rank has one, naming the first rank and its text.
void AgreeOrThrow(Rendezvous& ranks, const std::string& error);

}  // namespace hone::runtime

namespace hone {
using runtime::Rendezvous;
}  // namespace hone
