// Results: one JSON object a line, on stdout and appended to a file.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>

namespace fasa::cli {

struct RowOptions {
  bool json = false;
  std::string out;
};

void add_row_options(CLI::App& command, RowOptions& options);
// Prints `row` on stdout if --json was given, appends it to --out; throws Error(kIo).
void emit_row(const RowOptions& options, const nlohmann::ordered_json& row);

}  // namespace fasa::cli
