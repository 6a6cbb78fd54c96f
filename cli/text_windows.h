// Windows of text for calibration, chosen evenly over files of any size; only what a window needs
// is read.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace fasa::cli {

// The files one after another, as one long text.
class TextFiles {
 public:
  // Throws Error(kNotFound | kInvalidArgument) on a file that is missing, empty or not regular.
  explicit TextFiles(const std::vector<std::string>& paths);

  int64_t size() const { return size_; }
  // At most `count` bytes from `begin` on, cut to whole UTF-8 characters; from begin > 0 on it
  // starts with a line, where one starts near.
  std::string read(int64_t begin, int64_t count) const;

 private:
  struct File {
    std::string path;
    int64_t begin;
    int64_t end;
  };
  std::string raw(int64_t begin, int64_t count) const;

  std::vector<File> files_;
  int64_t size_ = 0;
};

using Tokenize = std::function<std::vector<int32_t>(const std::string& text)>;

// `num_windows` windows of `context` tokens each (0: up to 4, or as many as fit), in the middle of
// equal parts of the text. Throws Error(kInvalidArgument), with the number of tokens there are, if
// the text is too short.
std::vector<std::vector<int32_t>> choose_windows(const TextFiles& texts, int64_t num_windows, int64_t context,
                                                 const Tokenize& tokenize);

}  // namespace fasa::cli
