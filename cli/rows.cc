#include "cli/rows.h"

#include <fmt/format.h>

#include <cstdio>
#include <fstream>

#include "fasa/error.h"

namespace fasa::cli {

void add_row_options(CLI::App& command, RowOptions& options) {
  command.add_flag("--json", options.json, "Print one JSON object a line instead of a table");
  command.add_option("--out", options.out, "Append the JSON lines to this file too");
}

void emit_row(const RowOptions& options, const nlohmann::ordered_json& row) {
  const std::string line = row.dump();
  if (options.json) {
    fmt::print("{}\n", line);
    std::fflush(stdout);
  }
  if (options.out.empty()) return;
  std::ofstream file(options.out, std::ios::app);
  file << line << '\n';
  if (!file.flush()) {
    throw Error(ErrorCode::kIo, fmt::format("cannot write to {}: name a file in a writable folder "
                                            "with --out",
                                            options.out));
  }
}

}  // namespace fasa::cli
