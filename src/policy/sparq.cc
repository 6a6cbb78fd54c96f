// sparq: the dims where the query is largest, chosen anew for each query (SparQ Attention, arXiv 2312.04985, section 4,
// algorithm 1).
//
//   i1 = argtop-r of sum over the group's heads of |q|              (appendix: grouped queries share the choice)
//   s^ = softmax(q[i1] . K[:, i1] / sqrt(d |q[i1]|_1 / |q|_1));  rows = top-k of s^
//   out = alpha softmax(q . K[rows]) V[rows] + (1 - alpha) mean of V,   alpha = sum of s^ over the rows kept
//
// r = 2 N_tip. As in the paper K is kept a second time, f16 with one run of rows for each dim, so that only r of d are
// read; the mean of V over the visible rows is a running sum.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "src/core/dtype.h"
#include "src/core/math_util.h"
#include "src/core/scratch_slots.h"
#include "src/ops/score/score.h"
#include "src/ops/select/select.h"
#include "src/policy/decode_step.h"

namespace fasa {
namespace {

class SparqState final : public RowState {
 public:
  SparqState(int64_t num_kv_heads, int64_t head_dim, int64_t num_rows)
      : num_kv_heads_(num_kv_heads),
        head_dim_(head_dim),
        stride_(round_up(num_rows, kIndexBlock)),
        columns_(static_cast<size_t>(num_kv_heads * head_dim * stride_)),
        valid_(static_cast<size_t>(num_rows), 0) {}

  void replaced(int64_t first, int64_t count) override {
    std::fill_n(valid_.begin() + first, count, uint8_t{0});
    valid_prefix_ = std::min(valid_prefix_, first);
    if (first < summed_rows_) summed_rows_ = 0;
  }
  void shifted(int64_t first, int64_t count) override { replaced(first, count); }
  int64_t count_stale(const CacheView& k) const override;
  int64_t memory_bytes() const override {
    return static_cast<int64_t>(columns_.capacity() * sizeof(uint16_t) + valid_.capacity() +
                                (sum_.capacity() + mean_.capacity()) * sizeof(double));
  }

  // Brings columns and the sum of V up to date; returns the bytes of K and V read for it.
  int64_t update(const DecodeStep& step);
  const uint16_t* columns() const { return columns_.data(); }
  int64_t stride() const { return stride_; }
  const double* mean(int64_t kv_head) const { return mean_.data() + kv_head * width_; }

 private:
  void copy_row(const CacheView& k, int64_t row);
  int64_t sum_values(const DecodeStep& step);

  int64_t num_kv_heads_, head_dim_, stride_;
  std::vector<uint16_t> columns_;  // f16 [num_kv_heads][head_dim][stride]
  std::vector<uint8_t> valid_;
  int64_t valid_prefix_ = 0;
  int64_t width_ = 0;         // of V
  std::vector<double> sum_;   // [num_kv_heads][width] of rows 0..summed_rows_-1
  std::vector<double> mean_;  // the same over the visible rows of the step
  int64_t summed_rows_ = 0;
};

void SparqState::copy_row(const CacheView& k, int64_t row) {
  for (int64_t g = 0; g < num_kv_heads_; ++g) {
    const std::byte* key = k.at(row, g);
    for (int64_t d = 0; d < head_dim_; ++d) {
      columns_[(g * head_dim_ + d) * stride_ + row] = f32_to_f16(load_value(k.dtype, key, d));
    }
  }
}

int64_t SparqState::sum_values(const DecodeStep& step) {
  if (width_ == 0) {
    width_ = step.v.head_dim;
    sum_.resize(static_cast<size_t>(num_kv_heads_ * width_));
    mean_.resize(sum_.size());
  }
  // Hidden rows make the running sum useless: it is then made anew.
  if (summed_rows_ == 0 || summed_rows_ > step.k.num_rows || step.bias != nullptr) {
    std::ranges::fill(sum_, 0.0);
    summed_rows_ = 0;
  }
  int64_t read = 0;
  for (int64_t row = summed_rows_; row < step.k.num_rows; ++row) {
    if (!step.sees(row)) continue;
    read += num_kv_heads_ * dtype_bytes(step.v.dtype, width_);
    for (int64_t g = 0; g < num_kv_heads_; ++g) {
      const std::byte* value = step.v.at(row, g);
      for (int64_t d = 0; d < width_; ++d) sum_[g * width_ + d] += load_value(step.v.dtype, value, d);
    }
  }
  summed_rows_ = step.bias == nullptr ? step.k.num_rows : 0;
  for (size_t i = 0; i < sum_.size(); ++i) mean_[i] = sum_[i] / static_cast<double>(step.num_visible);
  return read;
}

int64_t SparqState::update(const DecodeStep& step) {
  int64_t read = 0;
  for (int64_t row = valid_prefix_; row < step.k.num_rows; ++row) {
    if (valid_[row] != 0 || !step.sees(row)) continue;
    copy_row(step.k, row);
    valid_[row] = 1;
    read += num_kv_heads_ * step.key_bytes();
  }
  while (valid_prefix_ < static_cast<int64_t>(valid_.size()) && valid_[valid_prefix_] != 0) ++valid_prefix_;
  return read + sum_values(step);
}

int64_t SparqState::count_stale(const CacheView& k) const {
  int64_t stale = 0;
  for (int64_t row = 0; row < static_cast<int64_t>(valid_.size()); ++row) {
    if (valid_[row] == 0) continue;
    bool same = true;
    for (int64_t i = 0; i < num_kv_heads_ * head_dim_; ++i) {
      const float key = load_value(k.dtype, k.at(row, i / head_dim_), i % head_dim_);
      same &= columns_[i * stride_ + row] == f32_to_f16(key);
    }
    stale += same ? 0 : 1;
  }
  return stale;
}

// The r dims of the largest sum of |q| over the heads of each KV head. [num_kv_heads][r]
void choose_dims(const DecodeStep& step, int64_t r, int16_t* dims, float* size) {
  const int64_t group = step.q.num_heads / step.k.num_heads;
  const int64_t head_dim = step.q.head_dim;
  for (int64_t g = 0; g < step.k.num_heads; ++g) {
    std::fill_n(size, head_dim, 0.0F);
    for (int64_t h = g * group; h < (g + 1) * group; ++h) {
      for (int64_t d = 0; d < head_dim; ++d) size[d] += std::abs(step.q.at(h)[d]);
    }
    int16_t* order = dims + g * head_dim;
    std::iota(order, order + head_dim, int16_t{0});
    std::partial_sort(order, order + r, order + head_dim,
                      [&](int16_t a, int16_t b) { return size[a] != size[b] ? size[a] > size[b] : a < b; });
    std::copy_n(order, r, dims + g * r);
  }
}

// 1 / sqrt(d |q[i1]|_1 / |q|_1), in the model's own scale: the paper's sqrt(d) is 1 / scale.
float temperature(const DecodeStep& step, int64_t head, const int16_t* dims, int64_t r) {
  float all = 0;
  float chosen = 0;
  for (int64_t d = 0; d < step.q.head_dim; ++d) all += std::abs(step.q.at(head)[d]);
  for (int64_t i = 0; i < r; ++i) chosen += std::abs(step.q.at(head)[dims[i]]);
  return chosen == 0.0F ? step.scale : step.scale * std::sqrt(all / chosen);
}

// s^ of one head in the place of its scores; -inf where a row is hidden.
void softmax_rows(const DecodeStep& step, float t, float* s) {
  const float max = *std::max_element(s, s + step.k.num_rows);
  double total = 0;
  for (int64_t row = 0; row < step.k.num_rows; ++row) {
    if (!step.sees(row)) continue;
    s[row] = std::exp((s[row] - max) * t);
    total += static_cast<double>(s[row]);
  }
  const auto inverse = static_cast<float>(1.0 / total);
  for (int64_t row = 0; row < step.k.num_rows; ++row) s[row] *= inverse;
}

// [num_kv_heads, stride] sums of the group's rows of [num_q_heads, stride].
void sum_groups(const DecodeStep& step, const float* s, int64_t stride, float* sums) {
  const int64_t group = step.q.num_heads / step.k.num_heads;
  for (int64_t g = 0; g < step.k.num_heads; ++g) {
    std::copy_n(s + g * group * stride, step.k.num_rows, sums + g * stride);
    for (int64_t h = g * group + 1; h < (g + 1) * group; ++h) {
      for (int64_t row = 0; row < step.k.num_rows; ++row) sums[g * stride + row] += s[h * stride + row];
    }
  }
}

}  // namespace

std::unique_ptr<RowState> sparq_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& /*settings*/) {
  return std::make_unique<SparqState>(layer.num_kv_heads, layer.rope.head_dim, num_rows);
}

DecodeReport decode_sparq(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  auto& state = static_cast<SparqState&>(*step.state);
  const int64_t updated = state.update(step);
  const int64_t heads = step.q.num_heads;
  const int64_t kv_heads = step.k.num_heads;
  const int64_t head_dim = step.q.head_dim;
  const int64_t r = 2 * fcs_per_head(settings, head_dim / 2);

  int64_t stride = 0;
  float* scores = score_scratch(context, heads + kv_heads, step.k.num_rows, &stride);
  auto* work = static_cast<float*>(
      context.shared_scratch(kSlotPolicy, static_cast<size_t>(head_dim) * sizeof(float) +
                                              static_cast<size_t>(kv_heads * (head_dim + r)) * sizeof(int16_t)));
  auto* dims = reinterpret_cast<int16_t*>(work + head_dim);
  choose_dims(step, r, dims, work);

  ops::ColumnScoreArgs score;
  score.q = step.q;
  score.columns = state.columns();
  score.columns_stride = state.stride();
  score.num_kv_heads = kv_heads;
  score.dims = dims;
  score.num_dims = r;
  score.num_rows = step.k.num_rows;
  score.bias = step.bias;
  score.scores = scores;
  score.scores_stride = stride;
  ops::column_score(context, score);

  context.parallel_for(heads, [&](int64_t head, int /*worker*/) {
    const float t = temperature(step, head, dims + head * kv_heads / heads * r, r);
    softmax_rows(step, t, scores + head * stride);
  });
  const float* ranking = scores;
  if (settings.share_tokens) {
    float* sums = scores + heads * stride;
    sum_groups(step, scores, stride, sums);
    ranking = sums;
  }
  const RowSets kept = select_rows(context, settings, step, ranking, stride);
  DecodeReport report = attend_rows(context, step, kept);
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t set = head * kept.num_sets / heads;
    float alpha = 0;
    for (int64_t i = 0; i < kept.counts[set]; ++i) alpha += scores[head * stride + kept.rows[set * kept.stride + i]];
    const double* mean = state.mean(head * kv_heads / heads);
    float* out = step.out.at(head);
    for (int64_t d = 0; d < step.out.head_dim; ++d) {
      out[d] = alpha * out[d] + (1.0F - alpha) * static_cast<float>(mean[d]);
    }
  }
  report.index_bytes = updated + step.k.num_rows * kv_heads * r * 2;
  return report;
}

}  // namespace fasa
