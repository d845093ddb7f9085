// Typed errors, and the checks that throw them.
//
// A message begins with the operation in brackets and names the offending values, the place and what
// to do: "[moe_permute] 7 experts do not split over ep = 4; choose ep from {1, 7}".
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace hone::runtime {

// Base of every error that hone throws on purpose. `exit_code` is what a program ends with when the
// error reaches its main.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, int exit_code = 1)
      : std::runtime_error(message), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

// The caller passed tensors whose shape, dtype or device do not fit.
class ShapeError : public Error {
 public:
  explicit ShapeError(const std::string& m) : Error(m) {}
};
// A config, flag or layout is wrong: found before anything starts. Exit code 2.
class ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& m) : Error(m, 2) {}
};
// Input data is malformed: names file:line.
class DataError : public Error {
 public:
  explicit DataError(const std::string& m) : Error(m) {}
};
// The file system refused.
class IoError : public Error {
 public:
  explicit IoError(const std::string& m) : Error(m) {}
};
// A checkpoint is missing, short, changed or does not fit the model.
class CheckpointError : public Error {
 public:
  explicit CheckpointError(const std::string& m) : Error(m) {}
};
// A collective or RPC failed: names rank, operation and peer.
class CommError : public Error {
 public:
  explicit CommError(const std::string& m) : Error(m) {}
};
// A wait passed its deadline.
class TimeoutError : public CommError {
 public:
  explicit TimeoutError(const std::string& m) : CommError(m) {}
};
// The device library (CUDA, cuBLAS, cuDNN, NCCL) failed.
class DeviceError : public Error {
 public:
  explicit DeviceError(const std::string& m) : Error(m) {}
};
// The run was asked to stop and can be resumed. Exit code 75.
class StoppedEarly : public Error {
 public:
  explicit StoppedEarly(const std::string& m) : Error(m, 75) {}
};

// Throws E with the formatted message unless `ok`.
template <class E = Error, class... Args>
inline void Check(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]] {
    throw E(fmt::format(format, std::forward<Args>(args)...));
  }
}
template <class... Args>
inline void CheckShape(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  Check<ShapeError>(ok, format, std::forward<Args>(args)...);
}

}  // namespace hone::runtime

namespace hone {
using runtime::Check;
using runtime::CheckShape;
using runtime::CheckpointError;
using runtime::CommError;
using runtime::ConfigError;
using runtime::DataError;
using runtime::DeviceError;
using runtime::Error;
using runtime::IoError;
using runtime::ShapeError;
using runtime::StoppedEarly;
using runtime::TimeoutError;
}  // namespace hone
