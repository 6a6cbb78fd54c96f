// Evaluations that let the policies answer: prompts in groups, an answer of each lane to each prompt, a score for each answer.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/eval/evaluation.h"

namespace fasa::cli {

// What is appended before one answer, and how long that may be.
struct Turn {
  std::vector<llama_token> tokens;
  int64_t limit = 32;
};

struct Item {
  std::vector<Turn> turns;                                 // the last one's answer is scored
  std::function<double(const std::string& answer)> score;  // in [0, 1]
};

// One row for each lane: the mean score of `count` items.
struct Group {
  Json settings;  // what tells it from other groups, seeds included
  int64_t count = 0;
  std::function<Item(int64_t i)> make;
  int64_t tokens = 0;  // of an item, about: for the progress bar
};

struct AnswerSummary {
  const Lane* lane;
  const Group* group;
  const Json* row;  // with trials, score_mean, score_se, found (answers of score 1)
};

// Rows that --out has already are not made again. `measure` names the evaluation in rows and keys.
std::vector<AnswerSummary> run_groups(Evaluation& run, const std::string& measure, const std::vector<Group>& groups);

}  // namespace fasa::cli
