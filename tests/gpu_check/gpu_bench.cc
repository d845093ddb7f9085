// The speed of one GPU at what hone does with it, for tests/gpu_check/gpu_check: one JSON object a
// line,
//   {"name", "value", "unit", "wanted"}, and "outcome" where it is not "measured".
// It has parts, each of which may be a process of its own (`--only`, `--list`), since an error of
// CUDA fails every call behind it. `--device cpu --small` runs the same code where there is no GPU;
// its figures mean nothing.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "kernels/attention/attention.h"
#include "kernels/dispatch.h"
#include "kernels/fp8/fp8.h"
#include "kernels/linear/linear.h"
#include "launcher/bench/bench.h"
#include "launcher/bench/gemm_bound.h"
#include "model/kv_cache.h"
#include "model/transformer_stage.h"
#include "parallel/mesh.h"
#include "parallel/train_engine.h"
#include "rl/plan/memory.h"
#include "rl/policy_loss.h"
#include "runtime/nvidia_library.h"
#include "runtime/philox.h"
#include "runtime/replay.h"

namespace hone::launcher {
namespace {

constexpr double kPeakFlops = 990e12;  // of an H200 in dense bf16

struct Setup {
  Device device = Device::Cuda(0);
  bool small = false;
  int rounds = 10;

  int64_t Size(int64_t whole, int64_t little) const { return small ? little : whole; }
  DType dtype() const { return small ? DType::kF32 : DType::kBF16; }
};

// `wanted`: what issue and README promise; "" where nothing is. Values of a rate that is not known
// are no numbers.
void Report(const std::string& name, double value, const std::string& unit,
            const std::string& wanted = "") {
  Json row = {{"name", name}, {"value", value}, {"unit", unit}, {"wanted", wanted}};
  if (!std::isfinite(value)) {
    row.update({{"outcome", "not run"}, {"value", ""}, {"unit", "nothing to compare with"}});
  }
  std::cout << row.dump() << std::endl;
}

// The fastest of some rounds, the device's work included.
double Time(Context& ctx, int rounds, const std::function<void()>& work) {
  work();
  ctx.stream().Synchronize();
  double best = 1e30;
  for (int i = 0; i < rounds; ++i) {
    auto begin = std::chrono::steady_clock::now();
    work();
    ctx.stream().Synchronize();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

// The block over and over.
template <class T>
void Repeat(Context& ctx, const std::vector<T>& block, const Tensor& tensor) {
  const auto whole = static_cast<int64_t>(block.size() * sizeof(T));
  for (int64_t at = 0; at < tensor.bytes(); at += whole) {
    runtime::CopyBytes(static_cast<char*>(tensor.raw()) + at, ctx.device(), block.data(),
                       Device::Cpu(), std::min(whole, tensor.bytes() - at), &ctx.stream());
  }
}

// Normal values of deviation 0.02: zeros would cost a GPU less power, and so less time. A block of
// them is repeated, since to draw a large model's would take minutes.
void Fill(Context& ctx, const Tensor& tensor) {
  kernels::SwitchFloat("gpu_bench", tensor.dtype(), [&](auto zero) {
    using T = decltype(zero);
    static const std::vector<T> normal = [] {
      std::vector<T> values(1 << 20);
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = T(static_cast<float>(0.02 * RandomStream{1}.Normal(i)));
      }
      return values;
    }();
    Repeat(ctx, normal, tensor);
  });
}

// Matrices are normal, vectors (of norms) ones; buffers stay zero.
void Fill(Context& ctx, const std::vector<Parameter*>& parameters) {
  for (const Parameter* p : parameters) {
    if (p->spec.buffer) continue;
    if (p->value.ndim() > 1) {
      Fill(ctx, p->value);
      continue;
    }
    kernels::SwitchFloat("gpu_bench", p->value.dtype(), [&](auto zero) {
      using T = decltype(zero);
      Repeat(ctx, std::vector<T>(static_cast<size_t>(p->value.size()), T(1.0f)), p->value);
    });
  }
}

Tensor Random(Context& ctx, Shape shape, DType dtype) {
  Tensor tensor = ctx.Empty(std::move(shape), dtype);
  Fill(ctx, tensor);
  return tensor;
}

// What later parts are compared with; not a number where nobody has measured it.
struct Rates {
  double memory = std::nan("");  // bytes/s
  double gemm = std::nan("");    // FLOP/s
};
constexpr char kMemoryRate[] = "memory.copy", kGemmRate[] = "gemm.bf16.fast";

// From what an earlier gpu_bench printed.
Rates ReadRates(const std::string& path) {
  std::ifstream in(path);
  Check<IoError>(in.good(), "[gpu_bench] cannot read {}", path);
  Rates rates;
  for (std::string line; std::getline(in, line);) {
    const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object() || !row.contains("value") || !row.at("value").is_number()) continue;
    if (row.value("name", "") == kMemoryRate) rates.memory = 1e9 * row.at("value").get<double>();
    if (row.value("name", "") == kGemmRate) rates.gemm = 1e12 * row.at("value").get<double>();
  }
  return rates;
}

// Bytes read and written a second by a copy within the device.
double MemoryRate(const Setup& setup) {
  Context ctx(setup.device);
  const int64_t bytes = setup.Size(int64_t{4} << 30, 1 << 22);
  Tensor from = ctx.Zeros({bytes}, DType::kU8), to = ctx.Zeros({bytes}, DType::kU8);
  double seconds = Time(ctx, setup.rounds, [&] { CopyTo(from, to, &ctx.stream()); });
  double rate = 2.0 * static_cast<double>(bytes) / seconds;
  Report(kMemoryRate, rate / 1e9, "GB/s");
  return rate;
}

double GemmRate(const Setup& setup) {
  Context ctx(setup.device);
  ctx.numerics = Numerics::kFast;
  const int64_t m = setup.Size(4096, 32), n = setup.Size(8192, 64), k = setup.Size(4096, 64);
  Tensor x = Random(ctx, {m, k}, setup.dtype()), w = Random(ctx, {n, k}, setup.dtype());
  const double flops = 2.0 * static_cast<double>(m * n) * static_cast<double>(k);
  double fast = flops / Time(ctx, setup.rounds, [&] { kernels::Linear(ctx, x, w); });
  ctx.numerics = Numerics::kBatchInvariant;
  double invariant = flops / Time(ctx, setup.rounds, [&] { kernels::Linear(ctx, x, w); });
  Report(kGemmRate, fast / 1e12, "TFLOP/s");
  Report("gemm.bf16.batch_invariant", invariant / 1e12, "TFLOP/s");
  return fast;
}

// A layer's three products, quantisation included.
void Fp8Speed(const Setup& setup) {
  Context ctx(setup.device);
  ctx.numerics = Numerics::kFast;
  const int64_t t = setup.Size(4096, 16);
  for (int64_t d : {setup.Size(4096, 128), setup.Size(7168, 256)}) {
    Tensor x = Random(ctx, {t, d}, setup.dtype()), dy = Random(ctx, {t, d}, setup.dtype());
    Tensor w = Random(ctx, {d, d}, setup.dtype()), dw = ctx.Zeros({d, d}, DType::kF32);
    double plain = Time(ctx, setup.rounds, [&] {
      kernels::Linear(ctx, x, w);
      kernels::LinearInputGradient(ctx, dy, w);
      kernels::LinearWeightGradient(ctx, dy, x, dw);
    });
    double fp8 = Time(ctx, setup.rounds, [&] {
      kernels::Fp8Linear(ctx, x, w);
      kernels::Fp8LinearInputGradient(ctx, dy, w);
      kernels::Fp8LinearWeightGradient(ctx, dy, x, dw);
    });
    Report(fmt::format("fp8.layer.{}", d), plain / fp8, "times bf16", ">= 1.3");
  }
}

void AttentionSpeed(const Setup& setup) {
  Context ctx(setup.device);
  const int64_t t = setup.Size(4096, 64), h = setup.Size(12, 4), g = 2, c = setup.Size(128, 16);
  Tensor q = Random(ctx, {t, h, c}, setup.dtype()), k = Random(ctx, {t, g, c}, setup.dtype());
  const std::vector<int32_t> offsets = {0, static_cast<int32_t>(t)};
  const double scale = 1 / std::sqrt(static_cast<double>(c));
  for (Numerics numerics : {Numerics::kFast, Numerics::kBatchInvariant}) {
    ctx.numerics = numerics;
    const std::string mode = numerics == Numerics::kFast ? "fast" : "batch_invariant";
    auto result = kernels::Attention(ctx, q, k, k, offsets, scale);
    Report("attention.forward." + mode,
           1e3 * Time(ctx, setup.rounds, [&] { kernels::Attention(ctx, q, k, k, offsets, scale); }),
           "ms");
    Report("attention.backward." + mode,
           1e3 * Time(ctx, setup.rounds,
                      [&] {
                        kernels::AttentionBackward(ctx, result.out_THV, q, k, k, result, offsets,
                                                   scale);
                      }),
           "ms");
  }
}

model::ModelConfig Qwen2(const Setup& setup) {
  const char* whole = R"({"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960,
    "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "tie_word_embeddings": true})";
  const char* little = R"({"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": true})";
  return model::ModelConfig::FromHuggingFaceText(setup.small ? little : whole, "gpu_bench");
}

// DeepSeek-V3's layer with fewer, narrower experts and four layers, so that it fits.
model::ModelConfig DeepSeek(const Setup& setup) {
  nlohmann::json c = {{"model_type", "deepseek_v3"},
                      {"hidden_size", setup.Size(4096, 64)},
                      {"intermediate_size", setup.Size(11008, 128)},
                      {"moe_intermediate_size", setup.Size(2048, 32)},
                      {"num_hidden_layers", setup.Size(4, 2)},
                      {"num_attention_heads", setup.Size(32, 2)},
                      {"num_key_value_heads", setup.Size(32, 2)},
                      {"n_routed_experts", setup.Size(32, 4)},
                      {"n_shared_experts", 1},
                      {"num_experts_per_tok", setup.Size(4, 2)},
                      {"first_k_dense_replace", 1},
                      {"n_group", 1},
                      {"topk_group", 1},
                      {"norm_topk_prob", true},
                      {"routed_scaling_factor", 2.5},
                      {"scoring_func", "sigmoid"},
                      {"topk_method", "noaux_tc"},
                      {"q_lora_rank", setup.Size(1536, 32)},
                      {"kv_lora_rank", setup.Size(512, 32)},
                      {"qk_nope_head_dim", setup.Size(128, 16)},
                      {"qk_rope_head_dim", setup.Size(64, 16)},
                      {"v_head_dim", setup.Size(128, 16)},
                      {"vocab_size", setup.Size(32768, 256)},
                      {"max_position_embeddings", 4096},
                      {"rms_norm_eps", 1e-6},
                      {"rope_theta", 10000.0},
                      {"num_nextn_predict_layers", 0},
                      {"tie_word_embeddings", false}};
  return model::ModelConfig::FromHuggingFaceText(c.dump(), "gpu_bench");
}

constexpr int64_t kSequences = 2;  // of a pack
int64_t SequenceLength(const Setup& setup) { return setup.Size(2048, 32); }

// What `hone plan` says of such a step, in bytes.
double PlannedMemory(const Setup& setup, const BenchModel& model, bool fp8) {
  rl::Layout layout;
  layout.dtype = setup.dtype();
  layout.keep_fp8 = fp8;
  layout.cpu = setup.device.is_cpu();
  rl::StepShape step;
  step.tokens = model.sequence * model.sequences;
  step.sequences = model.sequences;
  return static_cast<double>(rl::EstimateMemory(model.config, layout, step)[0].total);
}

// Whole optimizer steps on one pack.
void TrainSpeed(const Setup& setup, const std::string& name, const model::ModelConfig& config,
                double gemm_rate, bool fp8, const std::string& wanted, Numerics numerics) {
  Context ctx(setup.device);
  ctx.numerics = numerics;
  ctx.fp8 = fp8;
  BenchModel model{
      .preset = name, .config = config, .sequence = SequenceLength(setup), .sequences = kSequences};
  parallel::GroupPtr world = parallel::MakeSingleGroup();
  parallel::Mesh mesh({}, world);
  model::StageOptions options;
  options.end_layer = config.num_hidden_layers;
  options.dtype = setup.dtype();
  model::TransformerStage stage(ctx, config, options);
  Fill(ctx, stage.Parameters());
  parallel::TrainEngine engine(ctx, mesh, {&stage}, {});
  std::vector<TokenBatch> packs = {RandomPack(model, 1, 1)};
  double seconds =
      Time(ctx, setup.rounds, [&] { engine.Step(packs, rl::CrossEntropyLoss(), 1e-4); });
  const double tokens = static_cast<double>(model.sequence * model.sequences);
  const double flops = Flops(TrainingGemms(config, Lengths(model))) / seconds;
  Report(name + ".tokens", tokens / seconds, "tokens/s");
  Report(name + ".of_gemm_rate", 100 * flops / gemm_rate, "%", wanted);
  Report(name + ".of_990_tflops", 100 * flops / kPeakFlops, "%");
  const auto peak = static_cast<double>(ctx.allocator()->Usage().peak_total);
  Report(name + ".peak_memory", peak / 1e9, "GB");
  Report(name + ".peak_over_plan", peak / PlannedMemory(setup, model, fp8), "times hone plan's");
  if (config.is_moe()) {
    Report(name + ".tokens_an_expert",
           tokens * static_cast<double>(config.num_experts_per_tok) /
               static_cast<double>(config.n_routed_experts),
           "tokens");
  }
}

int64_t DecodedSequences(const Setup& setup) { return setup.Size(256, 4); }
int64_t DecodedLength(const Setup& setup) { return setup.Size(2048, 128); }

// One decode step of many sequences whose cache is full; bytes that it must read over its time.
void DecodeSpeed(const Setup& setup, Numerics numerics, double memory_rate) {
  Context ctx(setup.device);
  ctx.numerics = numerics;
  const model::ModelConfig config = Qwen2(setup);
  model::StageOptions options;
  options.end_layer = config.num_hidden_layers;
  options.dtype = setup.dtype();
  options.with_gradients = false;
  model::TransformerStage stage(ctx, config, options);
  Fill(ctx, stage.Parameters());
  const int64_t sequences = DecodedSequences(setup), length = DecodedLength(setup), page = 64;
  const int64_t pages = length / page;
  model::KvCache cache(ctx, config, config.num_hidden_layers, sequences * pages, page,
                       setup.dtype());
  model::DecodeBatch batch;
  batch.cu_seqlens.push_back(0);
  for (int64_t s = 0; s < sequences; ++s) {
    batch.token_T.push_back(static_cast<int32_t>(s));
    batch.position_T.push_back(static_cast<int32_t>(length - 1));
    batch.cu_seqlens.push_back(static_cast<int32_t>(s + 1));
    batch.logits_rows.push_back(static_cast<int32_t>(s));
    auto& own = batch.pages_S.emplace_back();
    for (int64_t p = 0; p < pages; ++p) own.push_back(cache.TakePage());
  }
  const auto replay = runtime::MakeReplay(ctx.allocator());
  double seconds = Time(ctx, setup.rounds + 2,
                        [&] { replay->Run(sequences, [&] { stage.Decode(ctx, batch, cache); }); });
  const double bytes =
      static_cast<double>(config.ParameterCount(false) * runtime::DTypeSize(setup.dtype())) +
      static_cast<double>(
          sequences * pages *
          model::KvCache::BytesPerPage(config, config.num_hidden_layers, page, setup.dtype()));
  const bool fast = numerics == Numerics::kFast;
  const std::string mode = fast ? "fast" : "batch_invariant";
  Report("decode.tokens." + mode, static_cast<double>(sequences) / seconds, "tokens/s");
  Report("decode.of_roofline." + mode, 100 * bytes / seconds / memory_rate, "%",
         fast ? ">= 70" : "");
}

// What torch_gpu.py needs to do the same.
void WriteShapes(const Setup& setup, const std::string& path) {
  const Json shapes = {{"model", ModelToJson(Qwen2(setup))},
                       {"sequence", SequenceLength(setup)},
                       {"sequences", kSequences},
                       {"decode_sequences", DecodedSequences(setup)},
                       {"decode_length", DecodedLength(setup)},
                       {"rounds", setup.rounds}};
  std::ofstream file(path);
  file << shapes.dump(1) << "\n";
  Check<IoError>(file.good(), "[gpu_bench] cannot write {}", path);
}

struct Part {
  std::string name;
  std::function<void(Rates&)> measure;
};

std::vector<Part> Parts(const Setup& setup) {
  std::vector<Part> parts = {
      {"memory", [=](Rates& rates) { rates.memory = MemoryRate(setup); }},
      {"gemm", [=](Rates& rates) { rates.gemm = GemmRate(setup); }},
      {"fp8", [=](Rates&) { Fp8Speed(setup); }},
      {"attention", [=](Rates&) { AttentionSpeed(setup); }},
  };
  auto train = [&](const std::string& name, const model::ModelConfig& config, bool fp8,
                   const std::string& wanted, Numerics numerics = Numerics::kFast) {
    parts.push_back({name, [=](Rates& rates) {
                       TrainSpeed(setup, name, config, rates.gemm, fp8, wanted, numerics);
                     }});
  };
  auto decode = [&](const std::string& name, Numerics numerics) {
    parts.push_back({name, [=](Rates& rates) { DecodeSpeed(setup, numerics, rates.memory); }});
  };
  train("qwen2_1.5b.bf16", Qwen2(setup), false, ">= 65");
  decode("decode.fast", Numerics::kFast);
  decode("decode.batch_invariant", Numerics::kBatchInvariant);
  train("deepseek_moe.bf16", DeepSeek(setup), false, ">= 45");
  train("deepseek_moe.fp8", DeepSeek(setup), true, "");
  train("qwen2_1.5b.bf16.batch_invariant", Qwen2(setup), false, "", Numerics::kBatchInvariant);
  return parts;
}

// False when it fails, which is said: the rest goes on.
bool Attempt(const Part& part, Rates& rates) {
  try {
    part.measure(rates);
    return true;
  } catch (const std::exception& error) {
    std::cerr << "gpu_bench: " << part.name << ": " << error.what() << "\n";
    return false;
  }
}

int Main(int argc, char** argv) {
  Setup setup;
  std::string device = "cuda", shapes, rates_file;
  std::vector<std::string> only;
  bool list = false;
  CLI::App app("The speed of one GPU at what hone does with it", "gpu_bench");
  app.add_option("--device", device)->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--rounds", setup.rounds);
  app.add_flag("--small", setup.small, "tiny sizes: a test of this program");
  app.add_option("--shapes", shapes, "write what torch_gpu.py is to do beside it to this file");
  app.add_flag("--list", list, "print the names of the parts, and measure nothing");
  app.add_option("--only", only, "these parts, by name")->delimiter(',');
  app.add_option("--rates", rates_file,
                 "what the parts memory and gemm printed: others are compared with it");
  CLI11_PARSE(app, argc, argv);
  if (!shapes.empty()) WriteShapes(setup, shapes);
  if (device == "cpu") setup.device = Device::Cpu();
  Rates rates = rates_file.empty() ? Rates() : ReadRates(rates_file);
  const std::vector<Part> parts = Parts(setup);
  for (const std::string& name : only) {
    Check<ConfigError>(std::ranges::count(parts, name, &Part::name) > 0,
                       "[gpu_bench] there is no part '{}': see --list", name);
  }
  bool passed = true;
  for (const Part& part : parts) {
    if (!only.empty() && std::ranges::count(only, part.name) == 0) continue;
    if (list) {
      std::cout << part.name << "\n";
    } else {
      passed &= Attempt(part, rates);
    }
  }
  return passed ? 0 : 1;
}

}  // namespace
}  // namespace hone::launcher

int main(int argc, char** argv) {
  hone::runtime::SetCudaDefaults();
  try {
    return hone::launcher::Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "gpu_bench: " << error.what() << "\n";
    return 1;
  }
}
