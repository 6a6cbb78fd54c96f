// Results of evaluation: rows of a JSONL file, each under a key made of all that determines it.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cli/rows.h"

namespace fasa::cli {

using Json = nlohmann::ordered_json;

// 16 hex digits of FNV-1a 64.
std::string hash_hex(const std::string& bytes);

// The rows of `text` (the contents of a JSONL file) that have a string "key", the last one of each key. Other lines, such as
// one cut off by a stopped run, are left out and counted in *skipped.
std::map<std::string, Json> parse_results(const std::string& text, int64_t* skipped);

class ResultStore {
 public:
  // Reads --out, if that file is there.
  explicit ResultStore(const RowOptions& options);

  // The row that was made under these settings before. Null if there is none.
  const Json* find(const Json& settings) const;
  // Prints a row that find() returned.
  void repeat(const Json& row) const;
  // Prints a new row (settings, then values), and appends it to --out with its key.
  void add(const Json& settings, const Json& values);

 private:
  RowOptions options_;
  std::map<std::string, Json> rows_;
};

}  // namespace fasa::cli
