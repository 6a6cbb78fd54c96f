// fasa calibrate: texts -> profile.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/capture.h"
#include "cli/commands.h"
#include "cli/engine.h"
#include "cli/options.h"
#include "cli/paths.h"
#include "cli/progress.h"
#include "cli/text_windows.h"
#include "fasa/error.h"
#include "fasa/profile.h"

namespace fasa::cli {
namespace {

namespace fs = std::filesystem;

struct CalibrateOptions {
  std::string model;
  std::vector<std::string> texts;
  std::string output;
  int64_t context = 4096;
  int64_t windows = 0;
  int64_t queries = 32;
  int threads = 0;
  bool pca = false;
  bool json = false;
  bool verbose = false;
};

constexpr int64_t kMinContext = 512;  // for CA@256 to mean something in the last quarter

// A file that can be made, so that minutes of work are not lost at the end.
std::string output_path(const CalibrateOptions& options, const std::string& model) {
  const auto writable = [](const fs::path& path) {
    const fs::path dir = path.has_parent_path() ? path.parent_path() : fs::path(".");
    std::error_code ignored;
    return fs::is_directory(dir, ignored) && access(dir.c_str(), W_OK) == 0 && !fs::is_directory(path, ignored);
  };
  if (!options.output.empty()) {
    if (writable(options.output)) return options.output;
    throw Error(ErrorCode::kIo,
                fmt::format("the profile cannot be written to {}: choose another place with -o", options.output));
  }
  const fs::path beside = profile_path_beside(model);
  if (writable(beside)) return beside.string();
  const fs::path local = beside.filename();
  if (!writable(local)) {
    throw Error(ErrorCode::kIo, fmt::format("neither {} nor the current directory can be written to: choose a "
                                            "place for the profile with -o",
                                            beside.string()));
  }
  say(fmt::format("The model's directory is read-only: the profile goes to ./{}", local.string()));
  return local.string();
}

void check_numbers(const CalibrateOptions& options) {
  const auto refuse = [](const std::string& what) { throw Error(ErrorCode::kInvalidArgument, what); };
  if (options.context < kMinContext || options.context > (int64_t{1} << 24)) {
    refuse(fmt::format("--context {} is outside {}..{}: 4096 is a good choice", options.context, kMinContext,
                       int64_t{1} << 24));
  }
  if (options.queries < 1 || options.queries > options.context / 4) {
    refuse(fmt::format("--queries {} is outside 1..{}, a quarter of the context: 32 is enough", options.queries,
                       options.context / 4));
  }
  if (options.windows < 0 || options.windows > 4096) {
    refuse(fmt::format("--windows {} is outside 1..4096", options.windows));
  }
  if (options.threads < 0 || options.threads > 1024) {
    refuse(fmt::format("--threads {} is outside 1..1024", options.threads));
  }
}

Profile calibrate(const CalibrateOptions& options, const Model& model, int threads,
                  const std::vector<std::vector<int32_t>>& windows) {
  Capture capture(model, {options.context, options.queries, threads, options.pca});
  constexpr int64_t kSteps = 10000;
  Progress progress("Calibrating", kSteps * static_cast<int64_t>(windows.size()));
  for (size_t w = 0; w < windows.size(); ++w) {
    capture.add_window(windows[w], [&](double done) {
      progress.update(static_cast<int64_t>((static_cast<double>(w) + done) * kSteps));
    });
  }
  progress.finish();
  Profile profile;
  profile.architecture = model.meta("general.architecture");
  profile.model_name = model.meta("general.name");
  profile.layers = capture.layers();
  std::string names;
  for (const std::string& text : options.texts) {
    names += (names.empty() ? "" : ", ") + fs::path(text).filename().string();
  }
  if (names.size() > 1000) names = fmt::format("{} files", options.texts.size());
  profile.provenance = {{"context", std::to_string(options.context)},
                        {"queries_per_window", std::to_string(options.queries)},
                        {"texts", names},
                        {"windows", std::to_string(windows.size())}};
  return profile;
}

void run_calibrate(const CalibrateOptions& options) {
  check_numbers(options);
  const TextFiles texts(options.texts);
  const std::string model_path = find_model(options.model);
  const std::string output = output_path(options, model_path);
  start_llama(options.verbose);
  const Model model(model_path);
  const auto windows = choose_windows(texts, options.windows, options.context,
                                      [&](const std::string& text) { return model.tokenize(text, true, false); });
  CommonOptions common;
  common.threads = options.threads;
  const int threads = num_threads(common);
  if (!options.json) {
    say(fmt::format("Calibrating {} on {} window{} of {} tokens, {} queries each, {} thread{}",
                    fs::path(model_path).filename().string(), windows.size(), windows.size() == 1 ? "" : "s",
                    options.context, options.queries, threads, threads == 1 ? "" : "s"));
  }
  const Profile profile = calibrate(options, model, threads, windows);
  save_profile(profile, output);
  int64_t measured = 0;
  for (const LayerProfile& layer : profile.layers) measured += layer.measures.empty() ? 0 : 1;
  if (options.json) {
    const nlohmann::ordered_json row = {{"profile", output},
                                        {"model", model_path},
                                        {"layers", profile.layers.size()},
                                        {"layers_measured", measured},
                                        {"windows", windows.size()},
                                        {"context", options.context},
                                        {"queries", static_cast<int64_t>(windows.size()) * options.queries},
                                        {"threads", threads}};
    fmt::print("{}\n", row.dump());
    return;
  }
  say(fmt::format(
      "Wrote {}: {} of {} layers measured{}. Look at it: fasa inspect {}", output, measured, profile.layers.size(),
      measured == static_cast<int64_t>(profile.layers.size()) ? "" : " (the others have a sliding window)", output));
}

}  // namespace

void add_calibrate_command(CLI::App& app) {
  auto options = std::make_shared<CalibrateOptions>();
  CLI::App* command =
      app.add_subcommand("calibrate", "Find a model's dominant frequency chunks from any text; writes its profile");
  command->add_option("-m,--model", options->model, "GGUF model (default: FASA_MODEL, else the demo's SmolLM2-135M)");
  command
      ->add_option("--text", options->texts,
                   "Text files to read; any long prose, code or dialogue serves, and only as much "
                   "as is needed is read")
      ->required();
  command->add_option("-o,--output", options->output,
                      "Where to write the profile (default: MODEL.fasa.json beside the model, else "
                      "in the current directory)");
  command->add_option("--context", options->context, "Tokens of a window")->capture_default_str();
  command->add_option("--windows", options->windows,
                      "Windows, spread evenly over the text (default: 4, or as many as fit)");
  command->add_option("--queries", options->queries, "Decode positions measured in the last quarter of each window")
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "Threads (default: the physical cores)");
  command->add_flag("--pca", options->pca,
                    "Measure the keys' principal components too, for `--policy loki`: a much larger profile");
  command->add_flag("--json", options->json, "Print a summary as one JSON object on stdout");
  command->add_flag("--verbose", options->verbose, "Show llama.cpp's messages");
  command->footer(
      "Once per model, a few minutes; all quantisations of a model share one profile, and it\n"
      "serves every context length, budget and --n-tip.\n"
      "The same input and number of threads give the same bytes.\n\n"
      "Examples:\n"
      "  fasa calibrate --text book.txt code.py                     the demo's model\n"
      "  fasa calibrate -m model.gguf --text book.txt -o model.fasa.json\n");
  command->callback([options] { run_calibrate(*options); });
}

}  // namespace fasa::cli
