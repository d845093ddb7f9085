#include "parallel/comm/nccl_process_group.h"

#include <cstring>
#include <exception>
#include <utility>

#include "kernels/elementwise/elementwise.h"
#include "parallel/comm/nccl_lane.h"
#include "parallel/comm/nccl_library.h"
#include "parallel/comm/nccl_messenger.h"
#include "parallel/comm/reduction.h"
#include "runtime/cuda_check.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr int kTags = 8192;

ncclDataType_t TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kF64:
      return ncclFloat64;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kI32:
      return ncclInt32;
    case DType::kI64:
      return ncclInt64;
    case DType::kU8:
      return ncclUint8;
    default:
      throw ShapeError(fmt::format("[nccl] {} cannot be reduced", runtime::DTypeName(dtype)));
  }
}

ncclRedOp_t OpOf(ReduceOp op) { return op == ReduceOp::kSum ? ncclSum : ncclMax; }

cudaStream_t HandleOf(Context& ctx) { return static_cast<cudaStream_t>(ctx.stream().handle()); }

class FinishedWork : public Work {
 public:
  bool Done() override { return true; }
  void Wait() override {}
};

// Keeps the tensors until ctx's stream is behind the operation.
class NcclWork : public Work {
 public:
  NcclWork(Context ctx, std::shared_ptr<NcclLane> lane, NcclOperationPtr operation,
           std::vector<Tensor> tensors)
      : ctx_(std::move(ctx)),
        lane_(std::move(lane)),
        operation_(std::move(operation)),
        tensors_(std::move(tensors)) {}
  // `from`, in another dtype, is what `to` gets.
  void ThenRound(Tensor from, Tensor to) {
    from_ = std::move(from);
    to_ = std::move(to);
  }
  bool Done() override { return operation_->done.Passed(); }
  void Wait() override {
    lane_->CheckAlive(operation_->place);
    if (waited_) return;
    operation_->done.Hold(HandleOf(ctx_));
    if (to_.defined()) CopyTo(kernels::Cast(ctx_, from_, to_.dtype()), to_, &ctx_.stream());
    waited_ = true;
    tensors_.clear();
    from_ = to_ = Tensor();
  }

 private:
  Context ctx_;
  std::shared_ptr<NcclLane> lane_;
  NcclOperationPtr operation_;
  std::vector<Tensor> tensors_;
  Tensor from_, to_;
  bool waited_ = false;
};

class ReceiveWork : public Work {
 public:
  ReceiveWork(Context ctx, std::shared_ptr<NcclMessenger> messenger,
              NcclMessenger::ReceiptPtr receipt)
      : ctx_(std::move(ctx)), messenger_(std::move(messenger)), receipt_(std::move(receipt)) {}
  bool Done() override { return messenger_->Received(*receipt_); }
  void Wait() override {
    messenger_->AwaitIssue(*receipt_);
    receipt_->lane->CheckAlive(receipt_->operation->place);
    if (!waited_) receipt_->operation->done.Hold(HandleOf(ctx_));
    waited_ = true;
  }

 private:
  Context ctx_;
  std::shared_ptr<NcclMessenger> messenger_;
  NcclMessenger::ReceiptPtr receipt_;
  bool waited_ = false;
};

class NcclProcessGroup : public ProcessGroup {
 public:
  NcclProcessGroup(Context ctx, GroupPtr control, std::shared_ptr<NcclWatcher> watcher,
                   GroupOptions options)
      : ctx_(std::move(ctx)),
        control_(std::move(control)),
        watcher_(std::move(watcher)),
        options_(options),
        messages_(control_->Split(0, control_->rank(), control_->name() + ".messages")) {
    messenger_ = std::make_shared<NcclMessenger>(ctx_, messages_, watcher_.get(), options.deadline);
    watcher_->Add(messenger_);
  }
  ~NcclProcessGroup() override {
    if (std::uncaught_exceptions() == 0) messenger_->Drain();
  }

  const std::string& name() const override { return control_->name(); }
  int rank() const override { return control_->rank(); }
  int size() const override { return control_->size(); }
  Device device() const override { return ctx_.device(); }

  WorkPtr AllReduce(const Tensor& tensor, ReduceOp op) override;
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output) override;
  WorkPtr AllGather(const Tensor& input, const Tensor& output) override;
  WorkPtr AllToAll(const Tensor& send, const std::vector<int64_t>& send_rows, const Tensor& recv,
                   const std::vector<int64_t>& recv_rows) override;
  WorkPtr Broadcast(const Tensor& tensor, int root) override;
  WorkPtr Send(const Tensor& tensor, int peer, int tag) override;
  WorkPtr Receive(const Tensor& tensor, int peer, int tag) override;

  GroupPtr Split(int color, int key, const std::string& name) override {
    GroupPtr part = control_->Split(color, key, name);
    if (!part) return nullptr;
    return std::make_shared<NcclProcessGroup>(ctx_, std::move(part), watcher_, options_);
  }
  std::vector<std::string> AllGatherBytes(const std::string& bytes) override {
    return control_->AllGatherBytes(bytes);
  }

 private:
  using Calls = std::function<ncclResult_t(ncclComm_t, cudaStream_t)>;

  bool OnHost(const Tensor& tensor) const { return tensor.device().is_cpu(); }
  std::string Place(const std::string& op) const {
    return fmt::format("[{}] group {}, rank {} of {}", op, name(), rank(), size());
  }
  NcclLane& Lane();
  std::shared_ptr<NcclWork> Start(const std::string& op, std::vector<Tensor> tensors,
                                  const Calls& calls);

  Context ctx_;
  GroupPtr control_;
  std::shared_ptr<NcclWatcher> watcher_;
  GroupOptions options_;
  GroupPtr messages_;
  std::shared_ptr<NcclLane> lane_;
  std::shared_ptr<NcclMessenger> messenger_;
};

// The communicator is made at the first collective, which every rank comes to.
NcclLane& NcclProcessGroup::Lane() {
  if (lane_) return *lane_;
  const std::string place = Place("nccl_init");
  std::string bytes(sizeof(ncclUniqueId), '\0');
  ncclUniqueId id{};
  if (rank() == 0) {
    Check<CommError>(Nccl().ncclGetUniqueId(&id) == ncclSuccess, "{}: NCCL gives no unique id: {}",
                     place, Nccl().ncclGetLastError(nullptr));
    std::memcpy(bytes.data(), &id, sizeof id);
  }
  bytes = control_->AllGatherBytes(bytes)[0];
  std::memcpy(&id, bytes.data(), sizeof id);
  auto lane = std::make_shared<NcclLane>(ctx_.device(), options_.deadline);
  lane->BeginInit(id, size(), rank(), place);
  lane->Settle(place);
  watcher_->Add(lane);
  lane_ = std::move(lane);
  return *lane_;
}

std::shared_ptr<NcclWork> NcclProcessGroup::Start(const std::string& op,
                                                  std::vector<Tensor> tensors, const Calls& calls) {
  NcclLane& lane = Lane();
  auto operation = std::make_shared<NcclOperation>(Place(op), ctx_.device());
  NcclEvent ready(ctx_.device());
  ready.Record(HandleOf(ctx_));
  ready.Hold(lane.stream());
  lane.Begin(operation->place, calls);
  lane.Settle(operation->place);
  lane.Finish(operation);
  watcher_->Wake();
  return std::make_shared<NcclWork>(ctx_, lane_, std::move(operation), std::move(tensors));
}

WorkPtr NcclProcessGroup::AllReduce(const Tensor& tensor, ReduceOp op) {
  CheckContiguous(*this, "all_reduce", tensor);
  if (OnHost(tensor)) return control_->AllReduce(tensor, op);
  bool widen = tensor.dtype() == DType::kBF16 && op == ReduceOp::kSum;
  Tensor sum = widen ? kernels::Cast(ctx_, tensor, DType::kF32) : tensor;
  auto work = Start("all_reduce", {tensor, sum}, [&](ncclComm_t comm, cudaStream_t stream) {
    return Nccl().ncclAllReduce(sum.raw(), sum.raw(), sum.size(), TypeOf(sum.dtype()), OpOf(op),
                                comm, stream);
  });
  if (widen) work->ThenRound(sum, tensor);
  return work;
}

WorkPtr NcclProcessGroup::ReduceScatter(const Tensor& input, const Tensor& output) {
  CheckReduceScatter(*this, input, output);
  if (OnHost(input)) return control_->ReduceScatter(input, output);
  bool widen = input.dtype() == DType::kBF16;
  Tensor in = widen ? kernels::Cast(ctx_, input, DType::kF32) : input;
  Tensor sum = widen ? ctx_.Empty(output.shape(), DType::kF32) : output;
  auto work = Start("reduce_scatter", {in, sum, output}, [&](ncclComm_t comm, cudaStream_t stream) {
    return Nccl().ncclReduceScatter(in.raw(), sum.raw(), sum.size(), TypeOf(sum.dtype()), ncclSum,
                                    comm, stream);
  });
  if (widen) work->ThenRound(sum, output);
  return work;
}

WorkPtr NcclProcessGroup::AllGather(const Tensor& input, const Tensor& output) {
  CheckAllGather(*this, input, output);
  if (OnHost(input)) return control_->AllGather(input, output);
  return Start("all_gather", {input, output}, [&](ncclComm_t comm, cudaStream_t stream) {
    return Nccl().ncclAllGather(input.raw(), output.raw(), input.bytes(), ncclUint8, comm, stream);
  });
}

WorkPtr NcclProcessGroup::AllToAll(const Tensor& send, const std::vector<int64_t>& send_rows,
                                   const Tensor& recv, const std::vector<int64_t>& recv_rows) {
  CheckAllToAll(*this, send, send_rows, recv, recv_rows);
  if (OnHost(send)) return control_->AllToAll(send, send_rows, recv, recv_rows);
  const int64_t row = RowBytes(send);
  return Start("all_to_all", {send, recv}, [&](ncclComm_t comm, cudaStream_t stream) {
    const char* from = static_cast<const char*>(send.raw());
    char* to = static_cast<char*>(recv.raw());
    ncclResult_t result = Nccl().ncclGroupStart();
    for (int r = 0; r < size() && result == ncclSuccess; ++r) {
      int64_t out = send_rows[r] * row, in = recv_rows[r] * row;
      if (out > 0) result = Nccl().ncclSend(from, out, ncclUint8, r, comm, stream);
      if (in > 0 && (result == ncclSuccess || result == ncclInProgress)) {
        result = Nccl().ncclRecv(to, in, ncclUint8, r, comm, stream);
      }
      if (result == ncclInProgress) result = ncclSuccess;
      from += out;
      to += in;
    }
    ncclResult_t end = Nccl().ncclGroupEnd();
    return result == ncclSuccess ? end : result;
  });
}

WorkPtr NcclProcessGroup::Broadcast(const Tensor& tensor, int root) {
  CheckContiguous(*this, "broadcast", tensor);
  CheckPeer(*this, "broadcast", root);
  if (OnHost(tensor)) return control_->Broadcast(tensor, root);
  return Start("broadcast", {tensor}, [&](ncclComm_t comm, cudaStream_t stream) {
    return Nccl().ncclBroadcast(tensor.raw(), tensor.raw(), tensor.bytes(), ncclUint8, root, comm,
                                stream);
  });
}

WorkPtr NcclProcessGroup::Send(const Tensor& tensor, int peer, int tag) {
  CheckMessage(*this, "send", tensor, peer, tag, kTags);
  if (OnHost(tensor)) return control_->Send(tensor, peer, tag);
  Check<CommError>(peer != rank(), "{}: to itself; hand the tensor on", Place("send"));
  messenger_->Send(tensor, peer, tag,
                   fmt::format("{}, tag {}", Place(fmt::format("send to rank {}", peer)), tag));
  return std::make_shared<FinishedWork>();
}

WorkPtr NcclProcessGroup::Receive(const Tensor& tensor, int peer, int tag) {
  CheckMessage(*this, "receive", tensor, peer, tag, kTags);
  if (OnHost(tensor)) return control_->Receive(tensor, peer, tag);
  Check<CommError>(peer != rank(), "{}: from itself", Place("receive"));
  auto receipt =
      messenger_->Receive(tensor, peer, tag, fmt::format("{}, tag {}", Place("receive"), tag));
  return std::make_shared<ReceiveWork>(ctx_, messenger_, std::move(receipt));
}

}  // namespace

GroupPtr MakeNcclGroup(const Context& ctx, GroupPtr control, GroupOptions options) {
  Nccl();  // where it is absent, every rank says so now
  return std::make_shared<NcclProcessGroup>(ctx, std::move(control),
                                            std::make_shared<NcclWatcher>(), options);
}

std::string GpuIdentity(Device device) {
  cudaDeviceProp properties;
  runtime::CheckCuda(cudaGetDeviceProperties(&properties, device.index), "nccl",
                     "cudaGetDeviceProperties", device.index);
  std::string text;
  for (char byte : properties.uuid.bytes) text += fmt::format("{:02x}", static_cast<uint8_t>(byte));
  return text;
}

}  // namespace hone::parallel
