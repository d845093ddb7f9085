#include "parallel/self_check.h"

#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <sstream>

#include "runtime/error.h"

namespace hone::parallel {
namespace {

// A slab by what it holds: tied tensors go by the name of the one they are tied to.
std::string SlabKey(const ParamSpec& spec) {
  Slab slab = spec.slab;
  slab.name = spec.tied_to.empty() ? spec.name : spec.tied_to;
  return slab.ToString();
}

// 64 bits of the values' bytes. Each round is one-to-one in both the state and the word, so two
// tensors that differ in one word never agree.
uint64_t Digest(Context& ctx, const Tensor& tensor) {
  const auto bytes = static_cast<size_t>(tensor.bytes());
  std::vector<uint64_t> words(bytes / 8 + 1, 0);
  runtime::CopyBytes(words.data(), Device::Cpu(), tensor.raw(), tensor.device(), tensor.bytes(),
                     &ctx.stream());
  ctx.stream().Synchronize();
  uint64_t state = bytes;
  for (uint64_t word : words) {
    state = (state ^ word) * 0x9E3779B97F4A7C15u;
    state ^= state >> 29;
  }
  return state;
}

// Rank r adds 1 + r mod 3 times a pattern that depends on the element: small integers, so sums are
// exact.
double Factor(int rank) { return 1 + rank % 3; }
double Pattern(int64_t element) { return 1 + static_cast<double>(element % 3); }

void FillGradient(const Tensor& gradient, double factor, Context& ctx) {
  Tensor host(MakeAllocator(Device::Cpu()), gradient.shape(), DType::kF64, MemoryCategory::kOther);
  for (int64_t i = 0; i < host.size(); ++i) host.data<double>()[i] = factor * Pattern(i);
  if (gradient.device().is_cpu()) {
    CopyTo(host, gradient);
    return;
  }
  Tensor same_dtype(MakeAllocator(Device::Cpu()), gradient.shape(), gradient.dtype(),
                    MemoryCategory::kOther);
  CopyTo(host, same_dtype);
  runtime::CopyBytes(gradient.raw(), gradient.device(), same_dtype.raw(), Device::Cpu(),
                     gradient.bytes(), &ctx.stream());
  ctx.stream().Synchronize();
}

// The sum of Factor over the ranks that hold each slab.
std::map<std::string, double> ExpectedFactors(const Mesh& mesh,
                                              const std::vector<Parameter*>& parameters) {
  std::string mine;
  std::set<std::string> keys;
  for (const Parameter* p : parameters) keys.insert(SlabKey(p->spec));
  for (const std::string& key : keys) mine += key + "\n";
  std::map<std::string, double> factors;
  const auto all = mesh.world()->AllGatherBytes(mine);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    std::istringstream lines(all[rank]);
    for (std::string key; std::getline(lines, key);) factors[key] += Factor(static_cast<int>(rank));
  }
  return factors;
}

// What is wrong with this rank's rows of one summed gradient; "" if nothing.
std::string ShardError(const Parameter& p, const GradientReducer& reducer, double factor) {
  const RowRange rows = reducer.Rows(&p);
  if (rows.begin >= rows.end) return "";
  const std::vector<double> got = runtime::ToDoubles(reducer.Shard(&p));
  const int64_t per_row = p.gradient.size() / p.gradient.dim(0);
  const double tolerance = p.gradient.dtype() == DType::kBF16 ? 0.02 : 1e-6;
  for (size_t i = 0; i < got.size(); ++i) {
    const double want = factor * Pattern(rows.begin * per_row + static_cast<int64_t>(i));
    if (!(std::abs(got[i] - want) <= tolerance * want)) {
      return fmt::format("row {} of the gradient of {} sums to {} over its replicas, not {}",
                         rows.begin + static_cast<int64_t>(i) / per_row, p.spec.name, got[i], want);
    }
  }
  return "";
}

}  // namespace

void CheckReplicas(Context& ctx, const Mesh& mesh, const std::vector<Parameter*>& parameters,
                   const std::string& config_digest) {
  std::string mine = config_digest + "\n";
  for (const Parameter* p : parameters) {
    mine += fmt::format("{:016x} {}\n", Digest(ctx, p->value), SlabKey(p->spec));
  }
  const auto all = mesh.world()->AllGatherBytes(mine);
  std::map<std::string, std::pair<std::string, size_t>> first;  // slab → digest, rank
  std::string first_config;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    std::istringstream lines(all[rank]);
    std::string config, line;
    std::getline(lines, config);
    if (rank == 0) first_config = config;
    Check<CommError>(config == first_config,
                     "[self check] rank {} has config digest '{}' and rank 0 '{}'; start all ranks "
                     "with the same config",
                     rank, config, first_config);
    while (std::getline(lines, line)) {
      const std::string digest = line.substr(0, 16), key = line.substr(17);
      auto [it, is_new] = first.try_emplace(key, digest, rank);
      Check<CommError>(it->second.first == digest,
                       "[self check] rank {} holds other values of {} than rank {}", rank, key,
                       it->second.second);
    }
  }
}

void CheckGradientSums(Context& ctx, const Mesh& mesh, const std::vector<Parameter*>& parameters,
                       GradientReducer& reducer) {
  const auto factors = ExpectedFactors(mesh, parameters);
  for (const Parameter* p : parameters) {
    FillGradient(p->gradient, Factor(mesh.world()->rank()), ctx);
  }
  for (const Parameter* p : parameters) reducer.MarkReady(p);
  reducer.Finish();
  std::string error;
  for (const Parameter* p : parameters) {
    if (error.empty()) error = ShardError(*p, reducer, factors.at(SlabKey(p->spec)));
  }
  const auto errors = mesh.world()->AllGatherBytes(error);
  for (size_t rank = 0; rank < errors.size(); ++rank) {
    Check<CommError>(errors[rank].empty(), "[self check] rank {}: {}", rank, errors[rank]);
  }
}

}  // namespace hone::parallel
