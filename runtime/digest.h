// XXH3, 128 bits, as 32 hexadecimal digits: tells changed bytes from unchanged ones; not a
// signature.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace hone::runtime {

std::string DigestOf(const void* data, int64_t bytes);
inline std::string DigestOf(const std::string& text) {
  return DigestOf(text.data(), static_cast<int64_t>(text.size()));
}

// The same over bytes that come in parts.
class DigestStream {
 public:
  DigestStream();
  ~DigestStream();
  void Add(const void* data, int64_t bytes);
  std::string Finish() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::runtime
