#include "cli/eval/tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <tuple>

namespace fasa::cli {
namespace {

// Fields that tell what was measured or came out of it; all others of a row are settings of its policy.
const std::set<std::string>& not_settings() {
  static const std::set<std::string> names = {
      "policy",    "budget", "measure",    "text",    "text_hash", "context",     "windows", "scored",
      "reference", "model",  "model_hash", "key",     "threads",   "trials",      "seed",    "filler",
      "kind",      "depth",  "task",       "turns",   "generated", "temperature", "file",    "file_hash",
      "metric",    "chat",   "prompts",    "profile", "queries"};
  return names;
}

bool is_setting(const std::string& name, const Json& row) {
  // Values that were measured follow the settings, whose last one names the model file.
  if (not_settings().contains(name)) return false;
  for (const auto& [key, value] : row.items()) {
    if (key == name) return true;
    if (key == "measure") return false;
  }
  return false;
}

std::string shown(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

double number(const Json& row, const char* name) {
  const auto at = row.find(name);
  return at != row.end() && at->is_number() ? at->get<double>() : std::numeric_limits<double>::quiet_NaN();
}

// 0 where there is none.
int64_t whole(const Json& row, const char* name) {
  const double value = number(row, name);
  return std::abs(value) < 1e15 ? static_cast<int64_t>(value) : 0;
}

std::string word(const Json& row, const char* name) {
  const auto at = row.find(name);
  return at == row.end() ? "" : shown(*at);
}

std::string base_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

std::string fixed(double value, int digits) { return std::isnan(value) ? "-" : fmt::format("{:.{}f}", value, digits); }

std::string with_error(double value, double error, int digits) {
  return fixed(value, digits) + (error > 0 ? " ± " + fixed(error, digits) : "");
}

struct Named {
  std::string name;
  const Json* row;
};

std::vector<Named> of_measure(const std::vector<Json>& rows, const std::string& measure) {
  std::vector<Json> chosen;
  std::vector<const Json*> origin;
  for (const Json& row : rows) {
    if (word(row, "measure") != measure) continue;
    chosen.push_back(row);
    origin.push_back(&row);
  }
  const std::vector<std::string> names = variant_names(chosen);
  std::vector<Named> named;
  for (size_t i = 0; i < names.size(); ++i) named.push_back({names[i], origin[i]});
  return named;
}

// KL over the texts of one model and context, for each variant and budget.
struct KlCell {
  std::vector<double> kl;
  double squares = 0;  // of the standard errors
  double top1 = 0;
  double ratio = 0;  // of perplexity to that of full attention
  double bytes = 0;
  double tps = 0;

  void add(const Json& row) {
    kl.push_back(number(row, "kl_mean"));
    squares += std::pow(number(row, "kl_se"), 2);
    top1 += number(row, "top1_agreement");
    ratio += number(row, "ppl") / number(row, "ppl_full");
    bytes += number(row, "kv_bytes_read_per_token") + number(row, "index_bytes_read_per_token");
    tps += number(row, "decode_tps");
  }
  double size() const { return static_cast<double>(kl.size()); }
  double mean() const {
    double sum = 0;
    for (const double value : kl) sum += value;
    return sum / size();
  }
  double error() const { return std::sqrt(squares) / size(); }
};

using KlKey = std::tuple<std::string, int64_t, std::string, int64_t>;  // model, context, variant, budget

Plot kl_plot(const std::string& title, const std::map<KlKey, KlCell>& cells, const std::string& model, int64_t context,
             double (*x)(const KlCell&, int64_t), const std::string& x_label, bool lines) {
  Plot plot{.title = title,
            .x_label = x_label,
            .y_label = "KL per token",
            .log_x = true,
            .log_y = true,
            .lines = lines,
            .curves = {}};
  std::map<std::string, Curve> curves;
  for (const auto& [key, cell] : cells) {
    const auto& [its_model, its_context, variant, budget] = key;
    if (its_model != model || its_context != context || budget == 0) continue;
    Curve& curve = curves[variant];
    curve.name = variant;
    curve.points.push_back({x(cell, budget), cell.mean(), cell.error()});
  }
  for (auto& [name, curve] : curves) plot.curves.push_back(std::move(curve));
  return plot;
}

Section kl_section(const std::vector<Named>& named) {
  Section section{.title = "KL from full attention",
                  .remark =
                      "Mean over the texts of KL per token, with the standard error of that mean; top-1 agreement; "
                      "perplexity divided by that of full attention; bytes of K, V and index read for a token.",
                  .table = {{"model", "context", "policy", "budget", "texts", "KL per token", "top-1 %", "ppl ratio",
                             "KiB a token", "tokens/s"},
                            {}},
                  .pictures = {}};
  std::map<KlKey, KlCell> cells;
  std::set<std::pair<std::string, int64_t>> grounds;
  for (const Named& entry : named) {
    const auto context = whole(*entry.row, "context");
    const std::string model = word(*entry.row, "model");
    cells[{model, context, entry.name, whole(*entry.row, "budget")}].add(*entry.row);
    grounds.insert({model, context});
  }
  std::vector<std::pair<KlKey, KlCell>> sorted(cells.begin(), cells.end());
  std::ranges::stable_sort(sorted, [](const auto& a, const auto& b) {
    const auto& [model_a, context_a, variant_a, budget_a] = a.first;
    const auto& [model_b, context_b, variant_b, budget_b] = b.first;
    return std::tuple(model_a, context_a, budget_a, a.second.mean()) <
           std::tuple(model_b, context_b, budget_b, b.second.mean());
  });
  for (const auto& [key, cell] : sorted) {
    const auto& [model, context, variant, budget] = key;
    section.table.rows.push_back({model, std::to_string(context), variant, std::to_string(budget),
                                  std::to_string(cell.kl.size()), with_error(cell.mean(), cell.error(), 4),
                                  fixed(100 * cell.top1 / cell.size(), 1), fixed(cell.ratio / cell.size(), 4),
                                  fixed(cell.bytes / cell.size() / 1024, 0), fixed(cell.tps / cell.size(), 1)});
  }
  for (const auto& [model, context] : grounds) {
    const std::string where = fmt::format("{}, context {}", model, context);
    section.pictures.push_back(svg_of(kl_plot(
        "Quality against budget: " + where, cells, model, context,
        [](const KlCell&, int64_t budget) { return static_cast<double>(budget); }, "budget (tokens)", true)));
    section.pictures.push_back(svg_of(kl_plot(
        "Bytes against quality: " + where, cells, model, context,
        [](const KlCell& cell, int64_t) { return cell.bytes / cell.size() / 1024; }, "KiB read for a token", false)));
    section.pictures.push_back(svg_of(kl_plot(
        "Speed against quality: " + where, cells, model, context,
        [](const KlCell& cell, int64_t) { return cell.tps / cell.size(); }, "tokens/s of this run", false)));
  }
  return section;
}

std::string policy_name(const Named& entry) {
  const int64_t budget = whole(*entry.row, "budget");
  return entry.name + (budget > 0 ? fmt::format(" {}", budget) : "");
}

Section needle_section(const std::vector<Named>& named) {
  Section section{.title = "Needle in a haystack",
                  .remark = "Share of the trials in which the hidden fact was found.",
                  .table = {{"model", "kind", "policy", "found", "trials"}, {}},
                  .pictures = {}};
  std::map<std::tuple<std::string, std::string, std::string>, std::vector<const Json*>> lanes;
  for (const Named& entry : named) {
    lanes[{word(*entry.row, "model"), word(*entry.row, "kind"), policy_name(entry)}].push_back(entry.row);
  }
  for (const auto& [key, rows] : lanes) {
    const auto& [model, kind, lane] = key;
    std::set<double> lengths;
    std::set<double> depths;
    double found = 0;
    double trials = 0;
    for (const Json* row : rows) {
      lengths.insert(number(*row, "context"));
      depths.insert(number(*row, "depth"));
      found += number(*row, "found");
      trials += number(*row, "trials");
    }
    section.table.rows.push_back({model, kind, lane, fixed(found, 0), fixed(trials, 0)});
    Heatmap map{.title = fmt::format("{}, {}: {}", model, kind, lane),
                .x_label = "tokens",
                .y_label = "depth, %",
                .x = {},
                .y = {},
                .values = {}};
    for (const double length : lengths) map.x.push_back(fmt::format("{:g}", length));
    for (const double depth : depths) {
      map.y.push_back(fmt::format("{:g}", depth));
      for (const double length : lengths) {
        const auto at = std::ranges::find_if(
            rows, [&](const Json* row) { return number(*row, "context") == length && number(*row, "depth") == depth; });
        map.values.push_back(at == rows.end() ? std::numeric_limits<double>::quiet_NaN() : number(**at, "score_mean"));
      }
    }
    section.pictures.push_back(svg_of(map));
  }
  return section;
}

Section ruler_section(const std::vector<Named>& named) {
  Section section{.title = "RULER-style tasks",
                  .remark = "Share of the wanted words or numbers that the answers contain.",
                  .table = {{"model", "task", "context", "policy", "trials", "score"}, {}},
                  .pictures = {}};
  std::map<std::pair<std::string, double>, std::vector<Named>> grounds;
  for (const Named& entry : named) {
    grounds[{word(*entry.row, "model"), number(*entry.row, "context")}].push_back(entry);
    section.table.rows.push_back({word(*entry.row, "model"), word(*entry.row, "task"), word(*entry.row, "context"),
                                  policy_name(entry), word(*entry.row, "trials"),
                                  with_error(number(*entry.row, "score_mean"), number(*entry.row, "score_se"), 3)});
  }
  for (const auto& [ground, entries] : grounds) {
    std::set<std::string> tasks;
    std::set<std::string> lanes;
    std::map<std::pair<std::string, std::string>, double> score;
    for (const Named& entry : entries) {
      tasks.insert(word(*entry.row, "task"));
      lanes.insert(policy_name(entry));
      score[{policy_name(entry), word(*entry.row, "task")}] = number(*entry.row, "score_mean");
    }
    Heatmap map{.title = fmt::format("RULER-style, {}, context {:g}", ground.first, ground.second),
                .x_label = "task",
                .y_label = "",
                .x = {tasks.begin(), tasks.end()},
                .y = {lanes.begin(), lanes.end()},
                .values = {}};
    for (const std::string& lane : lanes) {
      for (const std::string& task : tasks) {
        const auto at = score.find({lane, task});
        map.values.push_back(at == score.end() ? std::numeric_limits<double>::quiet_NaN() : at->second);
      }
    }
    section.pictures.push_back(svg_of(map));
  }
  return section;
}

// A measure that is a table of some fields.
Section plain_section(const std::string& title, const std::string& remark, const std::vector<Named>& named,
                      const std::vector<std::pair<const char*, int>>& fields) {
  Section section{.title = title, .remark = remark, .table = {{"model", "context", "policy"}, {}}, .pictures = {}};
  for (const auto& [field, digits] : fields) section.table.header.emplace_back(field);
  for (const Named& entry : named) {
    std::vector<std::string> row = {word(*entry.row, "model"), word(*entry.row, "context"), policy_name(entry)};
    for (const auto& [field, digits] : fields) {
      const double value = number(*entry.row, field);
      row.push_back(std::isnan(value) || digits < 0 ? base_name(word(*entry.row, field)) : fixed(value, digits));
    }
    section.table.rows.push_back(std::move(row));
  }
  return section;
}

// field[y][x] of a row, if it has that shape.
std::optional<Heatmap> grid_of(const Json& row, const char* field, const std::string& title,
                               const std::string& x_label) {
  const auto grid = row.find(field);
  const auto layers = row.find("layers");
  if (grid == row.end() || layers == row.end() || !grid->is_array() || !layers->is_array() || grid->empty() ||
      grid->size() != layers->size() || !grid->front().is_array()) {
    return std::nullopt;
  }
  Heatmap map{.title = title, .x_label = x_label, .y_label = "layer", .x = {}, .y = {}, .values = {}, .numbers = false};
  const size_t columns = grid->front().size();
  for (size_t column = 0; column < columns; ++column) map.x.push_back(std::to_string(column));
  for (size_t line = 0; line < grid->size(); ++line) {
    if (!grid->at(line).is_array() || grid->at(line).size() != columns) return std::nullopt;
    map.y.push_back(shown(layers->at(line)));
    for (const Json& value : grid->at(line)) map.values.push_back(value.is_number() ? value.get<double>() : 0);
  }
  return map;
}

Section ca_section(const std::vector<Named>& named) {
  Section section =
      plain_section("Contextual agreement",
                    "Share of the kept tokens that are among as many of the highest exact scores (compound CA), and "
                    "the attention mass on the "
                    "kept tokens, in the sparse layers.",
                    named, {{"text", -1}, {"agreement", 4}, {"agreement_se", 4}, {"mass", 4}, {"mass_se", 4}});
  for (const Named& entry : named) {
    const std::string title =
        fmt::format("Compound CA, {}, {}", policy_name(entry), base_name(word(*entry.row, "text")));
    if (const auto map = grid_of(*entry.row, "agreement_by_head", title, "query head"))
      section.pictures.push_back(svg_of(*map));
  }
  return section;
}

Section single_ca_section(const std::vector<Named>& named) {
  Section section{.title = "Contextual agreement of single frequency chunks",
                  .remark = "Measured by calibration; means over the heads of all measured layers.",
                  .table = {{"model", "measure", "heads", "best", "median", "share above half of the best"}, {}},
                  .pictures = {}};
  for (const Named& entry : named) {
    const std::string name = word(*entry.row, "model") + ", " + word(*entry.row, "criterion");
    section.table.rows.push_back({word(*entry.row, "model"), word(*entry.row, "criterion"), word(*entry.row, "heads"),
                                  fixed(number(*entry.row, "best"), 3), fixed(number(*entry.row, "median"), 3),
                                  fixed(number(*entry.row, "share_above_half"), 3)});
    if (const auto map = grid_of(*entry.row, "heatmap", name, "frequency chunk (0: the highest frequency)")) {
      section.pictures.push_back(svg_of(*map));
    }
  }
  return section;
}

}  // namespace

std::vector<std::string> variant_names(const std::vector<Json>& rows) {
  std::map<std::string, std::map<std::string, std::set<std::string>>> values;  // policy, setting -> its values
  for (const Json& row : rows) {
    for (const auto& [name, value] : row.items()) {
      if (is_setting(name, row)) values[word(row, "policy")][name].insert(shown(value));
    }
  }
  std::vector<std::string> names;
  for (const Json& row : rows) {
    std::string label = word(row, "policy");
    for (const auto& [setting, seen] : values[label.substr(0, label.find(' '))]) {
      if (seen.size() > 1 && row.contains(setting)) label += fmt::format(" {}={}", setting, word(row, setting.c_str()));
    }
    names.push_back(label);
  }
  return names;
}

std::string text_of(const Table& table) {
  std::vector<size_t> widths;
  const auto size = [](const std::string& cell) {  // characters, not bytes
    return static_cast<size_t>(
        std::ranges::count_if(cell, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
  };
  for (const std::string& name : table.header) widths.push_back(size(name));
  for (const auto& row : table.rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], size(row[i]));
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text;
    for (size_t i = 0; i < cells.size(); ++i) text += cells[i] + std::string(widths[i] - size(cells[i]) + 2, ' ');
    return text.substr(0, text.find_last_not_of(' ') + 1) + "\n";
  };
  std::string text = line(table.header);
  for (const auto& row : table.rows) text += line(row);
  return text;
}

std::string html_of(const Table& table) {
  std::string html = "<table>\n<tr>";
  for (const std::string& name : table.header) html += "<th>" + escape_xml(name) + "</th>";
  html += "</tr>\n";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (const std::string& cell : row) html += "<td>" + escape_xml(cell) + "</td>";
    html += "</tr>\n";
  }
  return html + "</table>\n";
}

std::vector<Section> sections_of(const std::vector<Json>& rows) {
  std::vector<Section> sections;
  const auto add = [&](const char* measure, const auto& make) {
    const std::vector<Named> named = of_measure(rows, measure);
    if (!named.empty()) sections.push_back(make(named));
  };
  add("kl", kl_section);
  add("ca_single", single_ca_section);
  add("ca", ca_section);
  add("needle", needle_section);
  add("passkey", [](const std::vector<Named>& named) {
    return plain_section("Pass key", "A number at a random place of a text.", named, {{"found", 0}, {"trials", 0}});
  });
  add("ruler", ruler_section);
  add("recall", [](const std::vector<Named>& named) {
    return plain_section("Multi-turn recall", "A number in the document, asked for in the last turn.", named,
                         {{"turns", 0}, {"found", 0}, {"trials", 0}});
  });
  add("longform", [](const std::vector<Named>& named) {
    return plain_section("Long generation",
                         "KL per token in the first and last quarter of a text that full attention generated; "
                         "perplexity of a policy's own text by full attention.",
                         named,
                         {{"generated", 0},
                          {"kl_first_quarter", 4},
                          {"kl_last_quarter", 4},
                          {"drift", 4},
                          {"drift_se", 4},
                          {"own_text_ppl", 2},
                          {"full_text_ppl", 2},
                          {"own_text_distinct", 3}});
  });
  add("tasks", [](const std::vector<Named>& named) {
    return plain_section("Tasks", "Scores by the data sets' own metrics, in [0, 1].", named,
                         {{"file", -1}, {"metric", -1}, {"trials", 0}, {"score_mean", 4}, {"score_se", 4}});
  });
  return sections;
}

}  // namespace fasa::cli
