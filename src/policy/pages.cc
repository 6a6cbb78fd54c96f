#include "src/policy/pages.h"

#include <algorithm>

#include "src/core/dtype.h"
#include "src/core/math_util.h"
#include "src/core/scratch_slots.h"
#include "src/ops/score/score.h"

namespace fasa {

PageState::PageState(const PageShape& shape)
    : shape_(shape),
      summaries_(static_cast<size_t>(ceil_div(shape.num_rows, shape.page) * shape.num_kv_heads * shape.width)),
      covered_(static_cast<size_t>(ceil_div(shape.num_rows, shape.page)), 0),
      work_(static_cast<size_t>(shape.width)) {}

void PageState::replaced(int64_t first, int64_t count) {
  if (count <= 0) return;
  const int64_t last = (first + count - 1) / shape_.page;
  for (int64_t p = first / shape_.page; p <= last; ++p) covered_[p] = 0;
}

void PageState::store(const CacheView& k, int64_t p, int64_t last, std::vector<uint16_t>& to) const {
  for (int64_t g = 0; g < shape_.num_kv_heads; ++g) {
    summarise(k, g, p * shape_.page, last, work_.data());
    uint16_t* out = to.data() + (p * shape_.num_kv_heads + g) * shape_.width;
    for (int64_t i = 0; i < shape_.width; ++i) out[i] = f32_to_f16(work_[i]);
  }
}

int64_t PageState::update(const DecodeStep& step) {
  int64_t rows = 0;
  const int64_t pages = ceil_div(step.k.num_rows, shape_.page);
  for (int64_t p = 0; p < pages; ++p) {
    const int64_t last = std::min(step.k.num_rows, (p + 1) * shape_.page);
    const int64_t count = last - p * shape_.page;
    if (covered_[p] >= count) continue;
    store(step.k, p, last, summaries_);
    covered_[p] = count;
    rows += count;
  }
  return rows * step.k.num_heads * step.key_bytes();
}

CacheView PageState::summaries(int64_t num_rows) {
  const int64_t head = shape_.width * static_cast<int64_t>(sizeof(uint16_t));
  return {reinterpret_cast<std::byte*>(summaries_.data()),
          DType::kF16,
          ceil_div(num_rows, shape_.page),
          shape_.num_kv_heads,
          shape_.width,
          head * shape_.num_kv_heads,
          head};
}

int64_t PageState::count_stale(const CacheView& k) const {
  std::vector<uint16_t> fresh = summaries_;
  int64_t stale = 0;
  for (int64_t p = 0; p < static_cast<int64_t>(covered_.size()); ++p) {
    if (covered_[p] == 0) continue;
    store(k, p, p * shape_.page + covered_[p], fresh);
    const int64_t width = shape_.num_kv_heads * shape_.width;
    stale += std::equal(fresh.begin() + p * width, fresh.begin() + (p + 1) * width, summaries_.begin() + p * width)
                 ? 0
                 : covered_[p];
  }
  return stale;
}

int64_t PageState::memory_bytes() const {
  return static_cast<int64_t>(summaries_.capacity() * sizeof(uint16_t) + covered_.capacity() * sizeof(int64_t) +
                              work_.capacity() * sizeof(float));
}

DecodeReport attend_pages(Context& context, const PolicySettings& settings, const DecodeStep& step, PageState& state,
                          const HeadsView& q) {
  const int64_t updated = state.update(step);
  const CacheView summaries = state.summaries(step.k.num_rows);
  const int64_t num_sets = num_selections(settings, step);
  auto* page_scores = static_cast<float*>(
      context.shared_scratch(kSlotObserve, static_cast<size_t>(num_sets * summaries.num_rows) * sizeof(float)));
  ops::ExactScoreArgs score;
  score.q = q;
  score.k = summaries;
  score.reduce = settings.share_tokens ? ops::GroupReduce::kMax : ops::GroupReduce::kNone;
  score.scores = page_scores;
  score.scores_stride = summaries.num_rows;
  ops::exact_score(context, score);

  int64_t stride = 0;
  float* scores = score_scratch(context, num_sets, step.k.num_rows, &stride);
  for (int64_t set = 0; set < num_sets; ++set) {
    float* out = scores + set * stride;
    for (int64_t row = 0; row < step.k.num_rows; ++row) {
      out[row] = page_scores[set * summaries.num_rows + row / state.page()];
    }
    if (step.bias == nullptr) continue;
    for (int64_t row = 0; row < step.k.num_rows; ++row) out[row] += step.bias[row];
  }
  DecodeReport report = attend_selected(context, settings, step, scores, stride);
  report.index_bytes = updated + summaries.num_rows * summaries.row_stride;
  return report;
}

}  // namespace fasa
