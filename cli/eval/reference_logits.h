// The logits of full attention, made once for a text and read by every policy and budget.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace fasa::cli {

// Rows of f32 logits in a file: [rows][vocab]. They stay f32, so that full attention's own KL is exactly 0.
class LogitsWriter {
 public:
  LogitsWriter(const std::filesystem::path& path, int64_t vocab);
  void add(const float* logits);
  // Throws Error(kIo) if anything could not be written.
  void finish();

 private:
  std::filesystem::path path_;
  int64_t vocab_;
  std::ofstream file_;
};

class LogitsReader {
 public:
  // Throws Error(kBadFormat) if the file does not hold `rows` rows.
  LogitsReader(const std::filesystem::path& path, int64_t rows, int64_t vocab);
  // The row lives until the next call.
  const float* row(int64_t i);

 private:
  std::filesystem::path path_;
  std::ifstream file_;
  std::vector<float> row_;
  int64_t held_ = -1;
};

}  // namespace fasa::cli
