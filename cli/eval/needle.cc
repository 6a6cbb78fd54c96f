// fasa eval needle and passkey: is a hidden fact found again, depth by length?
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <memory>

#include "cli/commands.h"
#include "cli/eval/answers.h"
#include "cli/eval/haystack.h"
#include "cli/eval/picture.h"
#include "cli/progress.h"
#include "cli/text_file.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr int64_t kMostAnswerTokens = 16;

struct NeedleOptions {
  EvalOptions eval;
  std::string kind = "needle";
  std::vector<int64_t> lengths = {1024, 2048, 4096};
  std::vector<double> depths = {0, 25, 50, 75, 100};  // percent
  bool anywhere = false;                              // passkey: a random depth for each trial
  int64_t trials = 3;
  uint32_t seed = 1;
  std::string text;
  std::string picture;
};

class NeedleEvaluation {
 public:
  explicit NeedleEvaluation(const NeedleOptions& options)
      : options_(options),
        filler_(options.text.empty() ? noise() : sentences(read_text(options.text), options.text)),
        run_(options.eval, [&](const Model& model) {
          const int64_t longest = *std::ranges::max_element(options.lengths);
          check_context(model, longest, kMostAnswerTokens);
          return ContextOptions{longest + kMostAnswerTokens, num_threads(options.eval.common), 1};
        }) {}

  void run() {
    for (const int64_t length : options_.lengths) {
      for (const double depth : options_.anywhere ? std::vector<double>{-1} : options_.depths) {
        groups_.push_back(group(length, depth));
      }
    }
    const std::vector<AnswerSummary> rows = run_groups(run_, options_.anywhere ? "passkey" : "needle", groups_);
    for (const Lane& lane : run_.session().lanes()) print(lane, rows);
  }

 private:
  Group group(int64_t length, double depth) {
    Group result;
    result.settings = {{"kind", options_.kind},
                       {"context", length},
                       {"seed", options_.seed},
                       {"filler", options_.text.empty() ? "noise" : hash_hex(read_text(options_.text))}};
    if (depth >= 0) result.settings["depth"] = depth;
    result.count = options_.trials;
    result.tokens = length;
    result.make = [this, length, depth](int64_t i) {
      Random random(options_.seed * 1000003U + static_cast<uint32_t>(i));
      const double place = depth >= 0 ? depth / 100 : static_cast<double>(pick(random, 1000)) / 1000;
      const int64_t first = pick(random, static_cast<int64_t>(filler_.size()));
      const Puzzle puzzle = options_.kind == "passkey" ? passkey_puzzle(random, place) : needle_puzzle(random, place);
      return item_of(run_.model(), puzzle, length, filler_, options_.text.empty() ? 0 : first);
    };
    return result;
  }

  // The lane's grid: depths down, lengths across.
  void print(const Lane& lane, const std::vector<AnswerSummary>& rows) {
    Heatmap map;
    map.title = fmt::format("{}: {}", options_.kind, lane_label(run_.lane_settings(lane)));
    map.x_label = "tokens";
    map.y_label = "depth of the needle, %";
    for (const int64_t length : options_.lengths) map.x.push_back(std::to_string(length));
    std::vector<std::vector<double>> by_length;
    int64_t found = 0;
    int64_t trials = 0;
    for (const AnswerSummary& row : rows) {
      if (row.lane != &lane) continue;
      found += row.row->value("found", int64_t{0});
      trials += row.group->count;
      map.values.push_back(row.row->value("score_mean", 0.0));
    }
    const size_t depths = options_.anywhere ? 1 : options_.depths.size();
    map = transposed(map, options_.lengths.size(), depths);
    for (const double depth : options_.depths) map.y.push_back(fmt::format("{:g}", depth));
    if (options_.anywhere) map.y = {"any"};
    if (!options_.eval.rows.json) {
      fmt::print("{}: found {} of {}\n{}", lane_label(run_.lane_settings(lane)), found, trials, text_of(map));
    }
    if (options_.picture.empty()) return;
    const std::string path = picture_path(options_.picture, lane_label(run_.lane_settings(lane)));
    write_picture(path, svg_of(map));
    say(fmt::format("Wrote {}", path));
  }

  const NeedleOptions& options_;
  std::vector<std::string> filler_;
  Evaluation run_;
  std::vector<Group> groups_;
};

void add_shared(CLI::App& command, NeedleOptions& options) {
  command.add_option("--trials", options.trials, "Texts to try for each length and depth")
      ->check(CLI::Range(1, 100000))
      ->default_str(std::to_string(options.trials));
  command.add_option("--seed", options.seed, "Seed of what is hidden")->default_str("1");
}

}  // namespace

void add_eval_needle_command(CLI::App& eval) {
  auto options = std::make_shared<NeedleOptions>();
  CLI::App* command =
      eval.add_subcommand("needle", "A fact hidden in a long text: found again, at each depth and length?");
  add_eval_options(*command, options->eval, "full,fasa");
  command->add_option("--kind", options->kind, "needle (a sentence about a city) or passkey (a number)")
      ->check(CLI::IsMember({"needle", "passkey"}))
      ->default_str("needle");
  command->add_option("--length", options->lengths, "Tokens of the text")
      ->delimiter(',')
      ->check(CLI::Range(128, 1 << 24))
      ->default_str("1024,2048,4096");
  command->add_option("--depth", options->depths, "Where the fact stands, in percent of the text")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 100.0))
      ->default_str("0,25,50,75,100");
  command->add_option("--text", options->text, "Text to hide it in (default: sentences that say nothing)");
  command->add_option("--picture", options->picture, "Draw each policy's grid here (SVG; the policy's name is added)");
  add_shared(*command, *options);
  command->footer(
      "Each text is read once by plain llama.cpp; each policy answers from that state, greedily. Compare the policies "
      "with\n"
      "`full`: a small model misses some by itself.\n\n"
      "Examples:\n"
      "  fasa eval needle --policy full,fasa,streaming --budget 256\n"
      "  fasa eval needle --kind passkey --length 4096,8000 --trials 20 --text book.txt --picture needle.svg\n");
  command->callback([options] {
    check_policies(options->eval.common);
    NeedleEvaluation(*options).run();
  });
}

void add_eval_passkey_command(CLI::App& eval) {
  auto options = std::make_shared<NeedleOptions>();
  options->kind = "passkey";
  options->anywhere = true;
  options->trials = 10;
  options->lengths = {4096};
  CLI::App* command = eval.add_subcommand("passkey", "Retrieval of a number hidden at a random place of a long text");
  add_eval_options(*command, options->eval, "full,fasa");
  command->add_option("-c,--context", options->lengths, "Tokens of the text")
      ->delimiter(',')
      ->check(CLI::Range(128, 1 << 24))
      ->default_str("4096");
  add_shared(*command, *options);
  command->footer(
      "The text is read once by plain llama.cpp; each policy answers from that state, greedily.\n\n"
      "Examples:\n"
      "  fasa eval passkey\n"
      "  fasa eval passkey --context 4096,8000 --trials 20 --policy full,fasa,oracle --budget 128,256\n");
  command->callback([options] {
    check_policies(options->eval.common);
    NeedleEvaluation(*options).run();
  });
}

}  // namespace fasa::cli
