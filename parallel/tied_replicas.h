// Parameters that live on several pipeline ranks: a tied head and the embedding it shares its
// values with, an embedding that multi-token prediction needs on the last stage.
//
// Each holder keeps a replica. Before gradients are reduced over data, the holders exchange theirs
// and add them in order of pipeline rank: so all get the same sum, take the same optimizer step,
// and stay equal to the bit.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/parameter.h"
#include "runtime/context.h"

namespace hone::parallel {

// The name under which tied parameters are one: that of the one they are tied to.
const std::string& SharedName(const ParamSpec& spec);

class TiedReplicas {
 public:
  // Collective over mesh.pp(). `parameters`: trainable ones, each storage once. ConfigError when
  // replicas differ in shape or dtype, or one rank holds two of a name in different storage.
  TiedReplicas(const Mesh& mesh, const std::vector<Parameter*>& parameters);

  bool replicated(const Parameter* parameter) const { return holders_.contains(parameter); }
  // Of the replicas, the one on the lowest rank counts in sums over parameters.
  bool counts(const Parameter* parameter) const;

  // Hands this rank's final gradient to the other holders; does not wait.
  void Send(const Parameter* parameter);
  // Waits for the others' and makes every replicated gradient the sum. All were sent before.
  void ReceiveAndAdd(Context& ctx);

 private:
  struct Holders {
    Parameter* parameter;
    int tag;
    std::vector<int> ranks;  // of pp, ascending; this one included
  };
  void Add(Context& ctx, const Holders& holders);

  GroupPtr pp_;
  std::map<const Parameter*, Holders> holders_;
  std::vector<const Parameter*> in_order_;
};

}  // namespace hone::parallel
