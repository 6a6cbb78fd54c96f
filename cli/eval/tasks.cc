// fasa eval tasks: the user's LongBench-format and GSM8K-format files.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "cli/commands.h"
#include "cli/eval/answers.h"
#include "cli/eval/task_file.h"
#include "cli/generate.h"
#include "cli/text_file.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

struct TasksOptions {
  EvalOptions eval;
  std::vector<std::string> files;
  std::string dataset;
  std::string prompts;
  int64_t limit = 0;    // questions of a file; 0: all
  int64_t context = 0;  // most tokens of a prompt; 0: the trained context
  bool chat = false;
};

struct TaskFile {
  std::string name;
  std::string hash;
  std::vector<TaskQuestion> questions;
};

// As LongBench does it: what is too long loses its middle.
std::vector<llama_token> cut_middle(std::vector<llama_token> tokens, int64_t most) {
  const auto size = static_cast<int64_t>(tokens.size());
  if (size <= most) return tokens;
  tokens.erase(tokens.begin() + most / 2, tokens.end() - (most - most / 2));
  return tokens;
}

class TasksEvaluation {
 public:
  explicit TasksEvaluation(const TasksOptions& options)
      : options_(options),
        prompts_(options.prompts.empty() ? std::map<std::string, std::string>{}
                                         : parse_prompts(read_text(options.prompts), options.prompts)),
        files_(read_files(options)),
        run_(options.eval, [&](const Model& model) {
          context_ = options.context > 0 ? options.context : model.trained_context() - most_answer_tokens();
          if (context_ + most_answer_tokens() > model.trained_context()) {
            throw Error(
                ErrorCode::kInvalidArgument,
                fmt::format("prompts of {} tokens and answers of {} exceed the trained context of {}: give a smaller "
                            "--context",
                            context_, most_answer_tokens(), model.trained_context()));
          }
          return ContextOptions{context_ + most_answer_tokens(), num_threads(options.eval.common), 1};
        }) {}

  void run() {
    std::vector<Group> groups;
    for (const TaskFile& file : files_) groups.push_back(group(file));
    const std::vector<AnswerSummary> rows = run_groups(run_, "tasks", groups);
    if (options_.eval.rows.json) return;
    fmt::print("{:<24} {:<16} {:<14} {:>6} {:>7} {:>7}\n", "file", "metric", "policy", "items", "score", "+-");
    for (const AnswerSummary& row : rows) {
      fmt::print("{:<24} {:<16} {:<14} {:>6} {:>7.2f} {:>7.2f}\n", row.row->value("file", ""),
                 row.row->value("metric", ""), lane_label(*row.row), row.group->count,
                 100 * row.row->value("score_mean", 0.0), 100 * row.row->value("score_se", 0.0));
    }
  }

 private:
  static std::vector<TaskFile> read_files(const TasksOptions& options) {
    std::vector<TaskFile> files;
    for (const std::string& path : options.files) {
      const std::string text = read_text(path);
      const std::filesystem::path name(path);
      // LongBench names a file after its dataset, in which every line names it too.
      files.push_back({name.filename().string(), hash_hex(text), parse_tasks(text, path, options.dataset)});
      if (options.limit > 0 && static_cast<int64_t>(files.back().questions.size()) > options.limit) {
        files.back().questions.resize(static_cast<size_t>(options.limit));
      }
    }
    return files;
  }

  int64_t most_answer_tokens() const {
    int64_t most = 0;
    for (const TaskFile& file : files_) {
      for (const TaskQuestion& question : file.questions) {
        most = std::max(most, find_task_kind(question.dataset).answer_tokens);
      }
    }
    return most;
  }

  Group group(const TaskFile& file) {
    const TaskKind& kind = find_task_kind(file.questions.front().dataset);
    Group result;
    result.settings = {{"file", file.name},
                       {"file_hash", file.hash},
                       {"metric", metric_name(kind.metric)},
                       {"context", context_},
                       {"chat", options_.chat},
                       {"prompts", options_.prompts.empty() ? "built in" : hash_hex(read_text(options_.prompts))}};
    result.count = static_cast<int64_t>(file.questions.size());
    result.tokens = context_ / 2;
    result.make = [this, &file](int64_t i) { return item(file.questions[static_cast<size_t>(i)]); };
    return result;
  }

  Item item(const TaskQuestion& question) const {
    std::string text = prompt_text(question, prompts_);
    if (options_.chat) text = apply_chat_template(run_.model(), {{"user", text}});
    Item result;
    result.turns.push_back({cut_middle(run_.model().tokenize(text, true, options_.chat), context_),
                            find_task_kind(question.dataset).answer_tokens});
    result.score = [question](const std::string& answer) { return score_answer(question, answer); };
    return result;
  }

  const TasksOptions& options_;
  std::map<std::string, std::string> prompts_;
  std::vector<TaskFile> files_;
  int64_t context_ = 0;
  Evaluation run_;
};

}  // namespace

void add_eval_tasks_command(CLI::App& eval) {
  auto options = std::make_shared<TasksOptions>();
  CLI::App* command =
      eval.add_subcommand("tasks", "Your LongBench-format or GSM8K-format files, by their published metrics");
  add_eval_options(*command, options->eval, "full,fasa");
  command
      ->add_option("--file", options->files, "JSONL files: {context, input, answers, dataset}, or {question, answer}")
      ->required();
  command->add_option("--dataset", options->dataset, "LongBench dataset of lines that name none: decides the metric");
  command->add_option("--prompts", options->prompts, "Prompts by dataset: LongBench's config/dataset2prompt.json");
  command->add_option("--limit", options->limit, "Questions of each file (default: all)")
      ->check(CLI::Range(0, 1 << 30));
  command
      ->add_option("-c,--context", options->context,
                   "Most tokens of a prompt; longer ones lose their middle (default: the "
                   "trained context)")
      ->check(CLI::Range(16, 1 << 24));
  command->add_flag("--chat", options->chat, "Put the prompt into the model's chat template");
  command->footer(
      "Metrics: F1 (narrativeqa, qasper, multifieldqa_en, hotpotqa, 2wikimqa, musique, triviaqa), ROUGE-L (gov_report, "
      "qmsum,\n"
      "multi_news, samsum), classification (trec), retrieval (passage_retrieval_en), count (passage_count), edit "
      "similarity\n"
      "(lcc, repobench-p), exact match of the last number (GSM8K). Scores are printed times 100, as LongBench does.\n\n"
      "Examples:\n"
      "  fasa eval tasks --file qasper.jsonl --prompts dataset2prompt.json --policy full,fasa --budget 256\n"
      "  fasa eval tasks --file test.jsonl --limit 100 --chat\n");
  command->callback([options] {
    check_policies(options->eval.common);
    TasksEvaluation(*options).run();
  });
}

}  // namespace fasa::cli
