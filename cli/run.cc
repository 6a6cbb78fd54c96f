// fasa run: one answer, or a conversation.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/engine.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/run_options.h"
#include "cli/session.h"
#include "cli/text_file.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kChatContext = 8192;  // without -c

void print_piece(const std::string& piece) {
  std::fputs(piece.c_str(), stdout);
  std::fflush(stdout);
}

std::string with_document(const RunOptions& options, const std::string& question) {
  return options.file.empty() ? question : read_text(options.file) + "\n\n" + question;
}

void say_speed(const Lane& lane, int64_t prompt, double prompt_seconds, const Generation& answer) {
  std::string line =
      fmt::format("[{}{}: {} prompt tokens in {:.1f} s, {} tokens", lane.policy,
                  lane.settings.kind == PolicyKind::kFull ? "" : fmt::format(", budget {}", lane.settings.budget),
                  prompt, prompt_seconds, answer.tokens.size());
  if (!answer.token_ms.empty()) {
    line += fmt::format(" at {:.1f} tokens/s", 1000 / mean(answer.token_ms));
  }
  say(line + "]");
}

// Prefills what `context` does not hold yet and generates.
Generation answer_to(const RunOptions& options, Session& session, Lane& lane, Sampler& sampler,
                     const std::vector<llama_token>& tokens, size_t held) {
  LlamaContext& context = *lane.context;
  const auto start = Clock::now();
  const auto rest = std::span(tokens).subspan(held);
  bool complete = false;
  {
    Progress progress("reading the prompt", static_cast<int64_t>(rest.size()));
    complete = context.prefill(rest, [&](int64_t done) { progress.update(done); });
  }
  const std::chrono::duration<double> spent = Clock::now() - start;
  if (!complete) return {{}, {}, true};
  Generation answer = generate(session.model(), context, sampler, options.limit, options.ignore_end, print_piece);
  fmt::print("\n");
  std::fflush(stdout);
  say_speed(lane, static_cast<int64_t>(rest.size()), spent.count(), answer);
  return answer;
}

void run_once(const RunOptions& options) {
  std::vector<llama_token> tokens;
  Session session(
      options.common,
      [&](const Model& model) {
        tokens = prompt_tokens(options, model);
        return ContextOptions{context_size(options, model, static_cast<int64_t>(tokens.size())),
                              num_threads(options.common), 1};
      },
      Session::Full::kNoReference);
  StopOnInterrupt stop;
  Sampler sampler(options.sampling);
  answer_to(options, session, session.lanes().front(), sampler, tokens, 0);
}

class Chat {
 public:
  explicit Chat(const RunOptions& options)
      : options_(options),
        session_(
            options.common,
            [&](const Model& model) {
              const int64_t wanted =
                  options.context > 0 ? options.context : std::min<int64_t>(model.trained_context(), kChatContext);
              return ContextOptions{wanted, num_threads(options.common), 1};
            },
            Session::Full::kNoReference),
        sampler_(options.sampling) {
    reset();
    apply_chat_template(session_.model(), {{"user", "Hello"}});  // refuse before the first question
  }

  void run() {
    say("Ask; Ctrl-C stops an answer, /clear forgets, /exit or Ctrl-D ends.");
    bool first = !options_.file.empty();
    for (std::string line = options_.prompt;; line.clear()) {
      if (line.empty() && !read_line(line)) break;
      if (line == "/exit") break;
      if (line == "/clear") {
        reset();
        first = !options_.file.empty();
        continue;
      }
      if (line.empty()) continue;
      messages_.push_back({"user", first ? with_document(options_, line) : line});
      if (turn()) {
        first = false;
      } else {
        messages_.pop_back();
      }
    }
  }

 private:
  void reset() {
    messages_.clear();
    if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  }

  static bool read_line(std::string& line) {
    if (isatty(STDIN_FILENO)) {
      fmt::print("\n> ");
      std::fflush(stdout);
    }
    return static_cast<bool>(std::getline(std::cin, line));
  }

  bool turn() {
    LlamaContext& context = *session_.lanes().front().context;
    const std::vector<llama_token> tokens =
        session_.model().tokenize(apply_chat_template(session_.model(), messages_), true, true);
    const int64_t room = context.capacity() - static_cast<int64_t>(tokens.size());
    if (room < 1) {
      say(
          fmt::format("The conversation has {} tokens and the context holds {}: /clear, or start "
                      "again with a larger -c.",
                      tokens.size(), context.capacity()));
      return false;
    }
    // All but the last token of what both have: its logits must be made again.
    const size_t most = std::min(held_.size(), tokens.size() - 1);
    const auto same = static_cast<size_t>(
        std::mismatch(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(most), tokens.begin()).first -
        held_.begin());
    context.truncate(static_cast<int64_t>(same));
    StopOnInterrupt stop;
    const Generation answer = answer_to(options_, session_, session_.lanes().front(), sampler_, tokens, same);
    held_ = tokens;
    held_.insert(held_.end(), answer.tokens.begin(), answer.tokens.end());
    held_.resize(static_cast<size_t>(context.size()));
    messages_.push_back({"assistant", session_.model().text(answer.tokens)});
    return true;
  }

  const RunOptions& options_;
  Session session_;
  Sampler sampler_;
  std::vector<Message> messages_;
  std::vector<llama_token> held_;  // the context's tokens
};

void run(const RunOptions& options) {
  check_policies(options.common);
  if (options.compare) {
    run_compare(options);
  } else if (options.chat || (options.prompt.empty() && isatty(STDIN_FILENO))) {
    Chat(options).run();
  } else {
    run_once(options);
  }
}

}  // namespace

std::vector<llama_token> prompt_tokens(const RunOptions& options, const Model& model) {
  std::string question = options.prompt;
  if (question.empty() && !isatty(STDIN_FILENO)) {
    question.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  if (question.empty() && options.file.empty()) {
    throw Error(ErrorCode::kInvalidArgument, "there is no prompt: give one with -p, or --chat");
  }
  const std::string text = with_document(options, question);
  const bool chat = !options.raw && has_chat_template(model);
  if (!options.raw && !chat) say("This model has no chat template: the prompt is given as it is.");
  std::vector<Message> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", text});
  std::vector<llama_token> tokens = model.tokenize(chat ? apply_chat_template(model, messages) : text, true, chat);
  if (tokens.empty()) throw Error(ErrorCode::kInvalidArgument, "the prompt is empty: give one with -p");
  return tokens;
}

int64_t context_size(const RunOptions& options, const Model& model, int64_t prompt) {
  const int64_t needed = prompt + options.limit;
  const int64_t most = options.context > 0 ? options.context : model.trained_context();
  if (needed > most) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("the prompt's {} tokens and an answer of {} need {}, but the context "
                            "{} {}: give a shorter document, fewer tokens with -n, or a larger -c",
                            prompt, options.limit, needed,
                            options.context > 0 ? "given with -c holds" : "this model was trained for holds", most));
  }
  if (most > model.trained_context() && needed > model.trained_context()) {
    say(fmt::format("The text goes beyond the {} tokens that the model was trained for.", model.trained_context()));
  }
  return needed;
}

void add_run_command(CLI::App& app) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand("run", "Answer a question, about a long document if one is given, or chat");
  command->add_option("-p,--prompt", options->prompt, "The question (default: stdin, or a chat)");
  command->add_option("-f,--file", options->file, "A document to put before the question");
  command->add_flag("--compare", options->compare,
                    "Answer by full attention and by --policy from the same prefilled state, and "
                    "compare");
  command->add_flag("--chat", options->chat, "Converse, also when a prompt is given");
  add_common_options(*command, options->common, Arity::kOne, Arity::kOne, "fasa");
  command->add_option("-n,--tokens", options->limit, "Most tokens of an answer")
      ->check(CLI::Range(1, 1 << 20))
      ->default_str("256");
  command->add_option("-c,--context", options->context, "Tokens that the context holds")
      ->check(CLI::Range(16, 1 << 24));
  command->add_option("--system", options->system, "System message");
  command->add_flag("--raw", options->raw, "The prompt as it is, without the chat template");
  command->add_flag("--ignore-end", options->ignore_end, "Go on to -n tokens after the answer's end");
  const std::string group = "Sampling";
  command->add_option("--temp", options->sampling.temperature, "Temperature; 0 is greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->default_str("0")
      ->group(group);
  command->add_option("--top-p", options->sampling.top_p, "Keep the likeliest tokens up to this")
      ->check(CLI::Range(0.0, 1.0))
      ->default_str("0.95")
      ->group(group);
  command->add_option("--seed", options->sampling.seed, "Seed of the sampling")->default_str("1")->group(group);
  command->footer(
      "Reading the prompt is full attention, exact; each new token then attends to --budget "
      "tokens.\n\n"
      "Examples:\n"
      "  fasa run                                             chat with the demo's model\n"
      "  fasa run -p 'Why is the sky blue?' -n 100\n"
      "  fasa run --file report.txt -p 'Who wrote this?' --budget 512\n"
      "  fasa run --file report.txt -p 'Who wrote this?' --compare\n"
      "  fasa run --policy full -p 'Hello'                    plain llama.cpp\n");
  command->callback([options] { run(*options); });
}

}  // namespace fasa::cli
