// Which problems are held out: one in sixteen, by a hash of the problem itself, so that the split
// is the same for every seed, language and stage.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/config.h"

namespace hone::data {

enum class Split : uint8_t { kTrain, kHeldOut, kAll };

bool IsHeldOut(std::string_view problem);
bool InSplit(std::string_view problem, Split split);
// The config key "split": train, heldout or all.
Split ReadSplit(ConfigReader& config, Split otherwise);

}  // namespace hone::data
