// fasa: the rows that the dominant FCs score highest (FASA, section 3).
#include "src/ops/score/score.h"
#include "src/policy/decode_step.h"

namespace fasa {

DecodeReport decode_fasa(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  int64_t stride = 0;
  float* scores = score_scratch(context, num_selections(settings, step), step.k.num_rows, &stride);
  ops::ScoreArgs score;
  score.q = step.q;
  score.num_kv_heads = step.k.num_heads;
  score.index = step.index;
  score.num_rows = step.k.num_rows;
  score.bias = step.bias;
  score.reduce = settings.share_tokens ? ops::GroupReduce::kMax : ops::GroupReduce::kNone;
  score.scores = scores;
  score.scores_stride = stride;
  ops::score(context, score);

  DecodeReport report = attend_selected(context, settings, step, scores, stride);
  report.index_bytes = static_cast<int64_t>(step.index.shape.row_bytes() * static_cast<double>(step.k.num_rows)) *
                       step.index.shape.num_planes;
  return report;
}

}  // namespace fasa
