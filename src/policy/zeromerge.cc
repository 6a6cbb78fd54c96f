// zeromerge: rows of the least accumulated attention are not lost but merged into a few residual slots (ZeroMerge, in
// its later versions ZSMerge, arXiv 2503.10714, section 3).
//
//   F[g, t] <- 0.98 F[g, t] + sum over the query heads of KV head g of their softmax weight on row t
//   slot j = argmax of k . k_j;  k_j <- (w_j k_j + k) / (w_j + 1), v_j likewise, w_j <- w_j + 1
//   logit of slot j: scale q . k_j + log w_j      (compensation: the slot stands for w_j rows)
//
// The budget holds the context rows (best F), the recent ones and the slots, an eighth of it. The first time, when a
// prompt's worth of rows goes, they are divided in order into equal runs, a slot each. Simplified: of the prompt only
// the last `window` queries are accumulated; a KV head's query heads share rows and slots.
//
// What was merged cannot be taken out again: when a merged row is overwritten, hidden or rotated, all starts over from
// the rows that the cache still has.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "src/core/dtype.h"
#include "src/core/scratch_slots.h"
#include "src/ops/attend/attend.h"
#include "src/policy/live_rows.h"

namespace fasa {
namespace {

constexpr float kDecay = 0.98F;

class ZeroMergeState final : public LiveRows {
 public:
  ZeroMergeState(const LiveShape& shape, int64_t num_slots)
      : LiveRows(shape),
        num_slots_(num_slots),
        keys_(static_cast<size_t>(shape.num_kv_heads * num_slots * shape.head_dim)),
        weights_(static_cast<size_t>(shape.num_kv_heads * num_slots)),
        logs_(weights_.size()),
        used_(static_cast<size_t>(shape.num_kv_heads), 0),
        merged_(static_cast<size_t>(shape.num_rows), 0) {}

  void shifted(int64_t first, int64_t count) override {
    LiveRows::shifted(first, count);
    restart();
  }
  int64_t memory_bytes() const override {
    return LiveRows::memory_bytes() + static_cast<int64_t>((keys_.capacity() + values_.capacity() +
                                                            weights_.capacity() + logs_.capacity() + out_.capacity()) *
                                                               sizeof(float) +
                                                           used_.capacity() * sizeof(int64_t) + merged_.capacity());
  }

 protected:
  int64_t limit(const PolicySettings& settings) const override { return target(settings); }
  int64_t target(const PolicySettings& settings) const override { return settings.budget - num_slots_; }
  int64_t rank(Context& context, const PolicySettings& /*settings*/, const DecodeStep& step, const RowSets& live,
               float* ranks) override {
    return rank_by_mass(context, step, live, ranks);
  }
  void dropped(const PolicySettings& settings, const DecodeStep& step, int64_t kv_head,
               std::span<const int32_t> rows) override;
  void finish(Context& context, const DecodeStep& step, float* lse, DecodeReport& report) override;
  bool holds(const DecodeStep& step) const override;
  void overwritten(int64_t row) override { broken_ |= merged_[row] != 0; }
  void restart() override;

 private:
  void merge(const DecodeStep& step, int64_t kv_head, int64_t slot, int64_t row);
  int64_t nearest(const CacheView& k, int64_t kv_head, int64_t row) const;
  float* key(int64_t kv_head, int64_t slot) { return keys_.data() + (kv_head * num_slots_ + slot) * shape().head_dim; }

  int64_t num_slots_;
  int64_t width_ = 0;            // of V
  std::vector<float> keys_;      // [num_kv_heads][num_slots][head_dim]
  std::vector<float> values_;    // [num_kv_heads][num_slots][width]
  std::vector<float> weights_;   // [num_kv_heads][num_slots] rows merged into a slot
  std::vector<float> logs_;      // of weights_
  std::vector<int64_t> used_;    // [num_kv_heads] slots that hold something: the first ones
  std::vector<float> out_;       // [num_q_heads][width + 1] attention over the slots, then its lse
  std::vector<uint8_t> merged_;  // [num_rows] by any KV head
  int64_t merged_end_ = 0;       // past the last of them
  bool broken_ = false;
};

void ZeroMergeState::merge(const DecodeStep& step, int64_t kv_head, int64_t slot, int64_t row) {
  float& weight = weights_[kv_head * num_slots_ + slot];
  const float part = 1.0F / (weight + 1.0F);
  float* k = key(kv_head, slot);
  for (int64_t d = 0; d < shape().head_dim; ++d) {
    k[d] += (load_value(step.k.dtype, step.k.at(row, kv_head), d) - k[d]) * part;
  }
  float* v = values_.data() + (kv_head * num_slots_ + slot) * width_;
  for (int64_t d = 0; d < width_; ++d) {
    v[d] += (load_value(step.v.dtype, step.v.at(row, kv_head), d) - v[d]) * part;
  }
  weight += 1.0F;
  logs_[kv_head * num_slots_ + slot] = std::log(weight);
}

int64_t ZeroMergeState::nearest(const CacheView& k, int64_t kv_head, int64_t row) const {
  int64_t best = 0;
  float best_dot = -INFINITY;
  for (int64_t slot = 0; slot < used_[kv_head]; ++slot) {
    const float* own = keys_.data() + (kv_head * num_slots_ + slot) * shape().head_dim;
    float dot = 0;
    for (int64_t d = 0; d < k.head_dim; ++d) dot += own[d] * load_value(k.dtype, k.at(row, kv_head), d);
    if (dot > best_dot) {
      best = slot;
      best_dot = dot;
    }
  }
  return best;
}

void ZeroMergeState::dropped(const PolicySettings& /*settings*/, const DecodeStep& step, int64_t kv_head,
                             std::span<const int32_t> rows) {
  if (num_slots_ == 0 || rows.empty()) return;
  if (width_ == 0) {
    width_ = step.v.head_dim;
    values_.resize(static_cast<size_t>(shape().num_kv_heads * num_slots_ * width_));
    out_.resize(static_cast<size_t>(shape().num_q_heads * (width_ + 1)));
  }
  const auto count = static_cast<int64_t>(rows.size());
  const bool first = used_[kv_head] == 0;
  if (first) used_[kv_head] = std::min(num_slots_, count);
  for (int64_t i = 0; i < count; ++i) {
    int64_t slot = i * used_[kv_head] / count;
    if (!first) slot = used_[kv_head] < num_slots_ ? used_[kv_head]++ : nearest(step.k, kv_head, rows[i]);
    merge(step, kv_head, slot, rows[i]);
    merged_[rows[i]] = 1;
    merged_end_ = std::max<int64_t>(merged_end_, rows[i] + 1);
  }
}

void ZeroMergeState::finish(Context& context, const DecodeStep& step, float* lse, DecodeReport& report) {
  const int64_t heads = shape().num_q_heads;
  const int64_t group = heads / shape().num_kv_heads;
  for (int64_t g = 0; g < shape().num_kv_heads; ++g) {
    if (used_[g] == 0) continue;
    const int64_t key_bytes = shape().head_dim * static_cast<int64_t>(sizeof(float));
    const int64_t value_bytes = width_ * static_cast<int64_t>(sizeof(float));
    float* slot_lse = out_.data() + heads * width_ + g * group;
    ops::AttendArgs attend;
    attend.q = {step.q.at(g * group), group, step.q.head_dim, step.q.head_stride};
    attend.k = {reinterpret_cast<std::byte*>(key(g, 0)), DType::kF32, used_[g], 1, shape().head_dim, key_bytes, 0};
    attend.v = {reinterpret_cast<std::byte*>(values_.data() + g * num_slots_ * width_),
                DType::kF32,
                used_[g],
                1,
                width_,
                value_bytes,
                0};
    attend.scale = step.scale;
    attend.softcap = step.softcap;
    attend.num_rows = used_[g];
    attend.bias = logs_.data() + g * num_slots_;
    attend.out = {out_.data() + g * group * width_, group, width_, width_};
    attend.lse = slot_lse;
    ops::attend(context, attend);
    for (int64_t h = 0; h < group; ++h) {
      const float max = std::max(lse[g * group + h], slot_lse[h]);
      const float both = max + std::log(std::exp(lse[g * group + h] - max) + std::exp(slot_lse[h] - max));
      const float of_rows = std::exp(lse[g * group + h] - both);
      float* out = step.out.at(g * group + h);
      for (int64_t d = 0; d < width_; ++d) out[d] = of_rows * out[d] + (1.0F - of_rows) * attend.out.at(h)[d];
      lse[g * group + h] = both;
    }
    report.kv_bytes += used_[g] * (key_bytes + value_bytes);
  }
}

bool ZeroMergeState::holds(const DecodeStep& step) const {
  if (broken_ || merged_end_ > step.k.num_rows) return false;
  if (step.bias == nullptr) return true;
  for (int64_t row = 0; row < merged_end_; ++row) {
    if (merged_[row] != 0 && !step.sees(row)) return false;
  }
  return true;
}

void ZeroMergeState::restart() {
  LiveRows::restart();
  std::ranges::fill(keys_, 0.0F);
  std::ranges::fill(values_, 0.0F);
  std::ranges::fill(weights_, 0.0F);
  std::ranges::fill(used_, 0);
  std::ranges::fill(merged_, uint8_t{0});
  merged_end_ = 0;
  broken_ = false;
}

}  // namespace

std::unique_ptr<RowState> zeromerge_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings) {
  const int64_t free = settings.budget - settings.sinks - settings.recent;
  return std::make_unique<ZeroMergeState>(LiveShape{.num_rows = num_rows,
                                                    .num_q_heads = layer.num_q_heads,
                                                    .num_kv_heads = layer.num_kv_heads,
                                                    .head_dim = layer.rope.head_dim,
                                                    .window = settings.window,
                                                    .accumulates = true,
                                                    .decay = kDecay},
                                          std::min(settings.budget / 8, free - 1));
}

}  // namespace fasa
