// A process group that hands everything to another: for tests to derive from.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/comm/process_group.h"

namespace hone::parallel {

class ForwardingGroup : public ProcessGroup {
 public:
  explicit ForwardingGroup(GroupPtr real) : real_(std::move(real)) {}
  const std::string& name() const override { return real_->name(); }
  int rank() const override { return real_->rank(); }
  int size() const override { return real_->size(); }
  WorkPtr AllReduce(const Tensor& t, ReduceOp op) override { return real_->AllReduce(t, op); }
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output) override {
    return real_->ReduceScatter(input, output);
  }
  WorkPtr AllGather(const Tensor& input, const Tensor& output) override {
    return real_->AllGather(input, output);
  }
  WorkPtr AllToAll(const Tensor& send, const std::vector<int64_t>& send_rows, const Tensor& recv,
                   const std::vector<int64_t>& recv_rows) override {
    return real_->AllToAll(send, send_rows, recv, recv_rows);
  }
  WorkPtr Broadcast(const Tensor& t, int root) override { return real_->Broadcast(t, root); }
  WorkPtr Send(const Tensor& t, int peer, int tag) override { return real_->Send(t, peer, tag); }
  WorkPtr Receive(const Tensor& t, int peer, int tag) override {
    return real_->Receive(t, peer, tag);
  }
  GroupPtr Split(int color, int key, const std::string& name) override {
    return real_->Split(color, key, name);
  }
  std::vector<std::string> AllGatherBytes(const std::string& bytes) override {
    return real_->AllGatherBytes(bytes);
  }

 protected:
  const GroupPtr& real() const { return real_; }

 private:
  GroupPtr real_;
};

}  // namespace hone::parallel
