// Texts that people name on the command line.
#pragma once

#include <string>

namespace fasa::cli {

// Throws Error(kNotFound | kInvalidArgument | kIo).
std::string read_text(const std::string& path);

}  // namespace fasa::cli
