#include "parallel/tied_replicas.h"

#include <sstream>
#include <utility>

#include "kernels/elementwise/elementwise.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

// A line a parameter: shared name, tab, what replicas must agree on.
std::string Describe(const std::vector<Parameter*>& parameters) {
  std::string text;
  for (const Parameter* p : parameters) {
    text +=
        fmt::format("{}\t{} {}\n", SharedName(p->spec), runtime::ShapeToString(p->spec.slab.extent),
                    runtime::DTypeName(p->gradient.dtype()));
  }
  return text;
}

}  // namespace

const std::string& SharedName(const ParamSpec& spec) {
  return spec.tied_to.empty() ? spec.name : spec.tied_to;
}

TiedReplicas::TiedReplicas(const Mesh& mesh, const std::vector<Parameter*>& parameters)
    : pp_(mesh.tied()) {
  // Every rank sees every name, in the same (sorted) order: a name's place is its tag.
  std::map<std::string, std::vector<std::pair<int, std::string>>> everywhere;
  std::vector<std::string> all = pp_->AllGatherBytes(Describe(parameters));
  for (int rank = 0; rank < pp_->size(); ++rank) {
    std::istringstream lines(all[rank]);
    for (std::string name, what; std::getline(lines, name, '\t') && std::getline(lines, what);) {
      everywhere[name].emplace_back(rank, what);
    }
  }
  std::map<std::string, Parameter*> here;
  for (Parameter* p : parameters) here[SharedName(p->spec)] = p;
  int tag = 0;
  for (const auto& [name, copies] : everywhere) {
    if (copies.size() < 2) continue;
    Holders holders{nullptr, tag++, {}};
    for (const auto& [rank, what] : copies) {
      Check<ConfigError>(what == copies[0].second,
                         "[tied_replicas] {} is {} on pipeline rank {} but {} on rank {}", name,
                         copies[0].second, copies[0].first, what, rank);
      Check<ConfigError>(holders.ranks.empty() || holders.ranks.back() != rank,
                         "[tied_replicas] pipeline rank {} holds {} twice; on one rank tied "
                         "parameters share their storage",
                         rank, name);
      holders.ranks.push_back(rank);
    }
    auto it = here.find(name);
    if (it == here.end()) continue;
    holders.parameter = it->second;
    in_order_.push_back(it->second);
    holders_[it->second] = std::move(holders);
  }
}

bool TiedReplicas::counts(const Parameter* parameter) const {
  auto it = holders_.find(parameter);
  return it == holders_.end() || it->second.ranks[0] == pp_->rank();
}

void TiedReplicas::Send(const Parameter* parameter) {
  const Holders& holders = holders_.at(parameter);
  for (int rank : holders.ranks) {
    if (rank != pp_->rank()) pp_->Send(parameter->gradient, rank, holders.tag);
  }
}

void TiedReplicas::ReceiveAndAdd(Context& ctx) {
  for (const Parameter* parameter : in_order_) Add(ctx, holders_.at(parameter));
}

void TiedReplicas::Add(Context& ctx, const Holders& holders) {
  const Tensor& own = holders.parameter->gradient;
  std::vector<Tensor> parts;
  std::vector<WorkPtr> works;
  for (int rank : holders.ranks) {
    if (rank == pp_->rank()) {
      parts.push_back(own);
    } else {
      parts.push_back(ctx.Empty(own.shape(), own.dtype(), MemoryCategory::kCommunication));
      works.push_back(pp_->Receive(parts.back(), rank, holders.tag));
    }
  }
  for (const WorkPtr& work : works) work->Wait();
  for (size_t i = 1; i < parts.size(); ++i) kernels::AddInPlace(ctx, parts[0], parts[i]);
  if (parts[0].raw() != own.raw()) CopyTo(parts[0], own, &ctx.stream());
}

}  // namespace hone::parallel
