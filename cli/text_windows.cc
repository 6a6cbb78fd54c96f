#include "cli/text_windows.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr int64_t kBytesPerToken = 5;      // more than most text has, for the first try
constexpr int64_t kMaxBytesPerToken = 40;  // where reading on for one window ends
constexpr int64_t kLineSearch = 2048;
constexpr int64_t kDefaultWindows = 4;

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

// Drops the character that the end cuts through.
void trim_end(std::string& text) {
  size_t lead = text.size();
  while (lead > 0 && text.size() - lead < 4 && continues_character(text[lead - 1])) --lead;
  if (lead == 0) return;
  const auto c = static_cast<unsigned char>(text[lead - 1]);
  const size_t length = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
  if (text.size() - (lead - 1) < length) text.resize(lead - 1);
}

struct Part {
  int64_t begin;
  int64_t end;
};

// The first `context` tokens from `begin` on, or fewer if the part has fewer.
std::vector<int32_t> tokens_from(const TextFiles& texts, int64_t begin, int64_t end, int64_t context,
                                 const Tokenize& tokenize) {
  for (int64_t bytes = context * kBytesPerToken;; bytes *= 2) {
    const int64_t count = std::min(bytes, end - begin);
    std::vector<int32_t> tokens = tokenize(texts.read(begin, count));
    if (static_cast<int64_t>(tokens.size()) >= context) {
      tokens.resize(static_cast<size_t>(context));
      return tokens;
    }
    if (count == end - begin || bytes > context * kMaxBytesPerToken) return tokens;
  }
}

}  // namespace

TextFiles::TextFiles(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) {
      throw Error(ErrorCode::kNotFound, fmt::format("there is no text file {}: give --text a file that exists", path));
    }
    if (!std::filesystem::is_regular_file(path, ignored) || !std::ifstream(path)) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("{} is not a readable text file: give --text a file", path));
    }
    const auto size = static_cast<int64_t>(std::filesystem::file_size(path, ignored));
    files_.push_back({path, size_, size_ + size});
    size_ += size;
  }
}

std::string TextFiles::raw(int64_t begin, int64_t count) const {
  std::string text;
  for (const File& file : files_) {
    const int64_t from = std::max(begin, file.begin);
    const int64_t to = std::min(begin + count, file.end);
    if (from >= to) continue;
    const size_t at = text.size();
    text.resize(at + static_cast<size_t>(to - from));
    std::ifstream stream(file.path, std::ios::binary);
    stream.seekg(from - file.begin);
    stream.read(text.data() + at, to - from);
    if (stream.gcount() != to - from) {
      throw Error(ErrorCode::kIo, fmt::format("{} cannot be read to its end: check the file", file.path));
    }
  }
  return text;
}

std::string TextFiles::read(int64_t begin, int64_t count) const {
  std::string text = raw(begin, count);
  if (begin > 0) {
    const size_t line = text.find('\n');
    size_t skip = 0;
    if (line < static_cast<size_t>(kLineSearch) && line + 1 < text.size()) skip = line + 1;
    while (skip < text.size() && continues_character(text[skip])) ++skip;
    text.erase(0, skip);
  }
  trim_end(text);
  return text;
}

std::vector<std::vector<int32_t>> choose_windows(const TextFiles& texts, int64_t num_windows, int64_t context,
                                                 const Tokenize& tokenize) {
  const auto attempt = [&](int64_t count) -> std::optional<std::vector<std::vector<int32_t>>> {
    std::vector<std::vector<int32_t>> windows;
    for (int64_t w = 0; w < count; ++w) {
      const Part part{texts.size() / count * w, w + 1 == count ? texts.size() : texts.size() / count * (w + 1)};
      const int64_t slack = std::max<int64_t>(0, part.end - part.begin - context * kBytesPerToken);
      auto tokens = tokens_from(texts, part.begin + slack / 2, part.end, context, tokenize);
      if (static_cast<int64_t>(tokens.size()) < context) {
        tokens = tokens_from(texts, part.begin, part.end, context, tokenize);
      }
      if (static_cast<int64_t>(tokens.size()) < context) return std::nullopt;
      windows.push_back(std::move(tokens));
    }
    return windows;
  };
  for (int64_t count = num_windows > 0 ? num_windows : kDefaultWindows; count >= 1; --count) {
    if (auto windows = attempt(count)) return *windows;
    if (num_windows > 0) break;
  }
  const int64_t wanted = std::max<int64_t>(1, num_windows);
  const auto have = static_cast<int64_t>(tokens_from(texts, 0, texts.size(), wanted * context, tokenize).size());
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("the text is too short: it has {}{} tokens and {} window{} of {} need{} {}"
                          "{}: give more text, or a smaller --context{}",
                          have < wanted * context ? "" : "about ", have, wanted, wanted == 1 ? "" : "s", context,
                          wanted == 1 ? "s" : "", wanted * context, have < wanted * context ? "" : " evenly spread",
                          num_windows > 1 ? " or fewer --windows" : ""));
}

}  // namespace fasa::cli
