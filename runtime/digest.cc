#include "runtime/digest.h"

#include <fmt/core.h>
#include <xxhash.h>

namespace hone::runtime {
namespace {

std::string Hex(XXH128_hash_t hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace

std::string DigestOf(const void* data, int64_t bytes) {
  return Hex(XXH3_128bits(data, static_cast<size_t>(bytes)));
}

struct DigestStream::Impl {
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state{XXH3_createState(),
                                                                        XXH3_freeState};
};

DigestStream::DigestStream() : impl_(std::make_unique<Impl>()) {
  XXH3_128bits_reset(impl_->state.get());
}
DigestStream::~DigestStream() = default;

void DigestStream::Add(const void* data, int64_t bytes) {
  XXH3_128bits_update(impl_->state.get(), data, static_cast<size_t>(bytes));
}

std::string DigestStream::Finish() const { return Hex(XXH3_128bits_digest(impl_->state.get())); }

}  // namespace hone::runtime
