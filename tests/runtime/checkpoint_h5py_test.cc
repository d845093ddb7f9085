// index.h5 read by another program: h5py sees the whole model, wherever the folder is moved.
//
// Needs a Python with h5py: HONE_TEST_PYTHON, or python3.
#include <gmock/gmock.h>

#include <cstdlib>

#include "runtime/checkpoint/checkpoint.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

using ::testing::Each;

std::string PythonWithH5py() {
  const char* named = std::getenv("HONE_TEST_PYTHON");
  for (std::string python : {named ? named : "", "python3", "/usr/bin/python3"}) {
    bool works = !python.empty() &&
                 std::system((python + " -c 'import h5py, numpy' 2>/dev/null").c_str()) == 0;
    if (works) return python;
  }
  return "";
}

// The same rule as ValueAt.
constexpr const char* kScript = R"(
import sys, h5py, numpy as np
f = h5py.File(sys.argv[1] + '/index.h5', 'r')
def value(name, shape):
    v = np.full(shape, float(len(name)))
    for d in range(len(shape)):
        v = v * 31 + np.arange(shape[d]).reshape([-1 if i == d else 1 for i in range(len(shape))])
    return v
def bf16(u): return (u.astype(np.uint32) << 16).view(np.float32)
w = f['model/layers.0/w']
assert w.dtype == np.float32 and w.is_virtual and w.attrs['dtype'] in ('f32', b'f32'), w
assert (w[...] == value('model/layers.0/w', (10, 6)).astype(np.float32)).all()
assert w[7, 2] == np.float32(value('model/layers.0/w', (10, 6))[7, 2])
d = f['model/double']
assert d.dtype == np.float64 and (d[...] == value('double', (5, 3))).all()
b = f['model/bf']
assert b.dtype == np.uint16 and b.attrs['dtype'] in ('bf16', b'bf16')
want = value('model/bf', (4,)).astype(np.float32)
assert (np.abs(bf16(b[...]) - want) <= want / 256).all()
assert f['optimizer/count'][()] == value('optimizer/count', ())
assert bytes(f['checkpoint/metadata'][()]) == b'{"step": 7}'
names = []
f['model'].visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
assert sorted(names) == ['bf', 'double', 'layers.0/w'], names
import os
os.rename(sys.argv[1] + '/shard-00001.h5', sys.argv[1] + '/elsewhere.h5')
f.close(); f = h5py.File(sys.argv[1] + '/index.h5', 'r')
w = f['model/layers.0/w'][...]
assert not np.isnan(w[:5]).any() and np.isnan(w[5:]).all()
assert np.isnan(bf16(f['model/bf'][...])[2:]).all()
)";

TEST(CheckpointH5pyTest, IndexIsTheWholeModel) {
  std::string python = PythonWithH5py();
  if (python.empty()) GTEST_SKIP() << "no Python with h5py; name one in HONE_TEST_PYTHON";
  TemporaryFolder folder;
  auto errors = RunRanks(2, [&](std::shared_ptr<Rendezvous> ranks) {
    Context ctx;
    auto half = [&](const std::string& name, Shape shape, DType dtype) {
      Slab slab = Slab::Whole(name, shape);
      int64_t middle = shape[0] / 2;
      slab.offset[0] = ranks->rank() == 0 ? 0 : middle;
      slab.extent[0] = ranks->rank() == 0 ? middle : shape[0] - middle;
      return FilledSlab(ctx, slab, dtype);
    };
    SlabIndex index = {half("model/layers.0/w", {10, 6}, DType::kF32),
                       half("double", {5, 3}, DType::kF64), half("model/bf", {4}, DType::kBF16),
                       FilledSlab(ctx, Slab::Whole("optimizer/count", {}), DType::kF64)};
    CheckpointWriter writer(LocalFileSystem(), ranks, {});
    writer.Save(folder / "saved", {index, ranks->rank() == 0 ? R"({"step": 7})" : ""});
    writer.Wait();
  });
  ASSERT_THAT(errors, Each(""));
  LocalFileSystem().Rename(folder / "saved", folder / "moved");
  LocalFileSystem().WriteAtomically(folder / "check.py", kScript);
  std::string command =
      fmt::format("cd / && {} {} {}", python, folder / "check.py", folder / "moved");
  EXPECT_EQ(std::system(command.c_str()), 0);
}

}  // namespace
}  // namespace hone::runtime
