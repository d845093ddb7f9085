// What a VerifierPool and its helpers say to each other. Both ends are the same program on the same
// machine, so numbers are raw memory. Texts are any bytes, invalid UTF-8 and zeros included.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "rl/reward/verifier.h"

namespace hone::rl {

// A frame is its payload's length (uint32) and the payload; a longer one is malformed.
inline constexpr uint32_t kMaxFrameBytes = 256u << 20;

// Payloads. Decode… throw DataError on anything but what Encode… wrote.
std::string EncodeRequest(const RewardRequest& request);
RewardRequest DecodeRequest(std::string_view payload);
std::string EncodeReply(const RewardReply& reply);
RewardReply DecodeReply(std::string_view payload);

std::string Frame(const std::string& payload);
// Takes one whole frame's payload off the front of `*buffer`; false when it is not all there yet.
bool TakeFrame(std::string* buffer, std::string* payload);

}  // namespace hone::rl
