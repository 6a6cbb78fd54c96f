// fasa eval recall: a fact of the document is asked for in a later turn of the conversation.
#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/eval/answers.h"
#include "cli/eval/haystack.h"
#include "cli/generate.h"
#include "cli/text_file.h"

namespace fasa::cli {
namespace {

constexpr int64_t kTalkTokens = 48;    // of an answer before the last
constexpr int64_t kAnswerTokens = 24;  // of the last
constexpr int64_t kTurnRoom = 96;      // tokens of a question with its markup

const char* const kSmallTalk[] = {
    "In one sentence, what is the text above like?", "Name one colour and say why you like it.",
    "What would be a good title for the text?", "Thank you. Is there anything else to say?"};

struct RecallOptions {
  EvalOptions eval;
  int64_t context = 4096;
  int64_t turns = 3;
  int64_t trials = 10;
  uint32_t seed = 1;
  std::string text;
};

// The markup between an answer and the next one, from the model's own template: what a conversation with one more pair of
// messages has at its end. Without a template: plain text.
std::string next_turn(const Model& model, const std::string& question) {
  if (!has_chat_template(model)) return fmt::format("\n\nQuestion: {}\nAnswer:", question);
  const std::string mark = "\x01";
  const std::string both = apply_chat_template(model, {{"user", "x"}, {"assistant", mark}, {"user", question}});
  return both.substr(both.find(mark) + mark.size());
}

Item make_item(const Model& model, const RecallOptions& options, const std::vector<std::string>& filler,
               int64_t trial) {
  Random random(options.seed * 1000003U + static_cast<uint32_t>(trial));
  Puzzle puzzle = passkey_puzzle(random, static_cast<double>(pick(random, 1000)) / 1000);
  const int64_t first = options.text.empty() ? 0 : pick(random, static_cast<int64_t>(filler.size()));
  const std::string last_question = "What is the pass key that the text mentions?";
  puzzle.question = std::string("\n") + kSmallTalk[0];
  // The document is a prompt of its own; the template's markup goes around it.
  std::string before;
  std::string after = "\nAnswer:";
  if (has_chat_template(model)) {
    const std::string mark = "\x01";
    const std::string all = apply_chat_template(model, {{"user", mark}});
    before = all.substr(0, all.find(mark));
    after = all.substr(all.find(mark) + mark.size());
  }
  const std::vector<llama_token> head = model.tokenize(before, true, true);
  const std::vector<llama_token> tail = model.tokenize(after, false, true);
  std::vector<llama_token> document =
      prompt_of(model, puzzle, options.context - static_cast<int64_t>(head.size() + tail.size()), filler, first);
  if (llama_vocab_get_add_bos(model.vocab())) document.erase(document.begin());  // head has it
  Item item;
  item.turns.push_back({head, kTalkTokens});
  std::vector<llama_token>& opening = item.turns.front().tokens;
  opening.insert(opening.end(), document.begin(), document.end());
  opening.insert(opening.end(), tail.begin(), tail.end());
  for (int64_t turn = 1; turn < options.turns; ++turn) {
    const bool last = turn + 1 == options.turns;
    const std::string question = last ? last_question : kSmallTalk[turn % std::ssize(kSmallTalk)];
    item.turns.push_back({model.tokenize(next_turn(model, question) + (last ? "The pass key is" : ""), false, true),
                          last ? kAnswerTokens : kTalkTokens});
  }
  item.score = [answers = puzzle.answers](const std::string& answer) {
    return answer.find(answers.front()) != std::string::npos ? 1.0 : 0.0;
  };
  return item;
}

void evaluate_recall(const RecallOptions& options) {
  check_policies(options.eval.common);
  const std::vector<std::string> filler =
      options.text.empty() ? noise() : sentences(read_text(options.text), options.text);
  Evaluation run(options.eval, [&](const Model& model) {
    const int64_t talk = options.turns * (kTalkTokens + kTurnRoom);
    check_context(model, options.context, talk);
    return ContextOptions{options.context + talk, num_threads(options.eval.common), 1};
  });
  Group group;
  group.settings = {{"context", options.context},
                    {"turns", options.turns},
                    {"seed", options.seed},
                    {"filler", options.text.empty() ? "noise" : hash_hex(read_text(options.text))}};
  group.count = options.trials;
  group.tokens = options.context;
  group.make = [&](int64_t i) { return make_item(run.model(), options, filler, i); };
  const std::vector<AnswerSummary> rows = run_groups(run, "recall", {group});
  if (options.eval.rows.json) return;
  for (const AnswerSummary& row : rows) {
    fmt::print("{:<14} found {} of {} in turn {}\n", lane_label(*row.row), row.row->value("found", 0), options.trials,
               options.turns);
  }
}

}  // namespace

void add_eval_recall_command(CLI::App& eval) {
  auto options = std::make_shared<RecallOptions>();
  CLI::App* command = eval.add_subcommand("recall", "Multi-turn: a number in the document, asked for in the last turn");
  add_eval_options(*command, options->eval, "full,fasa");
  command->add_option("-c,--context", options->context, "Tokens of the document")
      ->check(CLI::Range(256, 1 << 24))
      ->default_str("4096");
  command->add_option("--turns", options->turns, "Turn in which it is asked for")
      ->check(CLI::Range(2, 32))
      ->default_str("3");
  command->add_option("--trials", options->trials, "Conversations")->check(CLI::Range(1, 100000))->default_str("10");
  command->add_option("--seed", options->seed, "Seed of what is hidden")->default_str("1");
  command->add_option("--text", options->text, "Text to hide it in (default: sentences that say nothing)");
  command->footer(
      "Each policy answers all turns itself, greedily, and later questions are prefilled on its own answers. A policy "
      "that drops\n"
      "tokens for good after the first question cannot find what the last one asks for.\n\n"
      "Examples:\n"
      "  fasa eval recall --policy full,fasa --budget 256\n"
      "  fasa eval recall --context 6000 --turns 5 --trials 20 --out results.jsonl\n");
  command->callback([options] { evaluate_recall(*options); });
}

}  // namespace fasa::cli
