#include "cli/text_file.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "fasa/error.h"

namespace fasa::cli {

std::string read_text(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    throw Error(ErrorCode::kNotFound, fmt::format("there is no text {}: name a text file", path));
  }
  if (std::filesystem::is_directory(path, ignored)) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} is a folder: name a text file in it", path));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file) {
    throw Error(ErrorCode::kIo, fmt::format("the text {} cannot be read: check its permissions", path));
  }
  if (text.empty()) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("the text {} is empty: name one with something in it", path));
  }
  return text;
}

}  // namespace fasa::cli
