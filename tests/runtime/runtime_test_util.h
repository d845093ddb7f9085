// What several tests of runtime/ need.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/context.h"
#include "runtime/error.h"
#include "runtime/rendezvous.h"
#include "runtime/slab.h"

namespace hone::runtime {

// A folder of the test's own, gone when it ends.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = std::filesystem::temp_directory_path().string() + "/hone-test-XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Threads as ranks.
class ThreadRendezvous : public Rendezvous {
 public:
  struct Shared {
    explicit Shared(int size) : size(size), slots(size) {}
    const int size;
    std::mutex mutex;
    std::condition_variable turned;
    std::vector<std::string> slots, result;
    int arrived = 0;
    int64_t turn = 0;
  };
  ThreadRendezvous(std::shared_ptr<Shared> shared, int rank)
      : shared_(std::move(shared)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return shared_->size; }
  std::vector<std::string> AllGather(const std::string& bytes) override {
    std::unique_lock lock(shared_->mutex);
    int64_t turn = shared_->turn;
    shared_->slots[rank_] = bytes;
    if (++shared_->arrived == shared_->size) {
      shared_->result = shared_->slots;
      shared_->arrived = 0;
      ++shared_->turn;
      shared_->turned.notify_all();
    } else {
      shared_->turned.wait(lock, [&] { return shared_->turn != turn; });
    }
    return shared_->result;
  }

 private:
  std::shared_ptr<Shared> shared_;
  int rank_;
};

// Runs fn(rank) on `size` threads; returns each one's error text, "" for none.
inline std::vector<std::string> RunRanks(
    int size, const std::function<void(std::shared_ptr<Rendezvous>)>& fn) {
  auto shared = std::make_shared<ThreadRendezvous::Shared>(size);
  std::vector<std::string> errors(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      try {
        fn(std::make_shared<ThreadRendezvous>(shared, r));
      } catch (const std::exception& e) {
        errors[r] = e.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

// The text of the E that fn throws.
template <class E = Error>
std::string MessageOf(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const E& e) {
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

// The value at a global position that tests fill slabs with: the same whoever holds it.
inline double ValueAt(const std::string& name, const Shape& position) {
  double value = static_cast<double>(name.size());
  for (int64_t p : position) value = value * 31 + static_cast<double>(p);
  return value;
}

// Calls fn(position, index in the slab) for each element in order.
inline void ForEachElement(const Slab& slab, const std::function<void(const Shape&, int64_t)>& fn) {
  Shape position = slab.offset;
  for (int64_t i = 0; i < slab.size(); ++i) {
    fn(position, i);
    for (int d = static_cast<int>(position.size()) - 1; d >= 0; --d) {
      if (++position[d] < slab.offset[d] + slab.extent[d]) break;
      position[d] = slab.offset[d];
    }
  }
}

inline SlabTensor FilledSlab(Context& ctx, Slab slab, DType dtype = DType::kF32) {
  Tensor wide = ctx.Empty(slab.extent, DType::kF64);
  ForEachElement(slab, [&](const Shape& position, int64_t i) {
    wide.data<double>()[i] = ValueAt(slab.name, position);
  });
  Tensor tensor = ctx.Empty(slab.extent, dtype);
  CopyTo(wide, tensor);
  return {std::move(slab), tensor};
}

inline SlabTensor EmptySlab(Context& ctx, Slab slab, DType dtype = DType::kF32) {
  Tensor tensor = ctx.Zeros(slab.extent, dtype);
  return {std::move(slab), tensor};
}

inline void ExpectFilled(const SlabTensor& st) {
  std::vector<double> values = ToDoubles(st.tensor);
  ForEachElement(st.slab, [&](const Shape& position, int64_t i) {
    double want = ValueAt(st.slab.name, position);
    if (st.tensor.dtype() == DType::kBF16)
      want = static_cast<float>(BF16(static_cast<float>(want)));
    if (st.tensor.dtype() == DType::kF32) want = static_cast<float>(want);
    ASSERT_EQ(values[i], want) << st.slab.ToString() << " at " << ShapeToString(position);
  });
}

}  // namespace hone::runtime
