// The emulated devices' memory.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace hone::cuda_emulation {

// A range of addresses that is readable and writable only between `Open` and `Close`. Allocations
// lie 512 bytes aligned with a gap behind each; AddressSanitizer knows the gaps and what was freed.
class Arena {
 public:
  Arena();

  // Null where the device's memory would not do.
  void* Allocate(int64_t bytes);
  // The same, of a file in memory that other processes can map.
  void* AllocateShared(int64_t bytes);
  // False if somebody wrote behind the allocation's end.
  bool Free(void* ptr);
  // How another process finds an allocation of AllocateShared; false for anything else.
  struct File {
    int process = 0, file = -1;
    int64_t bytes = 0;
  };
  bool FileOf(const void* ptr, File* file) const;
  // Another process's allocation, here; null where there is none. Its owner sees that it is open.
  void* Adopt(const File& file);
  void Return(void* ptr);
  bool OpenElsewhere(const void* ptr) const;
  bool Holds(const void* ptr) const;
  // Whether [ptr, ptr + bytes) lies in one allocation.
  bool Inside(const void* ptr, int64_t bytes) const;
  int64_t used() const { return used_; }

  // Nest: the last Close closes. Changing the protection of memory is slow, so what can wait does.
  void Open();
  void Close();

 private:
  struct Mapping {
    int file = -1;
    int64_t bytes = 0;  // of the file, whole pages
  };

  void Protect(int protection);
  void FillNew();
  int64_t Map(const Mapping& mapping);
  void Unmap(int64_t at);

  char* base_;
  int64_t top_ = 0;  // everything handed out so far lies below
  int64_t used_ = 0;
  int open_ = 0;
  bool accessible_ = false;
  std::map<int64_t, int64_t> live_;       // offset → bytes
  std::map<int64_t, Mapping> mapped_;     // of live_ and of other processes'
  std::vector<int64_t> new_;              // of live_; filled when the arena opens
  std::multimap<int64_t, int64_t> free_;  // bytes, rounded, → offset
};

}  // namespace hone::cuda_emulation
