// fasa eval kl: KL per token against full attention, decoding a text after a dense prefill.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/eval/evaluation.h"
#include "cli/eval/kl_score.h"
#include "cli/eval/reference_logits.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/text_file.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr int64_t kReferenceBatch = 64;  // tokens

struct KlOptions {
  EvalOptions eval;
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
      : options_(options), text_(read_text(options.text)), run_(options.eval, [&](const Model& model) {
          tokens_ = model.tokenize(text_, true, false);
          windows_ = plan_windows(options, static_cast<int64_t>(tokens_.size()), model.trained_context());
          return ContextOptions{options.context + windows_.front().scored, num_threads(options.eval.common),
                                options.batch_reference ? static_cast<int32_t>(kReferenceBatch) : 1};
        }) {}

  void run() {
    std::vector<Lane*> missing;
    for (Lane& lane : run_.session().lanes()) {
      if (const Json* row = run_.results().find(settings(lane))) {
        run_.results().repeat(*row);
      } else {
        missing.push_back(&lane);
      }
    }
    say(fmt::format("{}: {} tokens scored in {} window{} of {} prefilled tokens, {} polic{}{}", options_.text,
                    options_.tokens, windows_.size(),
                    windows_.size() == 1 ? "" : "s (the trained context holds no more at once)", options_.context,
                    run_.session().lanes().size(), run_.session().lanes().size() == 1 ? "y" : "ies",
                    missing.size() == run_.session().lanes().size()
                        ? ""
                        : fmt::format(", {} of them in {} already", run_.session().lanes().size() - missing.size(),
                                      options_.eval.rows.out)));
    if (!missing.empty()) {
      const auto windows = static_cast<int64_t>(windows_.size());
      const int64_t reference = windows * (options_.context / kPrefillShare) + options_.tokens;
      Progress progress("eval kl", reference + static_cast<int64_t>(missing.size()) * options_.tokens);
      progress_ = &progress;
      prepare_reference();
      done_ = reference;
      for (Lane* lane : missing) score(*lane);
    }
    for (const Lane& lane : run_.session().lanes()) print(*run_.results().find(settings(lane)));
  }

 private:
  // All that determines a row.
  Json settings(const Lane& lane) const {
    Json row = run_.lane_settings(lane);
    row.update({{"measure", "kl"},
                {"text_hash", hash_tokens(tokens_)},
                {"context", options_.context},
                {"windows", windows_.size()},
                {"scored", options_.tokens},
                {"reference", options_.batch_reference ? "batches" : "single tokens"},
                {"model", std::filesystem::path(run_.model().path()).filename().string()},
                {"model_hash", run_.model_key()}});
    return row;
  }

  std::vector<llama_token> prompt(const Window& window) const {
    auto tokens =
        std::vector<llama_token>(tokens_.begin() + window.first, tokens_.begin() + window.first + options_.context);
    if (llama_vocab_get_add_bos(run_.model().vocab())) tokens.front() = tokens_.front();
    return tokens;
  }

  std::span<const llama_token> scored_tokens(const Window& window) const {
    return std::span(tokens_).subspan(static_cast<size_t>(window.first + options_.context),
                                      static_cast<size_t>(window.scored));
  }

  void step(int64_t cost) { progress_->update(done_ += cost); }

  // Leaves the windows' states in states_ and the reference logits in logits_.
  void prepare_reference() {
    const std::string key =
        fmt::format("logits-{}-{}-{}-{}-{}{}", run_.model_key(), hash_tokens(tokens_), options_.context,
                    windows_.size(), options_.tokens, options_.batch_reference ? "-batches" : "");
    logits_ = run_.cache().find(key);
    std::unique_ptr<LogitsWriter> writer;
    if (logits_.empty()) {
      writer = std::make_unique<LogitsWriter>(run_.cache().reserve(key), run_.model().vocab_size());
    }
    for (const Window& window : windows_) {
      const int64_t before = done_;
      states_.push_back(
          run_.prefill(prompt(window), [&](int64_t n) { progress_->update(before + n / kPrefillShare); }));
      step(options_.context / kPrefillShare);
      if (!writer) continue;
      LlamaContext& reference = run_.session().reference();
      reference.restore(states_.back().bytes, options_.context);
      decode_reference(scored_tokens(window), reference, *writer);
    }
    if (!writer) return;
    writer->finish();
    logits_ = run_.cache().commit(key);
  }

  void decode_reference(std::span<const llama_token> tokens, LlamaContext& reference, LogitsWriter& writer) {
    const auto batch = static_cast<size_t>(options_.batch_reference ? kReferenceBatch : 1);
    for (size_t at = 0; at < tokens.size(); at += batch) {
      const auto part = tokens.subspan(at, std::min(batch, tokens.size() - at));
      if (batch == 1) {
        reference.decode(part.front());
      } else {
        reference.decode_batch(part);
      }
      for (size_t i = 0; i < part.size(); ++i) {
        writer.add(reference.logits(batch == 1 ? -1 : static_cast<int32_t>(i)));
        step(1);
      }
    }
  }

  void score(Lane& lane) {
    const int64_t vocab = run_.model().vocab_size();
    LogitsReader reference(logits_, options_.tokens, vocab);
    KlScore score(vocab);
    std::vector<double> token_ms;
    ReadBytes read;
    int64_t row = 0;
    for (size_t w = 0; w < windows_.size(); ++w) {
      run_.start(lane, states_[w]);
      read = run_.session().measure(lane, [&] {
        for (int64_t i = 0; i < windows_[w].scored; ++i, ++row) {
          const int64_t at = windows_[w].first + options_.context + i;
          const auto begin = std::chrono::steady_clock::now();
          lane.context->decode(tokens_[static_cast<size_t>(at)]);
          const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - begin;
          token_ms.push_back(ms.count());
          score.add(reference.row(row), lane.context->logits(), tokens_[static_cast<size_t>(at + 1)]);
          step(1);
        }
        return windows_[w].scored;
      });
    }
    Json values = {{"text", options_.text}};
    values.update(score.summary());
    values.update({{"kv_bytes_read_per_token", static_cast<int64_t>(read.kv)},
                   {"index_bytes_read_per_token", static_cast<int64_t>(read.index)},
                   {"index_bytes", lane.index_bytes},
                   {"decode_tps", 1000 / quantile(token_ms, 0.5)},
                   {"threads", num_threads(options_.eval.common)}});
    run_.session().close(lane);
    run_.results().add(settings(lane), values);
  }

  void print(const Json& row) {
    if (options_.eval.rows.json) return;
    if (!header_) {
      fmt::print("{:<10} {:>7} {:>10} {:>9} {:>8} {:>18} {:>9} {:>12}\n", "policy", "budget", "KL/token", "+-", "top-1",
                 "ppl +-", "ppl full", "read/token");
      header_ = true;
    }
    const double bytes = row.value("kv_bytes_read_per_token", 0.0) + row.value("index_bytes_read_per_token", 0.0);
    fmt::print("{:<10} {:>7} {:>10.5f} {:>9.5f} {:>7.1f}% {:>18} {:>9.3f} {:>12}\n", row.value("policy", ""),
               row.value("budget", 0), row.value("kl_mean", 0.0), row.value("kl_se", 0.0),
               100 * row.value("top1_agreement", 0.0),
               fmt::format("{:.3f} {:.3f}", row.value("ppl", 0.0), row.value("ppl_se", 0.0)),
               row.value("ppl_full", 0.0), human_bytes(bytes));
  }

  const KlOptions& options_;
  std::string text_;
  std::vector<llama_token> tokens_;
  std::vector<Window> windows_;
  Evaluation run_;
  std::vector<PrefilledState> states_;
  std::filesystem::path logits_;
  Progress* progress_ = nullptr;
  int64_t done_ = 0;
  bool header_ = false;
};

}  // namespace

void add_eval_kl_command(CLI::App& eval) {
  auto options = std::make_shared<KlOptions>();
  CLI::App* command =
      eval.add_subcommand("kl", "KL divergence per token from full attention while decoding a text, and perplexity");
  add_eval_options(*command, options->eval, "fasa");
  command->add_option("--text", options->text, "Text to decode; not the one that calibrated")->required();
  command->add_option("-c,--context", options->context, "Tokens prefilled with full attention")
      ->check(CLI::Range(16, 1 << 24))
      ->default_str("4096");
  command->add_option("-n,--tokens", options->tokens, "Tokens decoded one by one and scored")
      ->check(CLI::Range(1, 1 << 24))
      ->default_str("2000");
  command->add_flag(
      "--batch-reference", options->batch_reference,
      "Reference logits in batches: quicker, but the rounding of batched matrix products counts as KL then "
      "(0.002 for a Q4_1 model)");
  command->footer(
      "A window of the text is prefilled by plain llama.cpp; each policy starts from that state and decodes the "
      "text's\n"
      "next tokens one by one, as in generation. The reference is plain llama.cpp on the same tokens. State and\n"
      "reference logits stay in the cache folder, so more policies and budgets cost their own decoding only. If "
      "context\n"
      "and tokens exceed the trained context, several windows at evenly spaced places of the text are used. kl_se and\n"
      "ppl_se are standard errors from the means of blocks of 50 tokens. `--policy full` shows 0.\n\n"
      "Examples:\n"
      "  fasa eval kl --text other-text.txt\n"
      "  fasa eval kl --text FILE --context 4096 --tokens 2000 --policy fasa,oracle --budget 256,512 --json\n"
      "  fasa eval kl --text FILE --policy fasa --budget 256,1024 --out results.jsonl    resumes where it stopped\n");
  command->callback([options] {
    check_policies(options->eval.common);
    KlEvaluation(*options).run();
  });
}

}  // namespace fasa::cli
