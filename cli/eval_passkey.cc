// fasa eval passkey: is a number hidden in a long text found again?
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/engine.h"
#include "cli/generate.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/rows.h"
#include "cli/session.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr int64_t kAnswerTokens = 12;
const char* const kIntroduction = "There is a pass key hidden in a lot of irrelevant text. Find it and memorize it.\n";
const char* const kFiller =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
const char* const kQuestion = "\nWhat is the pass key? The pass key is";

struct PasskeyOptions {
  CommonOptions common;
  RowOptions rows;
  int64_t context = 4096;
  int64_t trials = 10;
  uint32_t seed = 1;
};

struct Trial {
  std::string key;
  std::vector<llama_token> prompt;
};

// `context` tokens: introduction, filler with the key at a random place, question.
Trial make_trial(const Model& model, int64_t context, std::mt19937& random) {
  Trial trial;
  trial.key = std::to_string(10000 + random() % 90000);
  const auto part = [&](const std::string& text, bool bos) { return model.tokenize(text, bos, false); };
  const std::vector<llama_token> head = part(kIntroduction, true);
  const std::vector<llama_token> filler = part(kFiller, false);
  const std::vector<llama_token> key =
      part(fmt::format("The pass key is {}. Remember it. {} is the pass key. ", trial.key, trial.key), false);
  const std::vector<llama_token> tail = part(kQuestion, false);
  const auto fixed = static_cast<int64_t>(head.size() + key.size() + tail.size());
  const int64_t repeats = (context - fixed) / static_cast<int64_t>(filler.size());
  if (repeats < 1) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--context {} has no room for a hidden key: give 256 or more", context));
  }
  const auto place = static_cast<int64_t>(random() % static_cast<uint64_t>(repeats + 1));
  const auto append = [&](const std::vector<llama_token>& tokens) {
    trial.prompt.insert(trial.prompt.end(), tokens.begin(), tokens.end());
  };
  append(head);
  for (int64_t i = 0; i <= repeats; ++i) {
    if (i == place) append(key);
    if (i < repeats) append(filler);
  }
  append(tail);
  return trial;
}

void evaluate(const PasskeyOptions& options) {
  check_policies(options.common);
  Session session(
      options.common,
      [&](const Model& model) {
        if (options.context + kAnswerTokens > model.trained_context()) {
          throw Error(ErrorCode::kInvalidArgument,
                      fmt::format("--context {} and the answer exceed the trained context of {} "
                                  "tokens: give a shorter one",
                                  options.context, model.trained_context()));
        }
        return ContextOptions{options.context + kAnswerTokens, num_threads(options.common), 1};
      },
      Session::Full::kOwn);
  std::vector<int64_t> found(session.lanes().size());
  std::mt19937 random(options.seed);
  Progress progress("eval passkey", options.trials * options.context);
  for (int64_t t = 0; t < options.trials; ++t) {
    const Trial trial = make_trial(session.model(), options.context, random);
    LlamaContext& reference = session.reference();
    reference.clear();
    reference.prefill(std::span(trial.prompt).first(trial.prompt.size() - 1),
                      [&](int64_t done) { progress.update(t * options.context + done); });
    for (size_t l = 0; l < found.size(); ++l) {
      LlamaContext& context = *session.lanes()[l].context;
      context.copy_from(reference);
      context.decode(trial.prompt.back());
      Sampler greedy({});
      std::string answer;
      generate(session.model(), context, greedy, kAnswerTokens, false,
               [&](const std::string& piece) { answer += piece; });
      if (answer.find(trial.key) != std::string::npos) ++found[l];
    }
  }
  progress.finish();
  for (size_t l = 0; l < found.size(); ++l) {
    const Lane& lane = session.lanes()[l];
    emit_row(options.rows, {{"policy", lane.policy},
                            {"budget", lane.settings.budget},
                            {"context", options.context},
                            {"trials", options.trials},
                            {"found", found[l]},
                            {"seed", options.seed},
                            {"n_tip", options.common.n_tip},
                            {"model", session.model().path()}});
    if (options.rows.json) continue;
    fmt::print("{:<8} {:>10}  found {} of {}\n", lane.policy,
               lane.settings.kind == PolicyKind::kFull ? "" : std::to_string(lane.settings.budget), found[l],
               options.trials);
  }
}

}  // namespace

void add_eval_passkey_command(CLI::App& eval) {
  auto options = std::make_shared<PasskeyOptions>();
  CLI::App* command = eval.add_subcommand("passkey", "Retrieval of a number hidden at a random place of a long text");
  add_common_options(*command, options->common, Arity::kList, Arity::kList, "full,fasa");
  command->add_option("-c,--context", options->context, "Tokens of the text")
      ->check(CLI::Range(16, 1 << 24))
      ->default_str("4096");
  command->add_option("--trials", options->trials, "Texts to try")->check(CLI::Range(1, 100000))->default_str("10");
  command->add_option("--seed", options->seed, "Seed of the keys and their places")->default_str("1");
  add_row_options(*command, options->rows);
  command->footer(
      "The text is read once by plain llama.cpp; each policy answers from a copy of that state,\n"
      "greedily. Compare the policies with each other: a small model misses some by itself.\n\n"
      "Examples:\n"
      "  fasa eval passkey\n"
      "  fasa eval passkey --context 8000 --trials 20 --policy full,fasa,oracle --budget "
      "128,256\n");
  command->callback([options] { evaluate(*options); });
}

}  // namespace fasa::cli
