// The part of HDF5 that checkpoints use: whole contiguous datasets, texts, and virtual views.
//
// The HDF5 library is not thread safe, and ranks may be threads: every method takes one lock of the
// process. Bytes are little-endian, as in memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/file_system.h"
#include "runtime/tensor.h"

namespace hone::runtime {

// Errors are CheckpointError naming the file, or the FileSystem's own IoError.
class Hdf5File {
 public:
  // Leaves the first `user_block` bytes of the file (0, or a power of two from 512) to the caller.
  static Hdf5File Create(FileSystem& fs, const std::string& path, int64_t user_block = 0);
  static Hdf5File Open(FileSystem& fs, const std::string& path);
  Hdf5File(Hdf5File&&) noexcept;
  ~Hdf5File();  // closes; errors are dropped
  // Writes what is left; does not sync. Call it on every file that was written.
  void Close();

  // bf16 and f8e4m3 are stored as unsigned integers; an attribute "dtype" says what they are.
  // Returns where in the file the bytes lie, or −1 when compressed (`compression`: deflate level, 0
  // = none).
  int64_t WriteDataset(const std::string& name, DType dtype, const Shape& shape, const void* data,
                       int compression = 0);
  // Refuses a dataset of another type or shape.
  void ReadDataset(const std::string& name, DType dtype, const Shape& shape, void* data);

  void WriteText(const std::string& name, const std::string& text);
  std::string ReadText(const std::string& name);

  struct Piece {
    std::string file, dataset;  // the file's name, relative to this file's folder
    Shape offset, extent;
  };
  // A dataset of `shape` that is the pieces laid together. What a missing file would have given
  // reads as NaN (integers: their lowest value). A scalar is a link to its one piece.
  void WriteView(const std::string& name, DType dtype, const Shape& shape,
                 const std::vector<Piece>& pieces);

 private:
  struct Impl;
  explicit Hdf5File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::runtime
