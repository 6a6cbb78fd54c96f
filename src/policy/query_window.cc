#include "src/policy/query_window.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "src/core/scratch_slots.h"
#include "src/ops/score/score.h"

namespace fasa {

QueryWindow::QueryWindow(int64_t capacity, int64_t num_heads, int64_t head_dim)
    : num_heads_(num_heads),
      head_dim_(head_dim),
      queries_(static_cast<size_t>(capacity * num_heads * head_dim)),
      rows_(static_cast<size_t>(capacity), -1) {}

void QueryWindow::push(const HeadsView& q, int64_t row) {
  float* to = queries_.data() + next_ * num_heads_ * head_dim_;
  for (int64_t h = 0; h < num_heads_; ++h) std::copy_n(q.at(h), head_dim_, to + h * head_dim_);
  rows_[next_] = row;
  next_ = (next_ + 1) % capacity();
}

void QueryWindow::forget(int64_t first, int64_t count) {
  for (int64_t& row : rows_) {
    if (row >= first && row < first + count) row = -1;
  }
}

void QueryWindow::clear() { std::ranges::fill(rows_, -1); }

int64_t QueryWindow::memory_bytes() const {
  return static_cast<int64_t>(queries_.capacity() * sizeof(float) + rows_.capacity() * sizeof(int64_t));
}

namespace {

// Adds the attention of one query head, from its dot products with the set's rows.
void add_attention(const DecodeStep& step, const int32_t* rows, int64_t count, int64_t own_row, float* dots,
                   float* sums) {
  float max = -INFINITY;
  for (int64_t i = 0; i < count; ++i) {
    float x = dots[i] * step.scale;
    if (step.softcap > 0) x = step.softcap * std::tanh(x / step.softcap);
    if (step.ages[rows[i]] > step.ages[own_row]) x = -INFINITY;
    dots[i] = x;
    max = std::max(max, x);
  }
  if (max == -INFINITY) return;
  float total = 0;
  for (int64_t i = 0; i < count; ++i) {
    dots[i] = std::exp(dots[i] - max);
    total += dots[i];
  }
  for (int64_t i = 0; i < count; ++i) sums[i] += dots[i] / total;
}

}  // namespace

int64_t window_attention(Context& context, const DecodeStep& step, QueryWindow& window, const RowSets& sets,
                         float* sums) {
  assert(sets.num_sets == step.k.num_heads);
  const int64_t heads = step.q.num_heads;
  const int64_t group = heads / step.k.num_heads;
  auto* dots = static_cast<float*>(
      context.shared_scratch(kSlotObserve, static_cast<size_t>(heads * sets.stride) * sizeof(float)));
  std::fill_n(sums, sets.num_sets * sets.stride, 0.0F);
  int64_t rows = 0;
  window.for_each_seen(step, [&](const HeadsView& q, int64_t own_row) {
    ops::ExactScoreArgs score;
    score.q = q;
    score.k = step.k;
    score.rows = sets.rows;
    score.rows_stride = sets.stride;
    score.num_kept = sets.counts;
    score.scores = dots;
    score.scores_stride = sets.stride;
    ops::exact_score(context, score);
    context.parallel_for(sets.num_sets, [&](int64_t g, int /*worker*/) {
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        add_attention(step, sets.rows + g * sets.stride, sets.counts[g], own_row, dots + h * sets.stride,
                      sums + g * sets.stride);
      }
    });
    for (int64_t g = 0; g < sets.num_sets; ++g) rows += sets.counts[g];
  });
  return rows * step.key_bytes();
}

}  // namespace fasa
