#include "data/split.h"

#include "runtime/philox.h"

namespace hone::data {

bool IsHeldOut(std::string_view problem) {
  return RandomStream({HashName("heldout"), HashName(problem)}).Below(16, 0) == 0;
}

bool InSplit(std::string_view problem, Split split) {
  return split == Split::kAll || IsHeldOut(problem) == (split == Split::kHeldOut);
}

Split ReadSplit(ConfigReader& config, Split otherwise) {
  int word = config.OneOf("split", {"train", "heldout", "all"}, static_cast<int>(otherwise));
  return static_cast<Split>(word);
}

}  // namespace hone::data
