#include "cli/eval/reference_logits.h"

#include <fmt/format.h>

#include "fasa/error.h"

namespace fasa::cli {

LogitsWriter::LogitsWriter(const std::filesystem::path& path, int64_t vocab)
    : path_(path), vocab_(vocab), file_(path, std::ios::binary) {}

void LogitsWriter::add(const float* logits) {
  file_.write(reinterpret_cast<const char*>(logits), vocab_ * static_cast<std::streamsize>(sizeof(float)));
}

void LogitsWriter::finish() {
  file_.close();
  if (!file_) {
    throw Error(ErrorCode::kIo, fmt::format("the reference logits cannot be written to {}: free some space, or name "
                                            "another folder with --cache",
                                            path_.string()));
  }
}

LogitsReader::LogitsReader(const std::filesystem::path& path, int64_t rows, int64_t vocab)
    : path_(path), file_(path, std::ios::binary), row_(static_cast<size_t>(vocab)) {
  std::error_code failed;
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, failed));
  if (failed || size != rows * vocab * static_cast<int64_t>(sizeof(float))) {
    throw Error(ErrorCode::kBadFormat,
                fmt::format("{} is not the file of logits that it should be: delete it", path.string()));
  }
}

const float* LogitsReader::row(int64_t i) {
  if (i == held_) return row_.data();
  const auto bytes = static_cast<std::streamsize>(row_.size() * sizeof(float));
  file_.seekg(i * bytes);
  file_.read(reinterpret_cast<char*>(row_.data()), bytes);
  if (!file_) throw Error(ErrorCode::kIo, fmt::format("{} cannot be read", path_.string()));
  held_ = i;
  return row_.data();
}

}  // namespace fasa::cli
