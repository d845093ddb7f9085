#include <utility>

#include "parallel/comm/device_group.h"
#include "parallel/comm/reduction.h"

namespace hone::parallel {
namespace {

// Host work, and where its result goes when it has come.
class StagedWork : public Work {
 public:
  StagedWork(WorkPtr work, Context ctx, Tensor host, Tensor out)
      : work_(std::move(work)),
        ctx_(std::move(ctx)),
        host_(std::move(host)),
        out_(std::move(out)) {}
  bool Done() override { return work_->Done(); }
  void Wait() override {
    work_->Wait();
    if (!host_.defined()) return;
    CopyTo(host_, out_, &ctx_.stream());
    host_ = out_ = Tensor();
  }

 private:
  WorkPtr work_;
  Context ctx_;
  Tensor host_, out_;
};

class StagedProcessGroup : public ProcessGroup {
 public:
  StagedProcessGroup(Context ctx, GroupPtr control)
      : ctx_(std::move(ctx)),
        control_(std::move(control)),
        host_allocator_(runtime::MakeAllocator(Device::Cpu())) {}

  const std::string& name() const override { return control_->name(); }
  int rank() const override { return control_->rank(); }
  int size() const override { return control_->size(); }
  Device device() const override { return ctx_.device(); }

  WorkPtr AllReduce(const Tensor& tensor, ReduceOp op) override {
    CheckContiguous(*this, "all_reduce", tensor);
    if (!Staged(tensor)) return control_->AllReduce(tensor, op);
    Tensor host = ToHost(tensor);
    return Then(control_->AllReduce(host, op), host, tensor);
  }
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output) override {
    CheckReduceScatter(*this, input, output);
    if (!Staged(input)) return control_->ReduceScatter(input, output);
    Tensor host = HostLike(output);
    return Then(control_->ReduceScatter(ToHost(input), host), host, output);
  }
  WorkPtr AllGather(const Tensor& input, const Tensor& output) override {
    CheckAllGather(*this, input, output);
    if (!Staged(input)) return control_->AllGather(input, output);
    Tensor host = HostLike(output);
    return Then(control_->AllGather(ToHost(input), host), host, output);
  }
  WorkPtr AllToAll(const Tensor& send, const std::vector<int64_t>& send_rows, const Tensor& recv,
                   const std::vector<int64_t>& recv_rows) override {
    CheckAllToAll(*this, send, send_rows, recv, recv_rows);
    if (!Staged(send)) return control_->AllToAll(send, send_rows, recv, recv_rows);
    Tensor host = HostLike(recv);
    return Then(control_->AllToAll(ToHost(send), send_rows, host, recv_rows), host, recv);
  }
  WorkPtr Broadcast(const Tensor& tensor, int root) override {
    CheckContiguous(*this, "broadcast", tensor);
    if (!Staged(tensor)) return control_->Broadcast(tensor, root);
    Tensor host = rank() == root ? ToHost(tensor) : HostLike(tensor);
    return Then(control_->Broadcast(host, root), host, tensor);
  }
  WorkPtr Send(const Tensor& tensor, int peer, int tag) override {
    CheckContiguous(*this, "send", tensor);
    return control_->Send(Staged(tensor) ? ToHost(tensor) : tensor, peer, tag);
  }
  WorkPtr Receive(const Tensor& tensor, int peer, int tag) override {
    CheckContiguous(*this, "receive", tensor);
    if (!Staged(tensor)) return control_->Receive(tensor, peer, tag);
    Tensor host = HostLike(tensor);
    return Then(control_->Receive(host, peer, tag), host, tensor);
  }

  GroupPtr Split(int color, int key, const std::string& name) override {
    GroupPtr part = control_->Split(color, key, name);
    return part ? MakeStagedGroup(ctx_, std::move(part)) : nullptr;
  }
  std::vector<std::string> AllGatherBytes(const std::string& bytes) override {
    return control_->AllGatherBytes(bytes);
  }

 private:
  bool Staged(const Tensor& tensor) const { return tensor.device() == ctx_.device(); }
  Tensor HostLike(const Tensor& tensor) const {
    return Tensor(host_allocator_, tensor.shape(), tensor.dtype(), MemoryCategory::kCommunication);
  }
  Tensor ToHost(const Tensor& tensor) {
    Tensor host = HostLike(tensor);
    CopyTo(tensor, host, &ctx_.stream());
    return host;
  }
  WorkPtr Then(WorkPtr work, const Tensor& host, const Tensor& out) const {
    return std::make_shared<StagedWork>(std::move(work), ctx_, host, out);
  }

  Context ctx_;
  GroupPtr control_;
  std::shared_ptr<Allocator> host_allocator_;
};

}  // namespace

GroupPtr MakeStagedGroup(const Context& ctx, GroupPtr control) {
  return std::make_shared<StagedProcessGroup>(ctx, std::move(control));
}

}  // namespace hone::parallel
