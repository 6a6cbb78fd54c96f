// graphkv: snapkv's rows ranked once more so that they differ (GraphKV, arXiv 2509.00388, section 3: tokens are nodes,
// similar keys are neighbours, and the best tokens send a decay signal to theirs).
//
//   S = the K rows of the highest snapkv rank s
//   s'[t] = s[t] (1 - max over i in S of max(0, cos(k_t, k_i)))  for t not in S;  s'[t] = s[t] for t in S
//
// K is an eighth of the rows to keep. Simplified: one round of propagation, a row hears only its most similar source,
// and keys are compared after RoPE.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "src/core/dtype.h"
#include "src/core/scratch_slots.h"
#include "src/ops/score/score.h"
#include "src/policy/snapkv.h"

namespace fasa {
namespace {

class GraphKvState final : public SnapKvState {
 public:
  using SnapKvState::SnapKvState;

  int64_t memory_bytes() const override {
    return SnapKvState::memory_bytes() + static_cast<int64_t>(order_.capacity() * sizeof(int32_t) +
                                                              (key_.capacity() + near_.capacity()) * sizeof(float));
  }

 protected:
  int64_t rank(Context& context, const PolicySettings& settings, const DecodeStep& step, const RowSets& live,
               float* ranks) override {
    int64_t read = SnapKvState::rank(context, settings, step, live, ranks);
    const int64_t num_sources = std::max<int64_t>(1, target(settings) / 8);
    for (int64_t g = 0; g < live.num_sets; ++g) read += propagate(context, step, live, g, num_sources, ranks);
    return read;
  }

 private:
  // |k| of a row, whose values are left in key_.
  float load_key(const CacheView& k, int64_t row, int64_t kv_head) {
    key_.resize(static_cast<size_t>(k.head_dim));
    float square = 0;
    for (int64_t d = 0; d < k.head_dim; ++d) {
      key_[d] = load_value(k.dtype, k.at(row, kv_head), d);
      square += key_[d] * key_[d];
    }
    return std::sqrt(square);
  }

  int64_t propagate(Context& context, const DecodeStep& step, const RowSets& live, int64_t g, int64_t num_sources,
                    float* ranks) {
    const int64_t n = live.counts[g];
    const int32_t* rows = live.rows + g * live.stride;
    float* rank = ranks + g * live.stride;
    num_sources = std::min(num_sources, n);
    order_.resize(static_cast<size_t>(n));
    std::iota(order_.begin(), order_.end(), 0);
    std::partial_sort(order_.begin(), order_.begin() + num_sources, order_.end(),
                      [&](int32_t a, int32_t b) { return rank[a] != rank[b] ? rank[a] > rank[b] : a < b; });
    near_.assign(static_cast<size_t>(n), 0.0F);
    auto* dots = static_cast<float*>(context.shared_scratch(kSlotObserve, static_cast<size_t>(n) * sizeof(float)));
    CacheView head = step.k;
    head.data = step.k.at(0, g);
    head.num_heads = 1;
    for (int64_t s = 0; s < num_sources; ++s) {
      const float length = load_key(step.k, rows[order_[s]], g);
      ops::ExactScoreArgs score;
      score.q = {key_.data(), 1, step.k.head_dim, step.k.head_dim};
      score.k = head;
      score.rows = rows;
      score.rows_stride = live.stride;
      score.num_kept = &n;
      score.scores = dots;
      score.scores_stride = n;
      ops::exact_score(context, score);
      for (int64_t i = 0; i < n; ++i) near_[i] = std::max(near_[i], length > 0 ? dots[i] / length : 0.0F);
    }
    for (int64_t s = 0; s < num_sources; ++s) near_[order_[s]] = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (near_[i] <= 0) continue;
      const float length = load_key(step.k, rows[i], g);
      if (length > 0) rank[i] *= std::max(0.0F, 1.0F - near_[i] / length);
    }
    return (num_sources + 1) * n * step.key_bytes();
  }

  std::vector<int32_t> order_;
  std::vector<float> key_;
  std::vector<float> near_;  // max over the sources of k . k_i / |k_i|
};

}  // namespace

std::unique_ptr<RowState> graphkv_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings) {
  return std::make_unique<GraphKvState>(snapkv_shape(layer, num_rows, settings));
}

}  // namespace fasa
