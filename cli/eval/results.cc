#include "cli/eval/results.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>

#include "cli/progress.h"
#include "cli/text_file.h"
#include "fasa/error.h"
#include "fasa/profile.h"

namespace fasa::cli {
namespace {

constexpr const char* kKey = "key";

}  // namespace

std::string hash_hex(const std::string& bytes) {
  return fmt::format("{:016x}", fingerprint(bytes.data(), bytes.size()));
}

std::map<std::string, Json> parse_results(const std::string& text, int64_t* skipped) {
  std::map<std::string, Json> rows;
  *skipped = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object() || !row.contains(kKey) || !row.at(kKey).is_string()) {
      ++*skipped;
      continue;
    }
    std::string key = row.at(kKey).get<std::string>();
    rows[std::move(key)] = std::move(row);
  }
  return rows;
}

ResultStore::ResultStore(const RowOptions& options) : options_(options) {
  std::error_code ignored;
  if (options_.out.empty() || !std::filesystem::exists(options_.out, ignored) ||
      std::filesystem::file_size(options_.out, ignored) == 0) {
    return;
  }
  const std::string text = read_text(options_.out);
  int64_t skipped = 0;
  rows_ = parse_results(text, &skipped);
  if (skipped > 0) {
    say(fmt::format("{}: {} line{} without a result of this program left alone", options_.out, skipped,
                    skipped == 1 ? "" : "s"));
  }
  if (text.back() != '\n') std::ofstream(options_.out, std::ios::app) << '\n';  // a stopped run cut the last line
}

const Json* ResultStore::find(const Json& settings) const {
  const auto at = rows_.find(hash_hex(settings.dump()));
  return at == rows_.end() ? nullptr : &at->second;
}

void ResultStore::repeat(const Json& row) const { emit_row({.json = options_.json, .out = ""}, row); }

void ResultStore::add(const Json& settings, const Json& values) {
  const std::string key = hash_hex(settings.dump());
  Json row = settings;
  row.update(values);
  row[kKey] = key;
  emit_row(options_, row);
  rows_[key] = std::move(row);
}

}  // namespace fasa::cli
