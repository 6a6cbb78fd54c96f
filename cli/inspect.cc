// fasa inspect: what a profile says, as a table, a heatmap in the terminal, JSON or a picture.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/paths.h"
#include "cli/progress.h"
#include "fasa/error.h"
#include "fasa/policy.h"
#include "fasa/profile.h"

namespace fasa::cli {
namespace {

namespace fs = std::filesystem;

struct InspectOptions {
  std::string profile;
  std::string criterion = PolicySettings().criterion;
  std::string n_tip = "50%";
  bool per_head = false;
  bool json = false;
  std::string heatmap;
};

PolicySettings settings_of(const InspectOptions& options) {
  PolicySettings settings;
  settings.criterion = options.criterion;
  settings.share_fcs = !options.per_head;
  char* end = nullptr;
  const double value = std::strtod(options.n_tip.c_str(), &end);
  const bool percent = std::string(end) == "%";
  if (end == options.n_tip.c_str() || !(value > 0) || (percent && value > 100) ||
      (!percent && (*end != '\0' || value != std::floor(value) || value > 4096))) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--n-tip {} is neither a share of a head's frequency chunks (25%) nor a "
                            "count of them (8)",
                            options.n_tip));
  }
  settings.fc_count = percent ? 0 : static_cast<int64_t>(value);
  if (percent) settings.fc_fraction = value / 100;
  return settings;
}

// What one layer's dominant FCs amount to.
struct LayerView {
  std::vector<std::vector<int32_t>> fcs;  // [planes], best first
  std::vector<double> share;              // [planes] of the criterion's sum over all FCs
  double overlap = 1;                     // of the query heads' own choices, mean over pairs
};

double overlap_of(const std::vector<std::vector<int32_t>>& choices) {
  double sum = 0;
  int64_t pairs = 0;
  for (size_t a = 0; a < choices.size(); ++a) {
    for (size_t b = a + 1; b < choices.size(); ++b) {
      int64_t common = 0;
      for (const int32_t fc : choices[a]) common += std::ranges::count(choices[b], fc);
      sum += static_cast<double>(common) / static_cast<double>(choices[a].size());
      ++pairs;
    }
  }
  return pairs == 0 ? 1.0 : sum / static_cast<double>(pairs);
}

LayerView view_of(const LayerProfile& layer, const PolicySettings& settings) {
  LayerView view;
  view.fcs = dominant_fcs(layer, settings);
  const std::vector<float>& measure = layer.measures.at(settings.criterion);
  const size_t fcs = static_cast<size_t>(num_fcs(layer.rope));
  const size_t group = static_cast<size_t>(layer.num_q_heads) / view.fcs.size();
  for (size_t plane = 0; plane < view.fcs.size(); ++plane) {
    double share = 0;  // mean over the plane's heads
    for (size_t head = plane * group; head < (plane + 1) * group; ++head) {
      double all = 0;
      double kept = 0;
      for (size_t fc = 0; fc < fcs; ++fc) all += measure[head * fcs + fc];
      for (const int32_t fc : view.fcs[plane]) kept += measure[head * fcs + fc];
      share += all > 0 ? kept / all / static_cast<double>(group) : 0;
    }
    view.share.push_back(share);
  }
  PolicySettings own = settings;
  own.share_fcs = false;
  view.overlap = overlap_of(dominant_fcs(layer, own));
  return view;
}

// Mean over heads of the measure normalised by the head's sum: [num_fcs].
std::vector<double> layer_row(const LayerProfile& layer, const std::string& criterion) {
  const std::vector<float>& measure = layer.measures.at(criterion);
  const size_t fcs = static_cast<size_t>(num_fcs(layer.rope));
  std::vector<double> row(fcs);
  for (size_t head = 0; head < measure.size(); head += fcs) {
    double all = 0;
    for (size_t fc = 0; fc < fcs; ++fc) all += measure[head + fc];
    if (all <= 0) continue;
    for (size_t fc = 0; fc < fcs; ++fc) {
      row[fc] += measure[head + fc] / all / static_cast<double>(layer.num_q_heads);
    }
  }
  return row;
}

void print_heatmap(const Profile& profile, const std::string& criterion) {
  static const char* const kShades[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  constexpr size_t kMaxColumns = 128;
  fmt::print(
      "\nShare of each frequency chunk (columns, FC 0 = highest frequency at the left), mean "
      "over heads,\n█ = the layer's largest\n");
  for (const LayerProfile& layer : profile.layers) {
    if (layer.measures.empty()) {
      fmt::print("{:>5} (sliding window)\n", layer.layer);
      continue;
    }
    const std::vector<double> row = layer_row(layer, criterion);
    const size_t per_column = (row.size() + kMaxColumns - 1) / kMaxColumns;
    const double top = *std::ranges::max_element(row);
    std::string line;
    for (size_t fc = 0; fc < row.size(); fc += per_column) {
      double value = 0;
      for (size_t i = fc; i < std::min(row.size(), fc + per_column); ++i) {
        value = std::max(value, row[i]);
      }
      line += kShades[top > 0 ? static_cast<int>(std::lround(8 * value / top)) : 0];
    }
    fmt::print("{:>5} |{}|\n", layer.layer, line);
  }
}

void print_table(const Profile& profile, const InspectOptions& options, const PolicySettings& settings) {
  fmt::print("{} ({}), {} layers\n", profile.model_name.empty() ? "unnamed" : profile.model_name, profile.architecture,
             profile.layers.size());
  for (const auto& [key, value] : profile.provenance) fmt::print("  {}: {}\n", key, value);
  fmt::print(
      "\nDominant frequency chunks by {}, best first; share: how much of the {} over all "
      "chunks they hold;\noverlap: how far the heads of a layer choose the same.\n\n",
      options.criterion, options.criterion);
  fmt::print("{:>5} {:>6} {:>6} {:>8}  chunks\n", "layer", options.per_head ? "head" : "group", "share", "overlap");
  for (const LayerProfile& layer : profile.layers) {
    if (layer.measures.empty()) {
      fmt::print("{:>5}      -      -        -  sliding window, stays dense\n", layer.layer);
      continue;
    }
    const LayerView view = view_of(layer, settings);
    for (size_t plane = 0; plane < view.fcs.size(); ++plane) {
      fmt::print("{:>5} {:>6} {:>5.0f}% {:>8}  {}\n", plane == 0 ? std::to_string(layer.layer) : "", plane,
                 100 * view.share[plane], plane == 0 ? fmt::format("{:.0f}%", 100 * view.overlap) : "",
                 fmt::join(view.fcs[plane], " "));
    }
  }
}

void print_json(const Profile& profile, const InspectOptions& options, const PolicySettings& settings) {
  nlohmann::ordered_json root = {{"profile", options.profile},
                                 {"architecture", profile.architecture},
                                 {"model_name", profile.model_name},
                                 {"criterion", options.criterion},
                                 {"per_head", options.per_head},
                                 {"provenance", profile.provenance},
                                 {"layers", nlohmann::ordered_json::array()}};
  for (const LayerProfile& layer : profile.layers) {
    nlohmann::ordered_json row = {{"layer", layer.layer},
                                  {"num_q_heads", layer.num_q_heads},
                                  {"num_kv_heads", layer.num_kv_heads},
                                  {"num_fcs", num_fcs(layer.rope)},
                                  {"sliding_window", layer.sliding_window}};
    if (!layer.measures.empty()) {
      const LayerView view = view_of(layer, settings);
      row["overlap"] = view.overlap;
      row["share"] = view.share;
      row["fcs"] = view.fcs;
    }
    root["layers"].push_back(std::move(row));
  }
  fmt::print("{}\n", root.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

std::string plot_script() {
  const fs::path here = executable_dir();
  for (const fs::path& path : {here / "../share/fasa/plot_profile.py", here / "../../../scripts/plot_profile.py"}) {
    std::error_code ignored;
    if (fs::is_regular_file(path, ignored)) return fs::weakly_canonical(path).string();
  }
  throw Error(ErrorCode::kNotFound,
              "the script plot_profile.py, which draws the picture, is not installed beside this "
              "program: run it from the source tree's scripts");
}

void draw(const InspectOptions& options) {
  const std::string script = plot_script();
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    execlp("python3", "python3", script.c_str(), options.profile.c_str(), options.heatmap.c_str(), "--criterion",
           options.criterion.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const int code = child > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
  if (code == 0) return;
  if (code == 127) {
    throw Error(ErrorCode::kNotFound,
                "python3, which draws the picture, is not here: install python3 and "
                "python3-matplotlib (the heatmap in the terminal needs neither)");
  }
  if (code == 3) {
    throw Error(ErrorCode::kNotFound,
                "matplotlib, which draws the picture, is not here: install the package "
                "python3-matplotlib or `pip install matplotlib` (the heatmap in the terminal needs "
                "neither)");
  }
  throw Error(ErrorCode::kIo, fmt::format("the picture {} could not be drawn: see the message above", options.heatmap));
}

void run_inspect(const InspectOptions& options) {
  const PolicySettings settings = settings_of(options);
  const Profile profile = load_profile(options.profile);
  for (const LayerProfile& layer : profile.layers) {
    if (!layer.measures.empty()) dominant_fcs(layer, settings);  // refuses an unknown criterion
  }
  if (options.json) {
    print_json(profile, options, settings);
  } else {
    print_table(profile, options, settings);
    print_heatmap(profile, options.criterion);
  }
  if (options.heatmap.empty()) return;
  draw(options);
  say(fmt::format("Wrote {}", options.heatmap));
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      app.add_subcommand("inspect", "Show which frequency chunks dominate per layer and head in a profile");
  command->add_option("profile", options->profile, "Profile, as `fasa calibrate` writes it")->required();
  command
      ->add_option("--criterion", options->criterion,
                   "Measure to rank by: energy, variance, ca64, ca256, ca512, ca1024")
      ->capture_default_str();
  command->add_option("--n-tip", options->n_tip, "Chunks to keep: a share of a head's (25%) or a count (8)")
      ->capture_default_str();
  command->add_flag("--per-head", options->per_head, "A row for each query head, not for each KV group");
  command->add_flag("--json", options->json, "Print one JSON object instead of the table");
  command->add_option("--heatmap", options->heatmap,
                      "Also draw a picture (PNG, SVG or PDF by its name; needs python3 with "
                      "matplotlib)");
  command->footer(
      "Examples:\n"
      "  fasa inspect model.fasa.json\n"
      "  fasa inspect model.fasa.json --n-tip 8 --heatmap model.png\n");
  command->callback([options] { run_inspect(*options); });
}

}  // namespace fasa::cli
