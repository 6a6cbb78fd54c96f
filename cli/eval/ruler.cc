// fasa eval ruler: RULER-style synthetic tasks at given lengths.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "cli/eval/answers.h"
#include "cli/eval/haystack.h"
#include "cli/text_file.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr int64_t kMostRulerTokens = 60;

struct RulerOptions {
  EvalOptions eval;
  std::vector<std::string> tasks;
  std::vector<int64_t> lengths = {4096};
  int64_t trials = 10;
  uint32_t seed = 1;
  std::string text;
};

const RulerTask& find_task(const std::string& name) {
  std::string known;
  for (const RulerTask& task : ruler_tasks()) {
    if (name == task.name) return task;
    known += (known.empty() ? "" : ", ") + std::string(task.name);
  }
  throw Error(ErrorCode::kInvalidArgument, fmt::format("there is no task '{}': choose of {}", name, known));
}

void evaluate_ruler(const RulerOptions& options) {
  check_policies(options.eval.common);
  std::vector<const RulerTask*> tasks;
  for (const std::string& name : options.tasks) tasks.push_back(&find_task(name));
  if (tasks.empty()) {
    for (const RulerTask& task : ruler_tasks()) tasks.push_back(&task);
  }
  const std::vector<std::string> filler =
      options.text.empty() ? noise() : sentences(read_text(options.text), options.text);
  Evaluation run(options.eval, [&](const Model& model) {
    const int64_t longest = *std::ranges::max_element(options.lengths);
    check_context(model, longest, kMostRulerTokens);
    return ContextOptions{longest + kMostRulerTokens, num_threads(options.eval.common), 1};
  });
  std::vector<Group> groups;
  for (const int64_t length : options.lengths) {
    for (const RulerTask* task : tasks) {
      Group group;
      group.settings = {{"task", task->name},
                        {"context", length},
                        {"seed", options.seed},
                        {"filler", options.text.empty() ? "noise" : hash_hex(read_text(options.text))}};
      group.count = options.trials;
      group.tokens = length;
      group.make = [&, length, task](int64_t i) {
        Random random(options.seed * 1000003U + static_cast<uint32_t>(i));
        const Puzzle puzzle = task->make(random, length);
        const int64_t first = options.text.empty() ? 0 : pick(random, static_cast<int64_t>(filler.size()));
        return item_of(run.model(), puzzle, length, filler, first);
      };
      groups.push_back(std::move(group));
    }
  }
  const std::vector<AnswerSummary> rows = run_groups(run, "ruler", groups);
  if (options.eval.rows.json) return;
  fmt::print("{:<12} {:>8} {:<14} {:>7} {:>7}\n", "task", "tokens", "policy", "score", "+-");
  for (const AnswerSummary& row : rows) {
    fmt::print("{:<12} {:>8} {:<14} {:>7.3f} {:>7.3f}\n", row.row->value("task", ""), row.row->value("context", 0),
               lane_label(*row.row), row.row->value("score_mean", 0.0), row.row->value("score_se", 0.0));
  }
}

}  // namespace

void add_eval_ruler_command(CLI::App& eval) {
  auto options = std::make_shared<RulerOptions>();
  CLI::App* command = eval.add_subcommand("ruler", "RULER-style tasks: keys, values, queries, variables, word counts");
  add_eval_options(*command, options->eval, "full,fasa");
  std::string names;
  for (const RulerTask& task : ruler_tasks())
    names += fmt::format("{}{} ({})", names.empty() ? "" : ", ", task.name, task.meaning);
  command->add_option("--task", options->tasks, "Of " + names)->delimiter(',')->default_str("all");
  command->add_option("--length", options->lengths, "Tokens of a prompt")
      ->delimiter(',')
      ->check(CLI::Range(256, 1 << 24))
      ->default_str("4096");
  command->add_option("--trials", options->trials, "Prompts for each task and length")
      ->check(CLI::Range(1, 100000))
      ->default_str("10");
  command->add_option("--seed", options->seed, "Seed of the prompts")->default_str("1");
  command->add_option("--text", options->text,
                      "Text to hide keys and variables in (default: sentences that say nothing)");
  command->footer(
      "The score of a prompt is the share of the wanted words or numbers that the answer contains. Small models are "
      "poor at\n"
      "most of these tasks: compare each policy with `full`.\n\n"
      "Examples:\n"
      "  fasa eval ruler --policy full,fasa --budget 256\n"
      "  fasa eval ruler --task multikey,tracking --length 4096,8000 --trials 20 --out results.jsonl\n");
  command->callback([options] { evaluate_ruler(*options); });
}

}  // namespace fasa::cli
