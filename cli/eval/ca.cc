// fasa eval ca: which tokens a policy keeps, against the exact scores, in real decode steps.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>

#include "cli/commands.h"
#include "cli/eval/evaluation.h"
#include "cli/eval/picture.h"
#include "cli/eval/single_ca.h"
#include "cli/numbers.h"
#include "cli/paths.h"
#include "cli/progress.h"
#include "cli/text_file.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

struct CaOptions {
  EvalOptions eval;
  std::string text;
  std::string single;
  int64_t context = 4096;
  int64_t queries = 64;
};

class CaEvaluation {
 public:
  explicit CaEvaluation(const CaOptions& options)
      : options_(options), text_(read_text(options.text)), run_(options.eval, [&](const Model& model) {
          tokens_ = model.tokenize(text_, true, false);
          const auto have = static_cast<int64_t>(tokens_.size());
          if (have < options.context + options.queries) {
            throw Error(
                ErrorCode::kInvalidArgument,
                fmt::format("{} has {} tokens, but --context {} and --queries {} need {}: give a longer text",
                            options.text, have, options.context, options.queries, options.context + options.queries));
          }
          if (options.context + options.queries > model.trained_context()) {
            throw Error(
                ErrorCode::kInvalidArgument,
                fmt::format("--context {} and --queries {} exceed the trained context of {}: give smaller numbers",
                            options.context, options.queries, model.trained_context()));
          }
          tokens_.resize(static_cast<size_t>(options.context + options.queries));
          return ContextOptions{options.context + options.queries, num_threads(options.eval.common), 1};
        }) {}

  void run() {
    std::vector<Lane*> missing;
    for (Lane& lane : run_.session().lanes()) {
      if (lane.settings.kind == PolicyKind::kFull) {
        throw Error(ErrorCode::kInvalidArgument,
                    "full attention keeps every token, so there is nothing to compare: give "
                    "other policies");
      }
      const Json* row = run_.results().find(settings(lane));
      row ? run_.results().repeat(*row) : missing.push_back(&lane);
    }
    if (!missing.empty()) {
      const int64_t prefill_cost = options_.context / kPrefillShare;
      Progress progress("eval ca", prefill_cost + static_cast<int64_t>(missing.size()) * options_.queries);
      const PrefilledState state = run_.prefill(std::span(tokens_).first(static_cast<size_t>(options_.context)),
                                                [&](int64_t tokens) { progress.update(tokens / kPrefillShare); });
      int64_t done = prefill_cost;
      for (Lane* lane : missing) {
        run_.start(*lane, state);
        measure(*lane, [&] { progress.update(++done); });
      }
    }
    if (options_.eval.rows.json) return;
    fmt::print("{:<16} {:>12} {:>9} {:>12} {:>9}\n", "policy", "compound CA", "+-", "mass kept", "+-");
    for (const Lane& lane : run_.session().lanes()) {
      const Json& row = *run_.results().find(settings(lane));
      fmt::print("{:<16} {:>12.4f} {:>9.4f} {:>12.4f} {:>9.4f}\n", lane_label(row), row.value("agreement", 0.0),
                 row.value("agreement_se", 0.0), row.value("mass", 0.0), row.value("mass_se", 0.0));
    }
  }

 private:
  Json settings(const Lane& lane) const {
    Json row = run_.lane_settings(lane);
    row.update({{"measure", "ca"},
                {"text_hash", hash_tokens(tokens_)},
                {"context", options_.context},
                {"queries", options_.queries},
                {"model", std::filesystem::path(run_.model().path()).filename().string()},
                {"model_hash", run_.model_key()}});
    return row;
  }

  // One row: means over queries, layers and heads; standard errors over the queries; and by layer and head.
  void measure(Lane& lane, const std::function<void()>& step) {
    std::vector<double> agreement;
    std::vector<double> mass;
    std::map<int32_t, std::vector<double>> by_head;
    for (int64_t i = 0; i < options_.queries; ++i) {
      const auto heads = run_.session().backend()->agreement(
          [&] { lane.context->decode(tokens_[static_cast<size_t>(options_.context + i)]); });
      step();
      if (heads.empty()) {
        throw Error(
            ErrorCode::kInvalidArgument,
            fmt::format("with budget {} nothing is left out of a context of {} tokens: give a longer --context or "
                        "a smaller --budget",
                        lane.settings.budget, options_.context));
      }
      double agreed = 0;
      double kept = 0;
      for (const fasa_ggml_agreement& head : heads) {
        agreed += head.agreement;
        kept += head.mass;
        std::vector<double>& layer = by_head[head.layer];
        layer.resize(std::max<size_t>(layer.size(), static_cast<size_t>(head.head) + 1));
        layer[static_cast<size_t>(head.head)] += head.agreement / static_cast<double>(options_.queries);
      }
      agreement.push_back(agreed / static_cast<double>(heads.size()));
      mass.push_back(kept / static_cast<double>(heads.size()));
    }
    Json grid = Json::array();
    Json layers = Json::array();
    for (const auto& [layer, heads] : by_head) {
      layers.push_back(layer);
      Json line = Json::array();
      for (const double value : heads) line.push_back(std::round(value * 1e4) / 1e4);
      grid.push_back(line);
    }
    run_.session().close(lane);
    constexpr int64_t kErrorBlock = 8;
    run_.results().add(settings(lane), {{"text", options_.text},
                                        {"agreement", mean(agreement)},
                                        {"agreement_se", batch_means_error(agreement, kErrorBlock)},
                                        {"mass", mean(mass)},
                                        {"mass_se", batch_means_error(mass, kErrorBlock)},
                                        {"layers", layers},
                                        {"agreement_by_head", grid}});
  }

  const CaOptions& options_;
  std::string text_;
  std::vector<llama_token> tokens_;
  Evaluation run_;
};

// What the profile holds about single FCs: no model runs.
void show_single(const CaOptions& options) {
  const std::string path = find_profile(options.eval.common.profile, find_model(options.eval.common.model));
  const Profile profile = load_profile(path);
  ResultStore results(options.eval.rows);
  const Json settings = {{"measure", "ca_single"},
                         {"model", profile.model_name},
                         {"profile", hash_hex(profile_to_json(profile))},
                         {"criterion", options.single}};
  const Json* row = results.find(settings);
  if (row) {
    results.repeat(*row);
  } else {
    results.add(settings, single_agreement(profile, options.single));
    row = results.find(settings);
  }
  if (options.eval.rows.json) return;
  fmt::print(
      "{} of single frequency chunks, mean over {} heads: best {:.3f}, median {:.3f}; {:.1f}% of the chunks of a head "
      "are "
      "above half of its best\n",
      options.single, row->value("heads", 0), row->value("best", 0.0), row->value("median", 0.0),
      100 * row->value("share_above_half", 0.0));
}

}  // namespace

void add_eval_ca_command(CLI::App& eval) {
  auto options = std::make_shared<CaOptions>();
  CLI::App* command =
      eval.add_subcommand("ca", "Contextual agreement: does a policy keep the tokens of the highest exact scores?");
  add_eval_options(*command, options->eval, "fasa");
  auto* text = command->add_option("--text", options->text, "Text to decode; not the one that calibrated");
  auto* single =
      command->add_option("--single", options->single,
                          "Instead: CA of single frequency chunks from the profile, for ca64, ca256, ca512 or ca1024");
  text->excludes(single);
  command->add_option("-c,--context", options->context, "Tokens prefilled with full attention")
      ->check(CLI::Range(64, 1 << 24))
      ->default_str("4096");
  command->add_option("--queries", options->queries, "Tokens decoded and compared")
      ->check(CLI::Range(1, 1 << 20))
      ->default_str("64");
  command->footer(
      "Compound CA is the share of the kept tokens that are among the same number of tokens of the highest exact q.k, "
      "averaged\n"
      "over the decoded tokens and the sparse layers' heads; the mass is the attention weight on the kept tokens. "
      "Sinks and\n"
      "recent tokens count as kept: the paper's figures have none, which is --sinks 0 --recent 0.\n\n"
      "Examples:\n"
      "  fasa eval ca --text other-text.txt --policy fasa,streaming,random --budget 64,256,512,1024\n"
      "  fasa eval ca --text FILE --policy fasa --n-tip 8 --criterion ca256 --sinks 0 --recent 0 --dense-layers 0\n"
      "  fasa eval ca --single ca256 --out results.jsonl\n");
  command->callback([options] {
    if (!options->single.empty()) return show_single(*options);
    if (options->text.empty()) {
      throw Error(ErrorCode::kInvalidArgument, "give a text with --text, or --single for what the profile holds");
    }
    check_policies(options->eval.common);
    CaEvaluation(*options).run();
  });
}

}  // namespace fasa::cli
