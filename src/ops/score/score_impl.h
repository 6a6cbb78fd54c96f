// The implementations of score and exact_score; use the tables in score.h.
#pragma once

#include <string>

#include "src/ops/score/score.h"

namespace fasa::ops {

std::string score_ref_supports(const ScoreArgs& args);
void score_ref(Context& context, const ScoreArgs& args);
std::string score_cpu_supports(const ScoreArgs& args);
void score_cpu(Context& context, const ScoreArgs& args);

std::string exact_score_ref_supports(const ExactScoreArgs& args);
void exact_score_ref(Context& context, const ExactScoreArgs& args);
std::string exact_score_cpu_supports(const ExactScoreArgs& args);
void exact_score_cpu(Context& context, const ExactScoreArgs& args);

std::string column_score_ref_supports(const ColumnScoreArgs& args);
void column_score_ref(Context& context, const ColumnScoreArgs& args);
std::string column_score_cpu_supports(const ColumnScoreArgs& args);
void column_score_cpu(Context& context, const ColumnScoreArgs& args);

}  // namespace fasa::ops
