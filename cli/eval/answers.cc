#include "cli/eval/answers.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>

#include "cli/generate.h"
#include "cli/numbers.h"
#include "cli/progress.h"

namespace fasa::cli {
namespace {

Json row_settings(const Evaluation& run, const Lane& lane, const std::string& measure, const Group& group) {
  Json row = run.lane_settings(lane);
  row["measure"] = measure;
  row.update(group.settings);
  row["trials"] = group.count;
  row["model"] = std::filesystem::path(run.model().path()).filename().string();
  row["model_hash"] = run.model_key();
  return row;
}

std::string answer_of(Evaluation& run, Lane& lane, const PrefilledState& state, const Item& item) {
  run.start(lane, state);
  LlamaContext& context = *lane.context;
  std::string answer;
  for (size_t turn = 0; turn < item.turns.size(); ++turn) {
    const auto tokens = std::span(item.turns[turn].tokens);
    if (turn > 0) context.prefill(tokens.first(tokens.size() - 1));
    context.decode(tokens.back());
    Sampler greedy({});
    answer.clear();
    generate(run.model(), context, greedy, item.turns[turn].limit, false,
             [&](const std::string& piece) { answer += piece; });
  }
  return answer;
}

Json summary_of(const std::vector<double>& scores, const std::string& last_answer) {
  double squares = 0;
  int64_t found = 0;
  const double center = mean(scores);
  for (const double score : scores) {
    squares += (score - center) * (score - center);
    found += score >= 1 ? 1 : 0;
  }
  const auto n = static_cast<double>(scores.size());
  return {{"score_mean", center},
          {"score_se", scores.size() < 2 ? 0.0 : std::sqrt(squares / (n - 1) / n)},
          {"found", found},
          {"last_answer", last_answer}};
}

// The answer as valid UTF-8 of one line, which JSON needs and people can read.
std::string printable(const std::string& text) {
  std::string line;
  for (const char c : text.substr(0, 200)) line += c >= ' ' && c <= '~' ? c : ' ';
  return line;
}

}  // namespace

std::vector<AnswerSummary> run_groups(Evaluation& run, const std::string& measure, const std::vector<Group>& groups) {
  std::vector<Lane>& lanes = run.session().lanes();
  int64_t total = 0;
  for (const Group& group : groups) {
    total += group.count * (group.tokens / kPrefillShare + static_cast<int64_t>(lanes.size()) * kPrefillShare);
  }
  Progress progress("eval " + measure, total);
  int64_t done = 0;
  for (const Group& group : groups) {
    std::vector<Lane*> missing;
    for (Lane& lane : lanes) {
      const Json* row = run.results().find(row_settings(run, lane, measure, group));
      row ? run.results().repeat(*row) : missing.push_back(&lane);
    }
    std::vector<std::vector<double>> scores(missing.size());
    std::vector<std::string> answers(missing.size());
    for (int64_t i = 0; i < group.count && !missing.empty(); ++i) {
      const Item item = group.make(i);
      const auto first = std::span(item.turns.front().tokens);
      const PrefilledState state = run.prefill(first.first(first.size() - 1),
                                               [&](int64_t tokens) { progress.update(done + tokens / kPrefillShare); });
      done += group.tokens / kPrefillShare;
      for (size_t l = 0; l < missing.size(); ++l) {
        answers[l] = answer_of(run, *missing[l], state, item);
        scores[l].push_back(item.score(answers[l]));
        progress.update(done += kPrefillShare);
      }
    }
    for (size_t l = 0; l < missing.size(); ++l) {
      run.results().add(row_settings(run, *missing[l], measure, group), summary_of(scores[l], printable(answers[l])));
    }
    done += group.count * kPrefillShare * static_cast<int64_t>(lanes.size() - missing.size());
  }
  progress.finish();
  std::vector<AnswerSummary> all;
  for (const Group& group : groups) {
    for (const Lane& lane : lanes) {
      all.push_back({&lane, &group, run.results().find(row_settings(run, lane, measure, group))});
    }
  }
  return all;
}

}  // namespace fasa::cli
