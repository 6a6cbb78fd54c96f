// fasa eval report: rows of results -> one HTML file, and the same tables in the terminal.
#include <fmt/format.h>

#include <fstream>
#include <memory>

#include "cli/commands.h"
#include "cli/eval/results.h"
#include "cli/eval/tables.h"
#include "cli/progress.h"
#include "cli/text_file.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr const char* kStyle =
    "body{font-family:sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;font-size:13px}th,td{padding:3px 9px;border-bottom:1px solid #ddd;text-align:left}"
    "th{background:#f4f4f4;position:sticky;top:0}svg{margin:8px 8px 8px 0;max-width:100%;height:auto}";

struct ReportOptions {
  std::vector<std::string> files;
  std::string output;
  std::string pictures;
};

std::string html_of(const std::vector<Section>& sections) {
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>FASA: "
      "quality</title>\n<style>{}</style>\n"
      "</head>\n<body>\n<h1>What sparse attention costs in quality</h1>\n",
      kStyle);
  for (const Section& section : sections) {
    html += fmt::format("<h2>{}</h2>\n<p>{}</p>\n", escape_xml(section.title), escape_xml(section.remark));
    for (const std::string& picture : section.pictures) html += picture;
    html += html_of(section.table);
  }
  return html + fmt::format("<p>Made by fasa {}.</p>\n</body>\n</html>\n", FASA_VERSION);
}

void report(const ReportOptions& options) {
  std::vector<Json> rows;
  int64_t skipped = 0;
  for (const std::string& path : options.files) {
    int64_t others = 0;
    for (auto& [key, row] : parse_results(read_text(path), &others)) rows.push_back(std::move(row));
    skipped += others;
  }
  if (rows.empty()) {
    throw Error(ErrorCode::kBadFormat,
                fmt::format("{} holds no results: make them with `fasa eval kl --out {}`, for one",
                            options.files.front(), options.files.front()));
  }
  const std::vector<Section> sections = sections_of(rows);
  for (const Section& section : sections)
    fmt::print("{}\n{}\n{}\n", section.title, section.remark, text_of(section.table));
  if (!options.output.empty()) {
    write_picture(options.output, html_of(sections));
    say(fmt::format("Wrote {}: {} rows{}", options.output, rows.size(),
                    skipped > 0 ? fmt::format(", {} other lines left out", skipped) : ""));
  }
  if (options.pictures.empty()) return;
  int number = 0;
  for (const Section& section : sections) {
    for (const std::string& picture : section.pictures) {
      write_picture(fmt::format("{}/{:02}.svg", options.pictures, ++number), picture);
    }
  }
}

}  // namespace

void add_eval_report_command(CLI::App& eval) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* command = eval.add_subcommand("report", "Tables and plots of results, as one HTML file");
  command->add_option("results", options->files, "JSONL files that --out of the other commands wrote")->required();
  command->add_option("-o,--output", options->output, "HTML file to write: it needs nothing else, no network either");
  command->add_option("--pictures", options->pictures, "Folder for the plots as SVG files");
  command->footer(
      "Prints a table of each measure, averaged over texts. The HTML file has the same tables, with quality against "
      "budget,\n"
      "bytes and speed against quality, and heatmaps of needles and tasks.\n\n"
      "Examples:\n"
      "  fasa eval report results.jsonl\n"
      "  fasa eval report results.jsonl more.jsonl -o report.html\n");
  command->callback([options] { report(*options); });
}

}  // namespace fasa::cli
