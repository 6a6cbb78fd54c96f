// What the report shows, made from rows of results: tables and pictures.
#pragma once

#include <string>
#include <vector>

#include "cli/eval/picture.h"
#include "cli/eval/results.h"

namespace fasa::cli {

struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
};
std::string text_of(const Table& table);
std::string html_of(const Table& table);

struct Section {
  std::string title;
  std::string remark;
  Table table;
  std::vector<std::string> pictures;  // SVG
};

// "fasa n_tip=8": the policy, and those settings in which the rows of this policy differ. Without the budget.
std::vector<std::string> variant_names(const std::vector<Json>& rows);

// One section for each measure of which there are rows.
std::vector<Section> sections_of(const std::vector<Json>& rows);

}  // namespace fasa::cli
