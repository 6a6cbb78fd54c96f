// fasa: the rows that the index scores highest. With the dominant FCs of the profile in the index it is FASA (section
// 3); other policies differ only in what they index.
#include "src/ops/score/score.h"
#include "src/policy/decode_step.h"

namespace fasa {

IndexContent fasa_index(const LayerProfile& layer, const PolicySettings& settings) {
  IndexContent content;
  content.shape.type = index_type_for(settings, layer.rope.head_dim);
  content.shape.num_planes = settings.share_fcs ? layer.num_kv_heads : layer.num_q_heads;
  content.shape.num_fcs = fcs_per_head(settings, num_fcs(layer.rope));
  content.dims = dominant_dims(layer, settings);
  content.weights = fc_weights(layer, settings);
  return content;
}

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
