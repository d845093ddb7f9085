#include "runtime/rendezvous.h"

#include "runtime/error.h"

namespace hone::runtime {

void AgreeOrThrow(Rendezvous& ranks, const std::string& error) {
  std::vector<std::string> errors = ranks.AllGather(error);
  for (size_t r = 0; r < errors.size(); ++r) {
    if (errors[r].empty()) continue;
    throw CheckpointError(errors.size() == 1 ? errors[r]
                                             : fmt::format("rank {}: {}", r, errors[r]));
  }
}

}  // namespace hone::runtime
