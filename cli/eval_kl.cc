// fasa eval kl: KL per token against full attention, decoding a text after a dense prefill.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/engine.h"
#include "cli/numbers.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/rows.h"
#include "cli/session.h"
#include "cli/text_file.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr int64_t kChunk = 64;       // tokens whose reference logits are held at a time
constexpr int64_t kErrorBlock = 50;  // tokens: correlated ones fall into one block

struct KlOptions {
  CommonOptions common;
  RowOptions rows;
  std::string text;
  int64_t context = 4096;
  int64_t tokens = 2000;
  bool batch_reference = false;
};

// Which tokens of the text are prefilled and which are scored after them.
struct Window {
  int64_t first = 0;  // `context` tokens from here are prefilled
  int64_t scored = 0;
};

struct Score {
  std::vector<double> kl;
  int64_t same_top = 0;
  double loss = 0;  // sum of -log q(next token)
};

std::vector<Window> plan_windows(const KlOptions& options, int64_t text_tokens, int64_t trained) {
  const int64_t room = trained - options.context;
  if (room < 1) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--context {} leaves nothing to score in the trained context of {} "
                            "tokens: give a shorter one",
                            options.context, trained));
  }
  const int64_t count = (options.tokens + room - 1) / room;
  const int64_t span = options.context + (options.tokens + count - 1) / count;
  const int64_t needed = options.context + options.tokens + 1;  // and the last one's successor
  if (text_tokens < needed) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} has {} tokens, but --context {} and --tokens {} need {}: give a "
                            "longer text or smaller numbers",
                            options.text, text_tokens, options.context, options.tokens, needed));
  }
  std::vector<Window> windows;
  int64_t left = options.tokens;
  for (int64_t i = 0; i < count; ++i) {
    Window window;
    window.first = count == 1 ? 0 : i * (text_tokens - 1 - span) / (count - 1);
    window.scored = (left + count - i - 1) / (count - i);
    left -= window.scored;
    windows.push_back(window);
  }
  return windows;
}

class KlEvaluation {
 public:
  explicit KlEvaluation(const KlOptions& options)
      : options_(options),
        text_(read_text(options.text)),
        session_(
            options.common,
            [&](const Model& model) {
              tokens_ = model.tokenize(text_, true, false);
              windows_ = plan_windows(options, static_cast<int64_t>(tokens_.size()), model.trained_context());
              return ContextOptions{options.context + windows_.front().scored, num_threads(options.common),
                                    static_cast<int32_t>(kChunk)};
            },
            Session::Full::kOwn),
        scores_(session_.lanes().size()),
        reference_logits_(static_cast<size_t>(kChunk * session_.model().vocab_size())) {}

  void run() {
    const int64_t lanes = static_cast<int64_t>(session_.lanes().size());
    const int64_t per_token = lanes + 1;
    say(fmt::format("{}: {} tokens scored in {} window{} of {} prefilled tokens, {} polic{}", options_.text,
                    options_.tokens, windows_.size(),
                    windows_.size() == 1 ? "" : "s (the trained context holds no more at once)", options_.context,
                    lanes, lanes == 1 ? "y" : "ies"));
    // A prefilled token costs about a twentieth of a decoded one.
    const int64_t prefill_cost = options_.context / 20;
    const auto windows = static_cast<int64_t>(windows_.size());
    Progress progress("eval kl", windows * prefill_cost + options_.tokens * per_token);
    int64_t done = 0;
    for (const Window& window : windows_) {
      prefill(window, [&](int64_t count) { progress.update(done + count / 20); });
      done += prefill_cost;
      for (int64_t at = 0; at < window.scored; at += kChunk) {
        const int64_t count = std::min(kChunk, window.scored - at);
        score_chunk(window.first + options_.context + at, count, [&] { progress.update(++done); });
      }
    }
    progress.finish();
    report();
  }

 private:
  void prefill(const Window& window, const PrefillProgress& progress) {
    auto tokens =
        std::vector<llama_token>(tokens_.begin() + window.first, tokens_.begin() + window.first + options_.context);
    if (llama_vocab_get_add_bos(session_.model().vocab())) tokens.front() = tokens_.front();
    LlamaContext& reference = session_.reference();
    reference.clear();
    reference.prefill(tokens, progress);
    for (const Lane& lane : session_.lanes()) lane.context->copy_from(reference);
  }

  // Scores the predictions made after each of tokens [first, first + count).
  void score_chunk(int64_t first, int64_t count, const std::function<void()>& step) {
    const int64_t vocab = session_.model().vocab_size();
    const auto tokens = std::span(tokens_).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
    std::vector<double> log_sums;
    if (options_.batch_reference) session_.reference().decode_batch(tokens);
    for (int64_t i = 0; i < count; ++i) {
      if (!options_.batch_reference) session_.reference().decode(tokens[static_cast<size_t>(i)]);
      const float* row = session_.reference().logits(options_.batch_reference ? static_cast<int32_t>(i) : -1);
      const float* p = reference_row(i);
      std::copy(row, row + vocab, reference_logits_.begin() + i * vocab);
      log_sums.push_back(log_sum_exp(p, vocab));
      full_loss_ += log_sums.back() - static_cast<double>(p[next_token(first + i)]);
      step();
    }
    for (size_t l = 0; l < scores_.size(); ++l) {
      Lane& lane = session_.lanes()[l];
      session_.measure(lane, [&] {
        for (int64_t i = 0; i < count; ++i) {
          lane.context->decode(tokens[static_cast<size_t>(i)]);
          const float* p = reference_row(i);
          const float* q = lane.context->logits();
          const double q_log_sum = log_sum_exp(q, vocab);
          Score& score = scores_[l];
          score.kl.push_back(kl_divergence(p, log_sums[static_cast<size_t>(i)], q, q_log_sum, vocab));
          score.same_top += argmax(p, vocab) == argmax(q, vocab) ? 1 : 0;
          score.loss += q_log_sum - static_cast<double>(q[next_token(first + i)]);
          step();
        }
        return count;
      });
    }
  }

  const float* reference_row(int64_t i) const { return reference_logits_.data() + i * session_.model().vocab_size(); }

  size_t next_token(int64_t at) const { return static_cast<size_t>(tokens_[static_cast<size_t>(at + 1)]); }

  void report() {
    const auto scored = static_cast<double>(options_.tokens);
    const double ppl_full = std::exp(full_loss_ / scored);
    if (!options_.rows.json) {
      fmt::print("{:<8} {:>7} {:>10} {:>9} {:>8} {:>9} {:>9}\n", "policy", "budget", "KL/token", "+-", "top-1", "ppl",
                 "ppl full");
    }
    for (size_t l = 0; l < scores_.size(); ++l) {
      const Lane& lane = session_.lanes()[l];
      const Score& score = scores_[l];
      const double kl = mean(score.kl);
      const double error = batch_means_error(score.kl, kErrorBlock);
      const double top = static_cast<double>(score.same_top) / scored;
      const double ppl = std::exp(score.loss / scored);
      emit_row(options_.rows, {{"policy", lane.policy},
                               {"budget", lane.settings.budget},
                               {"text", options_.text},
                               {"context", options_.context},
                               {"tokens", options_.tokens},
                               {"kl_mean", kl},
                               {"kl_se", error},
                               {"top1_agreement", top},
                               {"ppl", ppl},
                               {"ppl_full", ppl_full},
                               {"windows", windows_.size()},
                               {"n_tip", options_.common.n_tip},
                               {"criterion", lane.settings.criterion},
                               {"sinks", lane.settings.sinks},
                               {"recent", lane.settings.recent},
                               {"share_fcs", lane.settings.share_fcs},
                               {"share_tokens", lane.settings.share_tokens},
                               {"dense_layers", lane.settings.dense_layers},
                               {"index", options_.common.index},
                               {"index_bytes", lane.index_bytes},
                               {"model", session_.model().path()}});
      if (options_.rows.json) continue;
      fmt::print("{:<8} {:>7} {:>10.5f} {:>9.5f} {:>7.1f}% {:>9.3f} {:>9.3f}\n", lane.policy, lane.settings.budget, kl,
                 error, 100 * top, ppl, ppl_full);
    }
  }

  const KlOptions& options_;
  std::string text_;
  std::vector<llama_token> tokens_;
  std::vector<Window> windows_;
  Session session_;
  std::vector<Score> scores_;
  std::vector<float> reference_logits_;  // [kChunk][vocab]
  double full_loss_ = 0;
};

}  // namespace

void add_eval_kl_command(CLI::App& eval) {
  auto options = std::make_shared<KlOptions>();
  CLI::App* command = eval.add_subcommand("kl", "KL divergence per token from full attention while decoding a text");
  add_common_options(*command, options->common, Arity::kList, Arity::kList, "fasa");
  command->add_option("--text", options->text, "Text to decode; not the one that calibrated")->required();
  command->add_option("-c,--context", options->context, "Tokens prefilled with full attention")
      ->check(CLI::Range(16, 1 << 24))
      ->default_str("4096");
  command->add_option("-n,--tokens", options->tokens, "Tokens decoded one by one and scored")
      ->check(CLI::Range(1, 1 << 24))
      ->default_str("2000");
  command->add_flag("--batch-reference", options->batch_reference,
                    "Reference logits in batches: quicker, but the rounding of batched matrix "
                    "products counts as KL then (0.002 for a Q4_1 model)");
  add_row_options(*command, options->rows);
  command->footer(
      "A window of the text is prefilled by plain llama.cpp; its state is copied to each policy,\n"
      "which then decodes the text's next tokens one by one, as in generation. The reference is "
      "plain\n"
      "llama.cpp on the same tokens. If context and tokens exceed the trained context, several\n"
      "windows at evenly spaced places of the text are used. kl_se is the standard error from the\n"
      "means of blocks of 50 tokens. `--policy full` shows the noise of rounding alone.\n\n"
      "Examples:\n"
      "  fasa eval kl --text other-text.txt\n"
      "  fasa eval kl --text FILE --context 4096 --tokens 2000 --policy fasa,oracle \\\n"
      "    --budget 256,512 --json\n");
  command->callback([options] {
    check_policies(options->common);
    KlEvaluation(*options).run();
  });
}

}  // namespace fasa::cli
