// Runs a test's body on ranks: threads of this process, or the processes of an mpirun.
//
// A test program that uses it has its own main:  int main(int c, char** v) { return RunRankTests(c,
// v); }
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "parallel/comm/process_group.h"
#include "runtime/nvidia_library.h"

namespace hone::parallel {

inline GroupPtr& MpiWorld() {
  static GroupPtr world;
  return world;
}

// Under mpirun: the body once, when `sizes` has the number of ranks there. Else: with each of
// `sizes` as threads.
inline void OnRanks(const std::vector<int>& sizes, const std::function<void(GroupPtr)>& body,
                    GroupOptions options = {}) {
  bool any = false;
  for (int size : sizes) {
    if (MpiWorld() != nullptr && size != MpiWorld()->size()) continue;
    any = true;
    SCOPED_TRACE("ranks " + std::to_string(size));
    if (MpiWorld() != nullptr) {
      body(MpiWorld());
    } else {
      RunThreadRanks(size, body, options);
    }
  }
  if (!any) GTEST_SKIP() << "not a test for this number of MPI ranks";
}

inline int RunRankTests(int argc, char** argv,
                        GroupOptions options = {.deadline = std::chrono::seconds(60)}) {
  runtime::SetCudaDefaults();
  testing::InitGoogleTest(&argc, argv);
  if (StartedByMpi()) MpiWorld() = MakeMpiGroup(options);
  int result = RUN_ALL_TESTS();
  MpiWorld() = nullptr;
  return result;
}

}  // namespace hone::parallel
