// oracle: the rows of the highest exact scores q.k, what any selector of this budget aims at.
#include "src/ops/score/score.h"
#include "src/policy/decode_step.h"

namespace fasa {

DecodeReport decode_oracle(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  int64_t stride = 0;
  float* scores = score_scratch(context, num_selections(settings, step), step.k.num_rows, &stride);
  ops::ExactScoreArgs score;
  score.q = step.q;
  score.k = step.k;
  score.bias = step.bias;
  score.reduce = settings.share_tokens ? ops::GroupReduce::kMax : ops::GroupReduce::kNone;
  score.scores = scores;
  score.scores_stride = stride;
  ops::exact_score(context, score);

  DecodeReport report = attend_selected(context, settings, step, scores, stride);
  report.kv_bytes += step.k.num_rows * step.k.num_heads * dtype_bytes(step.k.dtype, step.k.head_dim);
  return report;
}

}  // namespace fasa
