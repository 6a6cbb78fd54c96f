#include "src/policy/agreement.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/core/math_util.h"
#include "src/ops/score/score.h"
#include "src/ops/select/select.h"

namespace fasa {
namespace {

double logit(const DecodeStep& step, float score) {
  const double scaled = static_cast<double>(step.scale) * score;
  return step.softcap > 0 ? step.softcap * std::tanh(scaled / step.softcap) : scaled;
}

}  // namespace

void AgreementProbe::add(Context& context, int32_t layer, const DecodeStep& step, const RowSets& kept) {
  const int64_t num_heads = step.q.num_heads;
  const int64_t stride = round_up(step.k.num_rows, kIndexBlock);
  scores_.resize(static_cast<size_t>(num_heads * stride));
  ops::ExactScoreArgs score;
  score.q = step.q;
  score.k = step.k;
  score.bias = step.bias;
  score.scores = scores_.data();
  score.scores_stride = stride;
  ops::exact_score(context, score);

  std::vector<HeadAgreement>& heads = layers_[layer];
  heads.resize(static_cast<size_t>(num_heads));
  for (int64_t head = 0; head < num_heads; ++head) {
    const int64_t set = head * kept.num_sets / num_heads;
    const int32_t* rows = kept.rows + set * kept.stride;
    const int64_t count = kept.counts[set];
    if (count == 0) continue;
    const float* scores = scores_.data() + head * stride;
    top_.resize(static_cast<size_t>(count));
    int64_t num_top = 0;
    ops::select(context, {.scores = scores,
                          .scores_stride = stride,
                          .num_sets = 1,
                          .num_rows = step.k.num_rows,
                          .budget = count,
                          .forced = {},
                          .rows = top_.data(),
                          .num_kept = &num_top});
    double highest = -std::numeric_limits<double>::infinity();
    for (int64_t row = 0; row < step.k.num_rows; ++row) highest = std::max(highest, logit(step, scores[row]));
    double total = 0;
    for (int64_t row = 0; row < step.k.num_rows; ++row) total += std::exp(logit(step, scores[row]) - highest);
    double mass = 0;
    int64_t common = 0;
    const auto top = std::span(top_).first(static_cast<size_t>(num_top));  // ascending
    for (int64_t i = 0; i < count; ++i) {
      mass += std::exp(logit(step, scores[rows[i]]) - highest);
      common += std::ranges::binary_search(top, rows[i]) ? 1 : 0;
    }
    HeadAgreement& sums = heads[static_cast<size_t>(head)];
    sums.layer = layer;
    sums.head = static_cast<int32_t>(head);
    ++sums.queries;
    sums.agreement += static_cast<double>(common) / static_cast<double>(count);
    sums.mass += mass / total;
  }
}

std::vector<HeadAgreement> AgreementProbe::heads() const {
  std::vector<HeadAgreement> all;
  for (const auto& [layer, heads] : layers_) all.insert(all.end(), heads.begin(), heads.end());
  return all;
}

}  // namespace fasa
