// Memory that a kernel's thread keeps between calls.
#pragma once

#include <cstdint>
#include <vector>

namespace hone::kernels {

struct alignas(64) CacheLine {
  char bytes[64];
};
// Grows to the largest size asked for; one of each T and `slot` a thread.
template <class T, int slot>
T* Scratch(int64_t elements) {
  thread_local std::vector<CacheLine> memory;
  const size_t lines = (elements * sizeof(T) + 63) / 64;
  if (memory.size() < lines) memory.resize(lines);
  return reinterpret_cast<T*>(memory.data());
}

}  // namespace hone::kernels
