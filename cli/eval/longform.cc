// fasa eval longform: does a policy drift away over thousands of generated tokens?
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>

#include "cli/commands.h"
#include "cli/eval/evaluation.h"
#include "cli/eval/kl_score.h"
#include "cli/eval/reference_logits.h"
#include "cli/generate.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/text_file.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr int64_t kJudged = 64;  // tokens of a batch that full attention judges

struct LongformOptions {
  EvalOptions eval;
  std::string text;
  int64_t context = 2048;
  int64_t tokens = 2000;
  float temperature = 0.8f;
  uint32_t seed = 1;
};

// Share of different sequences of four tokens: low where a text repeats itself.
double distinct_quadruples(std::span<const llama_token> tokens) {
  std::set<std::vector<llama_token>> seen;
  for (size_t i = 0; i + 4 <= tokens.size(); ++i) seen.insert({tokens.begin() + i, tokens.begin() + i + 4});
  return tokens.size() < 4 ? 1 : static_cast<double>(seen.size()) / static_cast<double>(tokens.size() - 3);
}

class LongformEvaluation {
 public:
  explicit LongformEvaluation(const LongformOptions& options)
      : options_(options), text_(read_text(options.text)), run_(options.eval, [&](const Model& model) {
          prompt_ = model.tokenize(text_, true, false);
          if (static_cast<int64_t>(prompt_.size()) < options.context) {
            throw Error(ErrorCode::kInvalidArgument,
                        fmt::format("{} has {} tokens, fewer than --context {}: give a longer text", options.text,
                                    prompt_.size(), options.context));
          }
          if (options.context + options.tokens > model.trained_context()) {
            throw Error(
                ErrorCode::kInvalidArgument,
                fmt::format("--context {} and --tokens {} exceed the trained context of {}: give smaller numbers",
                            options.context, options.tokens, model.trained_context()));
          }
          prompt_.resize(static_cast<size_t>(options.context));
          return ContextOptions{options.context + options.tokens, num_threads(options.eval.common),
                                static_cast<int32_t>(kJudged)};
        }) {}

  void run() {
    std::vector<Lane*> missing;
    for (Lane& lane : run_.session().lanes()) {
      const Json* row = run_.results().find(settings(lane));
      row ? run_.results().repeat(*row) : missing.push_back(&lane);
    }
    if (!missing.empty()) {
      Progress progress("eval longform", options_.context / kPrefillShare + options_.tokens +
                                             static_cast<int64_t>(missing.size()) * 2 * options_.tokens);
      progress_ = &progress;
      prepare();
      for (Lane* lane : missing) measure(*lane);
    }
    if (options_.eval.rows.json) return;
    fmt::print("{:<14} {:>10} {:>10} {:>10} {:>8} {:>14} {:>12}\n", "policy", "KL first", "KL last", "drift +-",
               "top-1", "ppl of its own", "4-grams");
    for (const Lane& lane : run_.session().lanes()) print(*run_.results().find(settings(lane)));
  }

 private:
  Json settings(const Lane& lane) const {
    Json row = run_.lane_settings(lane);
    row.update({{"measure", "longform"},
                {"text_hash", hash_tokens(prompt_)},
                {"context", options_.context},
                {"generated", options_.tokens},
                {"temperature", options_.temperature},
                {"seed", options_.seed},
                {"model", std::filesystem::path(run_.model().path()).filename().string()},
                {"model_hash", run_.model_key()}});
    return row;
  }

  void step(int64_t cost) { progress_->update(done_ += cost); }

  // Ends with a token whose logits are the first generated token's.
  void begin(LlamaContext& context) { context.decode(prompt_.back()); }

  // Full attention writes the text that all are compared on, and its logits; both stay in the cache.
  void prepare() {
    state_ = run_.prefill(std::span(prompt_).first(prompt_.size() - 1),
                          [&](int64_t tokens) { progress_->update(tokens / kPrefillShare); });
    step(options_.context / kPrefillShare);
    const std::string key = fmt::format("generated-{}-{}-{}-{}-{}", run_.model_key(), hash_tokens(prompt_),
                                        options_.tokens, options_.temperature, options_.seed);
    const std::filesystem::path text = run_.cache().find(key + "-tokens");
    logits_ = run_.cache().find(key + "-logits");
    written_.resize(static_cast<size_t>(options_.tokens));
    if (!text.empty() && !logits_.empty()) {
      std::ifstream file(text, std::ios::binary);
      file.read(reinterpret_cast<char*>(written_.data()), options_.tokens * static_cast<int64_t>(sizeof(llama_token)));
      if (file) return step(options_.tokens);
    }
    LlamaContext& reference = run_.session().reference();
    reference.restore(state_.bytes, static_cast<int64_t>(state_.tokens.size()));
    LogitsWriter writer(run_.cache().reserve(key + "-logits"), run_.model().vocab_size());
    begin(reference);
    Sampler sampler(sampling());
    for (llama_token& token : written_) {
      writer.add(reference.logits());
      token = sampler.sample(reference);
      reference.decode(token);
      step(1);
    }
    writer.finish();
    logits_ = run_.cache().commit(key + "-logits");
    std::ofstream file(run_.cache().reserve(key + "-tokens"), std::ios::binary);
    file.write(reinterpret_cast<const char*>(written_.data()),
               options_.tokens * static_cast<int64_t>(sizeof(llama_token)));
    file.close();
    run_.cache().commit(key + "-tokens");
  }

  SamplingOptions sampling() const {
    return {.temperature = options_.temperature, .top_p = 0.95f, .seed = options_.seed};
  }

  // The text's perplexity by full attention.
  double judged_perplexity(std::span<const llama_token> text) {
    LlamaContext& judge = run_.session().reference();
    judge.restore(state_.bytes, static_cast<int64_t>(state_.tokens.size()));
    begin(judge);
    const int64_t vocab = run_.model().vocab_size();
    std::vector<double> loss;
    const auto add = [&](const float* logits, llama_token next) {
      loss.push_back(log_sum_exp(logits, vocab) - static_cast<double>(logits[next]));
    };
    add(judge.logits(), text.front());
    for (size_t at = 0; at + 1 < text.size(); at += kJudged) {
      const auto part = text.subspan(at, std::min<size_t>(kJudged, text.size() - 1 - at));
      judge.decode_batch(part);
      for (size_t i = 0; i < part.size(); ++i) add(judge.logits(static_cast<int32_t>(i)), text[at + i + 1]);
    }
    return std::exp(mean(loss));
  }

  // Forced along the text of full attention: KL by position.
  KlScore forced(LlamaContext& context) {
    const int64_t vocab = run_.model().vocab_size();
    LogitsReader reference(logits_, options_.tokens, vocab);
    KlScore score(vocab);
    begin(context);
    for (int64_t i = 0; i < options_.tokens; ++i) {
      const llama_token token = written_[static_cast<size_t>(i)];
      score.add(reference.row(i), context.logits(), token);
      if (i + 1 < options_.tokens) context.decode(token);
      step(1);
    }
    return score;
  }

  // Left to itself: what it writes.
  std::vector<llama_token> free_text(LlamaContext& context) {
    begin(context);
    Sampler sampler(sampling());
    std::vector<llama_token> text;
    for (int64_t i = 0; i < options_.tokens; ++i) {
      text.push_back(sampler.sample(context));
      if (i + 1 < options_.tokens) context.decode(text.back());
      step(1);
    }
    return text;
  }

  void measure(Lane& lane) {
    run_.start(lane, state_);
    const KlScore score = forced(*lane.context);
    run_.start(lane, state_);
    const std::vector<llama_token> text = free_text(*lane.context);
    const std::vector<double>& kl = score.kl();
    const size_t quarter = std::max<size_t>(1, kl.size() / 4);
    const auto first = std::span(kl).first(quarter);
    const auto last = std::span(kl).last(quarter);
    constexpr int64_t kKlBlock = 50;
    Json values = {{"text", options_.text}};
    values.update(score.summary());
    values.update({{"kl_first_quarter", mean(first)},
                   {"kl_last_quarter", mean(last)},
                   {"drift", mean(last) - mean(first)},
                   {"drift_se", std::hypot(batch_means_error(first, kKlBlock), batch_means_error(last, kKlBlock))},
                   {"own_text_ppl", judged_perplexity(text)},
                   {"full_text_ppl", judged_perplexity(written_)},
                   {"own_text_distinct", distinct_quadruples(text)},
                   {"full_text_distinct", distinct_quadruples(written_)}});
    run_.session().close(lane);
    run_.results().add(settings(lane), values);
  }

  void print(const Json& row) const {
    fmt::print(
        "{:<14} {:>10.5f} {:>10.5f} {:>10} {:>7.1f}% {:>14} {:>12}\n", lane_label(row),
        row.value("kl_first_quarter", 0.0), row.value("kl_last_quarter", 0.0),
        fmt::format("{:.4f} {:.4f}", row.value("drift", 0.0), row.value("drift_se", 0.0)),
        100 * row.value("top1_agreement", 0.0),
        fmt::format("{:.2f} ({:.2f})", row.value("own_text_ppl", 0.0), row.value("full_text_ppl", 0.0)),
        fmt::format("{:.2f} ({:.2f})", row.value("own_text_distinct", 0.0), row.value("full_text_distinct", 0.0)));
  }

  const LongformOptions& options_;
  std::string text_;
  std::vector<llama_token> prompt_;
  Evaluation run_;
  PrefilledState state_;
  std::vector<llama_token> written_;
  std::filesystem::path logits_;
  Progress* progress_ = nullptr;
  int64_t done_ = 0;
};

}  // namespace

void add_eval_longform_command(CLI::App& eval) {
  auto options = std::make_shared<LongformOptions>();
  CLI::App* command = eval.add_subcommand("longform", "Drift over thousands of generated tokens");
  add_eval_options(*command, options->eval, "fasa");
  command->add_option("--text", options->text, "Text that begins what is written")->required();
  command->add_option("-c,--context", options->context, "Tokens of it")
      ->check(CLI::Range(16, 1 << 24))
      ->default_str("2048");
  command->add_option("-n,--tokens", options->tokens, "Tokens to generate")
      ->check(CLI::Range(8, 1 << 24))
      ->default_str("2000");
  command->add_option("--temp", options->temperature, "Temperature of the sampling (top-p 0.95)")
      ->check(CLI::Range(0.0, 10.0))
      ->default_str("0.8");
  command->add_option("--seed", options->seed, "Seed of the sampling")->default_str("1");
  command->footer(
      "Full attention writes a text. Each policy is led along that text: KL per token in its first and last quarter, "
      "and their\n"
      "difference, the drift. Then each policy writes by itself: perplexity of its text as full attention sees it, and "
      "the\n"
      "share of different 4-grams, which falls where a text repeats itself; those of full attention's text are in "
      "brackets.\n\n"
      "Examples:\n"
      "  fasa eval longform --text book.txt --policy fasa,streaming --budget 256\n"
      "  fasa eval longform --text book.txt -c 4096 -n 4000 --policy fasa --budget 256,512 --out results.jsonl\n");
  command->callback([options] {
    check_policies(options->eval.common);
    LongformEvaluation(*options).run();
  });
}

}  // namespace fasa::cli
