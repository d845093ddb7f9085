// A pack of sequences is a batch of B sequences of at most S tokens for cuDNN, laid out by ragged
// offsets: element offset[s] is where sequence s begins. S and T are rounded up to a few sizes, and
// B too (more sequences, of no tokens) where cuDNN takes such, so that few plans serve a run.
#include <cudnn.h>
#include <cudnn_frontend.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/cudnn_pack.h"
#include "kernels/cuda/first_use.h"
#include "kernels/cuda/launch.h"

namespace hone::kernels::cudnn {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;
using Attributes = std::shared_ptr<Tensor_attributes>;

enum class Kind : int64_t { kForward, kBackward, kDecode };

// What a plan is made for. Row strides are of (token, head) rows.
struct Problem {
  Kind kind;
  int device;
  int64_t sequences, length, tokens;  // rounded up
  int64_t heads, groups, dim_c, dim_v;
  int64_t q_stride, k_stride, v_stride;
  int64_t pages, page_size, key_length;  // decode only
  double scale;

  auto operator<=>(const Problem&) const = default;
  std::string ToString() const {
    return fmt::format("{} heads, {} groups, dims {} and {}, {} sequences of {} tokens", heads,
                       groups, dim_c, dim_v, sequences, length);
  }
};

// Of the backward's scores: sequences take turns when they need more. And of all that a plan may
// want: beyond it our own kernel is slower, but does not take the memory that the step needs.
constexpr int64_t kScoresAtOnce = int64_t{2} << 30, kMostWorkspace = int64_t{24} << 30;

// Uids of a graph's tensors; a ragged tensor's offsets have OffsetsOf its uid.
enum Uid : int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kLse,
  kDout,
  kDq,
  kDk,
  kDv,
  kQueries,
  kKeys,
  kPagesK,
  kPagesV,
  kOffsets = 100,
};

// Gradients share the offsets of what they belong to, unless that is a view of wider rows.
int64_t OffsetsOf(const Problem& p, Uid uid) {
  if (uid == kDout) uid = kOut;
  if (uid == kDq && p.q_stride == p.dim_c) uid = kQ;
  if (uid == kDk && p.k_stride == p.dim_c) uid = kK;
  if (uid == kDv && p.v_stride == p.dim_v) uid = kV;
  return uid + kOffsets;
}

struct Plan {
  Graph graph;
  std::string missing;   // why there is none
  bool refused = false;  // there will be none either
};

// A plan that is missing for a reason that may pass is tried again: at the 16th use, the 256th, …
struct PlanOfProblem {
  std::unique_ptr<Plan> plan;
  int64_t uses = 0, next_attempt = 0;
};
constexpr int64_t kMoreUses = 16;

// cuDNN's handle and the plans of one thread: a handle is not to be used by two at once.
struct Library {
  std::map<int, cudnnHandle_t> handles;
  std::map<Problem, PlanOfProblem> plans;
  std::set<std::string> said;

  ~Library() {
    plans.clear();
    for (auto& [device, handle] : handles) cudnnDestroy(handle);
  }
  cudnnHandle_t Handle(Context& ctx) {
    const int device = ctx.device().index;
    runtime::CheckCuda(cudaSetDevice(device), "cudnn", "cudaSetDevice", device);
    cudnnHandle_t& handle = handles[device];
    if (handle == nullptr) Check(cudnnCreate(&handle), "cudnnCreate");
    Check(cudnnSetStream(handle, static_cast<cudaStream_t>(ctx.stream().handle())),
          "cudnnSetStream");
    return handle;
  }
  static void Check(cudnnStatus_t status, const char* call) {
    runtime::Check<DeviceError>(status == CUDNN_STATUS_SUCCESS, "[cudnn] {}: {}", call,
                                cudnnGetErrorString(status));
  }
};

Library& ThisThread() {
  static thread_local Library library;
  return library;
}

Attributes Lengths(Graph& graph, const Problem& p, Uid uid) {
  return graph.tensor(Tensor_attributes()
                          .set_name(uid == kQueries ? "queries" : "keys")
                          .set_uid(uid)
                          .set_dim({p.sequences, 1, 1, 1})
                          .set_stride({1, 1, 1, 1})
                          .set_data_type(fe::DataType_t::INT32));
}

// Makes a graph's ragged tensors.
class RaggedTensors {
 public:
  RaggedTensors(Graph& graph, const Problem& p) : graph_(graph), p_(p) {}

  Attributes Input(Uid uid, int64_t heads, int64_t dim, int64_t stride,
                   fe::DataType_t type = fe::DataType_t::BFLOAT16) {
    Attributes tensor =
        graph_.tensor(Tensor_attributes().set_name(fmt::format("tensor_{}", int64_t{uid})));
    Describe(*tensor, uid, heads, dim, stride, type);
    return tensor;
  }
  void Output(const Attributes& out, Uid uid, int64_t heads, int64_t dim,
              fe::DataType_t type = fe::DataType_t::BFLOAT16) {
    out->set_output(true);
    Describe(*out, uid, heads, dim, dim, type);
  }

 private:
  void Describe(Tensor_attributes& tensor, Uid uid, int64_t heads, int64_t dim, int64_t stride,
                fe::DataType_t type) {
    tensor.set_uid(uid)
        .set_dim({p_.sequences, heads, p_.length, dim})
        .set_stride({p_.length * heads * stride, stride, heads * stride, 1})
        .set_ragged_offset(Offsets(OffsetsOf(p_, uid)))
        .set_data_type(type);
  }
  Attributes Offsets(int64_t uid) {
    Attributes& offsets = offsets_[uid];
    if (!offsets) {
      offsets = graph_.tensor(Tensor_attributes()
                                  .set_name(fmt::format("offsets_{}", uid))
                                  .set_uid(uid)
                                  .set_dim({p_.sequences + 1, 1, 1, 1})
                                  .set_stride({1, 1, 1, 1})
                                  .set_data_type(fe::DataType_t::INT64));
    }
    return offsets;
  }

  Graph& graph_;
  const Problem& p_;
  std::map<int64_t, Attributes> offsets_;
};

void AddForward(Graph& graph, const Problem& p) {
  RaggedTensors ragged(graph, p);
  Attributes q = ragged.Input(kQ, p.heads, p.dim_c, p.q_stride);
  Attributes k = ragged.Input(kK, p.groups, p.dim_c, p.k_stride);
  Attributes v = ragged.Input(kV, p.groups, p.dim_v, p.v_stride);
  auto options = fe::graph::SDPA_attributes()
                     .set_name("attention")
                     .set_generate_stats(true)
                     .set_attn_scale(static_cast<float>(p.scale))
                     .set_causal_mask(true)
                     .set_padding_mask(true)
                     .set_seq_len_q(Lengths(graph, p, kQueries))
                     .set_seq_len_kv(Lengths(graph, p, kKeys));
  auto [out, lse] = graph.sdpa(q, k, v, options);
  ragged.Output(out, kOut, p.heads, p.dim_v);
  ragged.Output(lse, kLse, p.heads, 1, fe::DataType_t::FLOAT);
}

void AddBackward(Graph& graph, const Problem& p) {
  RaggedTensors ragged(graph, p);
  Attributes q = ragged.Input(kQ, p.heads, p.dim_c, p.q_stride);
  Attributes k = ragged.Input(kK, p.groups, p.dim_c, p.k_stride);
  Attributes v = ragged.Input(kV, p.groups, p.dim_v, p.v_stride);
  Attributes out = ragged.Input(kOut, p.heads, p.dim_v, p.dim_v);
  Attributes dout = ragged.Input(kDout, p.heads, p.dim_v, p.dim_v);
  Attributes lse = ragged.Input(kLse, p.heads, 1, 1, fe::DataType_t::FLOAT);
  auto options = fe::graph::SDPA_backward_attributes()
                     .set_name("attention_backward")
                     .set_attn_scale(static_cast<float>(p.scale))
                     .set_causal_mask(true)
                     .set_padding_mask(true)
                     .set_seq_len_q(Lengths(graph, p, kQueries))
                     .set_seq_len_kv(Lengths(graph, p, kKeys))
                     .set_max_total_seq_len_q(p.tokens)
                     .set_max_total_seq_len_kv(p.tokens)
                     .set_deterministic_algorithm(true);
  auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, dout, lse, options);
  ragged.Output(dq, kDq, p.heads, p.dim_c);
  ragged.Output(dk, kDk, p.groups, p.dim_c);
  ragged.Output(dv, kDv, p.groups, p.dim_v);
}

// Pages [pages, page_size, groups, dim] as cuDNN names them: [pages, groups, page_size, dim].
Attributes Pages(Graph& graph, const Problem& p, Uid uid, int64_t dim) {
  return graph.tensor(Tensor_attributes()
                          .set_name(uid == kK ? "k" : "v")
                          .set_uid(uid)
                          .set_dim({p.pages, p.groups, p.page_size, dim})
                          .set_stride({p.page_size * p.groups * dim, dim, p.groups * dim, 1})
                          .set_data_type(fe::DataType_t::BFLOAT16));
}

Attributes Table(Graph& graph, const Problem& p, Uid uid) {
  int64_t entries = p.key_length / p.page_size;
  return graph.tensor(Tensor_attributes()
                          .set_name(uid == kPagesK ? "pages_k" : "pages_v")
                          .set_uid(uid)
                          .set_dim({p.sequences, 1, entries, 1})
                          .set_stride({entries, entries, 1, 1})
                          .set_data_type(fe::DataType_t::INT32));
}

void AddDecode(Graph& graph, const Problem& p, fe::AttentionImplementation_t how) {
  Attributes q = graph.tensor(Tensor_attributes()
                                  .set_name("q")
                                  .set_uid(kQ)
                                  .set_dim({p.sequences, p.heads, 1, p.dim_c})
                                  .set_stride({p.heads * p.q_stride, p.q_stride, p.q_stride, 1})
                                  .set_data_type(fe::DataType_t::BFLOAT16));
  auto options = fe::graph::SDPA_attributes()
                     .set_name("paged_attention")
                     .set_implementation(how)
                     .set_generate_stats(false)
                     .set_attn_scale(static_cast<float>(p.scale))
                     .set_padding_mask(true)
                     .set_seq_len_q(Lengths(graph, p, kQueries))
                     .set_seq_len_kv(Lengths(graph, p, kKeys))
                     .set_paged_attention_k_table(Table(graph, p, kPagesK))
                     .set_paged_attention_v_table(Table(graph, p, kPagesV))
                     .set_paged_attention_max_seq_len_kv(static_cast<int>(p.key_length));
  auto [out, lse] =
      graph.sdpa(q, Pages(graph, p, kK, p.dim_c), Pages(graph, p, kV, p.dim_v), options);
  out->set_output(true)
      .set_uid(kOut)
      .set_dim({p.sequences, p.heads, 1, p.dim_v})
      .set_stride({p.heads * p.dim_v, p.dim_v, p.dim_v, 1})
      .set_data_type(fe::DataType_t::BFLOAT16);
}

// The answer would be the same another time. Others may be for want of memory, or of the compiler.
bool IsRefusal(fe::error_code_t code) {
  return code == fe::error_code_t::GRAPH_NOT_SUPPORTED ||
         code == fe::error_code_t::UNSUPPORTED_GRAPH_FORMAT ||
         code == fe::error_code_t::HEURISTIC_QUERY_FAILED ||
         code == fe::error_code_t::ATTRIBUTE_NOT_SET || code == fe::error_code_t::INVALID_VALUE;
}

// `how` counts for decoding only.
std::unique_ptr<Plan> MakePlan(
    const Problem& p, cudnnHandle_t handle,
    fe::AttentionImplementation_t how = fe::AttentionImplementation_t::AUTO) {
  auto plan = std::make_unique<Plan>();
  plan->graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  if (p.kind == Kind::kForward) AddForward(plan->graph, p);
  if (p.kind == Kind::kBackward) AddBackward(plan->graph, p);
  if (p.kind == Kind::kDecode) AddDecode(plan->graph, p, how);
  int64_t bytes = 0;
  auto status = plan->graph.build(handle, {fe::HeurMode_t::A});
  if (status.is_good()) status = plan->graph.get_workspace_size(bytes);
  if (status.is_bad()) {
    plan->missing = status.get_message();
    plan->refused = IsRefusal(status.get_code());
  } else if (bytes > kMostWorkspace) {
    plan->missing = fmt::format("it wants {} MiB of workspace", bytes >> 20);
    plan->refused = true;
  }
  return plan;
}

// Null where cuDNN has no kernel for it, or failed to make it.
Graph* Find(Context& ctx, const Problem& p) {
  Library& library = ThisThread();
  auto& [plan, uses, next_attempt] = library.plans[p];
  ++uses;
  if (!plan || (!plan->missing.empty() && !plan->refused && uses >= next_attempt)) {
    cuda::BeforeFirstUse(ctx, "cudnn");
    plan = MakePlan(p, library.Handle(ctx));
    // What the frontend prefers is newer, and not on every GPU.
    if (p.kind == Kind::kDecode && !plan->missing.empty()) {
      plan = MakePlan(p, library.Handle(ctx), fe::AttentionImplementation_t::COMPOSITE);
    }
    next_attempt = uses * kMoreUses;
  }
  if (plan->missing.empty()) return &plan->graph;
  std::string what = fmt::format("hone: cuDNN {} attention for {}: {}; using our own kernel{}\n",
                                 plan->refused ? "has no" : "failed to make", p.ToString(),
                                 plan->missing, plan->refused ? "" : " for now");
  if (library.said.insert(what).second) std::fputs(what.c_str(), stderr);
  return nullptr;
}

using Pack = std::unordered_map<int64_t, void*>;  // as the frontend wants it

// cuDNN before 9.18 reads workspace of a ragged backward that it has not written
// (NVIDIA/TransformerEngine#2186): `clear` it then.
void Execute(Context& ctx, Graph& graph, Pack& pack, const char* op, bool clear = false) {
  if (auto* recorder = runtime::StepRecorder::Of(ctx.stream())) {
    bool issue = recorder->Issue(runtime::Piece::kCudnn, &graph);
    for (const auto& [uid, data] : pack) issue = recorder->Issue(uid, data);
    if (!issue) return;
  }
  int64_t bytes = 0;
  auto status = graph.get_workspace_size(bytes);
  Tensor workspace = ctx.Empty({bytes}, DType::kU8, MemoryCategory::kOther);
  if (clear) runtime::FillZero(workspace.raw(), ctx.device(), bytes, &ctx.stream());
  if (status.is_good()) {
    status = graph.execute(ThisThread().Handle(ctx), pack, workspace.raw());
  }
  Check<DeviceError>(status.is_good(), "[{}] cuDNN on {}: {}", op, ctx.device().ToString(),
                     status.get_message());
}

// Sequence lengths and ragged offsets on the device; they die behind the launch.
class Layout {
 public:
  Layout(Context& ctx, const Problem& p, const PackedSequences& sequences)
      : ctx_(ctx),
        p_(p),
        begin_(sequences.begin),
        lengths_(cuda::Upload<int32_t>(ctx, sequences.lengths)) {}
  void AddLengths(Pack* pack) const {
    (*pack)[kQueries] = lengths_.raw();
    (*pack)[kKeys] = lengths_.raw();
  }
  // `width`: elements from one token to the next.
  void Add(Pack* pack, Uid uid, void* data, int64_t width) {
    Tensor& offsets = offsets_[width];
    if (!offsets.defined()) {
      std::vector<int64_t> values(begin_);
      for (int64_t& value : values) value *= width;
      offsets = cuda::Upload<int64_t>(ctx_, values);
    }
    (*pack)[uid] = data;
    (*pack)[OffsetsOf(p_, uid)] = offsets.raw();
  }

 private:
  Context& ctx_;
  const Problem& p_;
  std::vector<int64_t> begin_;
  Tensor lengths_;
  std::map<int64_t, Tensor> offsets_;
};

bool IsAligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0; }

bool Usable(const Tensor& q, const Tensor& k, const Tensor& v) {
  auto fits = [](const Tensor& t) {  // 16 bytes
    return t.dim(t.ndim() - 1) % 8 == 0 && t.row_stride() % 8 == 0 && IsAligned(t);
  };
  return q.dtype() == DType::kBF16 && q.size() > 0 && fits(q) && fits(k) && fits(v);
}

PackedSequences PackOf(std::span<const int32_t> cu_seqlens) {
  return SequencesOf(cu_seqlens, static_cast<int64_t>(cudnnGetVersion()) >= kTakesEmptySequences);
}

Problem PackedProblem(Kind kind, const Context& ctx, const Tensor& q_THC, const Tensor& k_TGC,
                      const Tensor& v_TGV, const PackedSequences& sequences, double scale) {
  return {.kind = kind,
          .device = ctx.device().index,
          .sequences = sequences.size(),
          .length = PaddedLength(sequences.longest()),
          .tokens = kind == Kind::kBackward ? RoundUp(q_THC.dim(0), 1024) : 0,
          .heads = q_THC.dim(1),
          .groups = k_TGC.dim(1),
          .dim_c = q_THC.dim(2),
          .dim_v = v_TGV.dim(2),
          .q_stride = q_THC.row_stride(),
          .k_stride = k_TGC.row_stride(),
          .v_stride = v_TGV.row_stride(),
          .pages = 0,
          .page_size = 0,
          .key_length = 0,
          .scale = scale};
}

void AddInputs(Layout* layout, Pack* pack, const Problem& p, const Tensor& q, const Tensor& k,
               const Tensor& v) {
  layout->AddLengths(pack);
  layout->Add(pack, kQ, q.raw(), p.heads * p.q_stride);
  layout->Add(pack, kK, k.raw(), p.groups * p.k_stride);
  layout->Add(pack, kV, v.raw(), p.groups * p.v_stride);
}

// Hopper's backward is known to be wrong for some large dims that differ (since cuDNN 9.11).
bool BackwardIsRight(int64_t dim_c, int64_t dim_v) {
  return dim_c == dim_v || dim_c < 128 || dim_v < 128 || (dim_c == 192 && dim_v == 128);
}

// Consecutive sequences of a pack, as a pack of their own.
struct BackwardPart {
  int64_t begin, end;  // their tokens
  PackedSequences sequences;
  Problem problem = {};
  Graph* graph = nullptr;

  explicit BackwardPart(std::span<const int32_t> offsets)
      : begin(offsets.front()), end(offsets.back()), sequences(PackOf(offsets)) {
    for (int64_t& token : sequences.begin) token -= begin;
  }
  Tensor Of(const Tensor& t) const { return t.Slice(begin, end); }
  // Rows of a few numbers may begin anywhere, and cuDNN takes no address that is not aligned.
  Tensor AlignedOf(Context& ctx, const Tensor& t) const {
    Tensor part = Of(t);
    return IsAligned(part) ? part : ctx.Clone(part);
  }
};

bool IsDecode(const Tensor& q_THC, std::span<const int32_t> cu_seqlens) {
  if (q_THC.dim(0) != static_cast<int64_t>(cu_seqlens.size()) - 1) return false;
  for (size_t s = 0; s < cu_seqlens.size(); ++s) {
    if (cu_seqlens[s] != static_cast<int32_t>(s)) return false;
  }
  return true;
}

Problem DecodeProblem(const Context& ctx, const Tensor& q_THC, const PagedKv& kv, double scale) {
  const int64_t page_size = kv.k_PSGC.dim(1);
  const int64_t longest = *std::max_element(kv.length_S.begin(), kv.length_S.end());
  return {.kind = Kind::kDecode,
          .device = ctx.device().index,
          .sequences = RoundUp(q_THC.dim(0), 1),
          .length = 1,
          .tokens = 0,
          .heads = q_THC.dim(1),
          .groups = kv.k_PSGC.dim(2),
          .dim_c = q_THC.dim(2),
          .dim_v = kv.v_PSGV.dim(3),
          .q_stride = q_THC.dim(2),
          .k_stride = 0,
          .v_stride = 0,
          .pages = kv.k_PSGC.dim(0),
          .page_size = page_size,
          .key_length = cuda::CeilDiv(RoundUp(longest, 512), page_size) * page_size,
          .scale = scale};
}

// Row s: the pages of sequence s; page 0 where it has none.
std::vector<int32_t> PageTable(const Problem& p, const PagedKv& kv) {
  const size_t entries = static_cast<size_t>(p.key_length / p.page_size);
  std::vector<int32_t> table(static_cast<size_t>(p.sequences) * entries, 0);
  for (size_t s = 0; s < kv.pages_S.size(); ++s) {
    std::copy_n(kv.pages_S[s].begin(), std::min(kv.pages_S[s].size(), entries),
                table.begin() + static_cast<std::ptrdiff_t>(s * entries));
  }
  return table;
}

}  // namespace

bool Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC, const Tensor& v_TGV,
               std::span<const int32_t> cu_seqlens, double scale, const AttentionResult& result) {
  if (!Usable(q_THC, k_TGC, v_TGV)) return false;
  const PackedSequences sequences = PackOf(cu_seqlens);
  if (sequences.size() == 0) return false;
  Problem p = PackedProblem(Kind::kForward, ctx, q_THC, k_TGC, v_TGV, sequences, scale);
  Graph* graph = Find(ctx, p);
  if (!graph) return false;
  Pack pack;
  Layout layout(ctx, p, sequences);
  AddInputs(&layout, &pack, p, q_THC, k_TGC, v_TGV);
  layout.Add(&pack, kOut, result.out_THV.raw(), p.heads * p.dim_v);
  layout.Add(&pack, kLse, result.lse_TH.raw(), p.heads);
  Execute(ctx, *graph, pack, "attention");
  return true;
}

bool AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                       const Tensor& k_TGC, const Tensor& v_TGV, const AttentionResult& saved,
                       std::span<const int32_t> cu_seqlens, double scale,
                       const AttentionGradients& gradients) {
  bool contiguous =
      dout_THV.contiguous() && saved.out_THV.contiguous() && saved.lse_TH.contiguous();
  if (!contiguous || !BackwardIsRight(q_THC.dim(2), v_TGV.dim(2)) || !Usable(q_THC, k_TGC, v_TGV) ||
      !Usable(dout_THV, saved.out_THV, v_TGV)) {
    return false;
  }
  std::vector<BackwardPart> parts;
  const std::vector<size_t> cuts = CutPack(cu_seqlens, q_THC.dim(1), kScoresAtOnce);
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    BackwardPart part(cu_seqlens.subspan(cuts[i], cuts[i + 1] - cuts[i] + 1));
    if (part.begin == part.end) continue;
    part.problem = PackedProblem(Kind::kBackward, ctx, part.Of(q_THC), part.Of(k_TGC),
                                 part.Of(v_TGV), part.sequences, scale);
    part.graph = Find(ctx, part.problem);
    if (!part.graph) return false;
    parts.push_back(std::move(part));
  }
  for (const BackwardPart& part : parts) {
    const Problem& p = part.problem;
    Pack pack;
    Layout layout(ctx, p, part.sequences);
    AddInputs(&layout, &pack, p, part.Of(q_THC), part.Of(k_TGC), part.Of(v_TGV));
    auto add = [&](Uid uid, const Tensor& t, int64_t width) {
      layout.Add(&pack, uid, part.Of(t).raw(), width);
    };
    add(kOut, saved.out_THV, p.heads * p.dim_v);
    add(kDout, dout_THV, p.heads * p.dim_v);
    const Tensor lse = part.AlignedOf(ctx, saved.lse_TH);
    layout.Add(&pack, kLse, lse.raw(), p.heads);
    add(kDq, gradients.dq_THC, p.heads * p.dim_c);
    add(kDk, gradients.dk_TGC, p.groups * p.dim_c);
    add(kDv, gradients.dv_TGV, p.groups * p.dim_v);
    Execute(ctx, *part.graph, pack, "attention_backward", cudnnGetVersion() < 91800);
  }
  return true;
}

bool PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                    std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV) {
  if (!IsDecode(q_THC, cu_seqlens) || !kv.k_PSGC.contiguous() || !kv.v_PSGV.contiguous() ||
      !Usable(q_THC, kv.k_PSGC, kv.v_PSGV)) {
    return false;
  }
  Problem p = DecodeProblem(ctx, q_THC, kv, scale);
  Graph* graph = Find(ctx, p);
  if (!graph) return false;
  // Rows of the sequences that only rounding up has added: read as 0, written and not looked at.
  const int64_t rows = q_THC.dim(0);
  Tensor q = ctx.Zeros({p.sequences, p.heads, p.dim_c}, DType::kBF16);
  Tensor out = ctx.Empty({p.sequences, p.heads, p.dim_v}, DType::kBF16);
  CopyTo(q_THC, q.Slice(0, rows), &ctx.stream());
  std::vector<int32_t> ones(static_cast<size_t>(p.sequences), 1), lengths = kv.length_S;
  lengths.resize(static_cast<size_t>(p.sequences), 1);
  Tensor pages = cuda::Upload<int32_t>(ctx, PageTable(p, kv));
  Tensor queries = cuda::Upload<int32_t>(ctx, ones), keys = cuda::Upload<int32_t>(ctx, lengths);
  Pack pack = {{kQ, q.raw()},
               {kK, kv.k_PSGC.raw()},
               {kV, kv.v_PSGV.raw()},
               {kOut, out.raw()},
               {kPagesK, pages.raw()},
               {kPagesV, pages.raw()},
               {kQueries, queries.raw()},
               {kKeys, keys.raw()}};
  Execute(ctx, *graph, pack, "paged_attention");
  CopyTo(out.Slice(0, rows), out_THV, &ctx.stream());
  return true;
}

}  // namespace hone::kernels::cudnn
