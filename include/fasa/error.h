// Errors that a user can cause. Our own bugs assert instead.
#pragma once

#include <stdexcept>
#include <string>

namespace fasa {

enum class ErrorCode {
  kInvalidArgument,  // a shape, option or value that cannot work
  kUnsupported,      // valid, but nothing here implements it
  kNotFound,         // a file, device or symbol is missing
  kBadFormat,        // a file is truncated, hostile, or of a newer version
  kMismatch,         // the profile belongs to another model
  kOutOfMemory,
  kIo,
};

// `what()` is one sentence: what is wrong, where, and what to do about it.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace fasa
