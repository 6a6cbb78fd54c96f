// actqkv: pages retrieved by a probe made of the window's most active queries (ActQKV, arXiv 2502.13542, section 3).
//
//   b[j] = mean over dims c of (q_j[c] - mu[c])^2 / (s2[c] + mean(s2) / 100)    activation bias of token j, mu and s2
//          the mean and variance over the window of dim c (of all heads)
//   probe[h] = sum over j of b[j] / sum(b) q_j[h];  score of a page = probe[h] . mean of its keys
//
// The window is the last `window` queries, this one included. Simplified: mu and s2 are the window's own, where the
// paper keeps running ones; each head chooses its pages; the budget is the same in all layers (the paper's cut-off
// shifts it between layers by the entropy of the scores).
#include <algorithm>
#include <memory>
#include <vector>

#include "src/core/dtype.h"
#include "src/core/scratch_slots.h"
#include "src/policy/pages.h"
#include "src/policy/query_window.h"

namespace fasa {
namespace {

class ActQkvState final : public PageState {
 public:
  ActQkvState(const PageShape& shape, int64_t num_q_heads, int64_t window)
      : PageState(shape),
        width_(num_q_heads * shape.width),
        window_(window, num_q_heads, shape.width),
        mean_(static_cast<size_t>(width_)),
        variance_(static_cast<size_t>(width_)) {
    bias_.reserve(static_cast<size_t>(window));
  }

  void replaced(int64_t first, int64_t count) override {
    PageState::replaced(first, count);
    window_.forget(first, count);
  }
  void shifted(int64_t first, int64_t count) override {
    PageState::shifted(first, count);
    window_.clear();
  }
  void observe(const HeadsView& q, int64_t row) override { window_.push(q, row); }
  int64_t memory_bytes() const override {
    return PageState::memory_bytes() + window_.memory_bytes() +
           static_cast<int64_t>((mean_.capacity() + variance_.capacity() + bias_.capacity()) * sizeof(float));
  }

  // probe [num_q_heads, head_dim]
  void make_probe(const DecodeStep& step, float* probe) {
    window_.push(step.q, step.row);
    std::ranges::fill(mean_, 0.0F);
    std::ranges::fill(variance_, 0.0F);
    const int64_t count = window_.count_seen(step);
    const auto part = 1.0F / static_cast<float>(count);
    const auto value = [](const HeadsView& q, int64_t i) { return q.at(i / q.head_dim)[i % q.head_dim]; };
    window_.for_each_seen(step, [&](const HeadsView& q, int64_t) {
      for (int64_t i = 0; i < width_; ++i) mean_[i] += value(q, i) * part;
    });
    window_.for_each_seen(step, [&](const HeadsView& q, int64_t) {
      for (int64_t i = 0; i < width_; ++i) variance_[i] += (value(q, i) - mean_[i]) * (value(q, i) - mean_[i]) * part;
    });
    float floor = 0;
    for (const float v : variance_) floor += v / static_cast<float>(width_) / 100.0F;
    bias_.clear();
    float total = 0;
    window_.for_each_seen(step, [&](const HeadsView& q, int64_t) {
      float sum = 0;
      for (int64_t i = 0; i < width_ && floor > 0; ++i) {
        const float distance = value(q, i) - mean_[i];
        sum += distance * distance / (variance_[i] + floor);
      }
      bias_.push_back(sum);
      total += sum;
    });
    std::fill_n(probe, width_, 0.0F);
    size_t j = 0;
    window_.for_each_seen(step, [&](const HeadsView& q, int64_t) {
      // A single query, or equal ones, have no bias: all count the same.
      const float weight = total > 0 ? bias_[j] / total : part;
      for (int64_t i = 0; i < width_; ++i) probe[i] += weight * value(q, i);
      ++j;
    });
  }

 protected:
  void summarise(const CacheView& k, int64_t kv_head, int64_t first, int64_t last, float* out) const override {
    std::fill_n(out, k.head_dim, 0.0F);
    const auto part = 1.0F / static_cast<float>(last - first);
    for (int64_t row = first; row < last; ++row) {
      const std::byte* key = k.at(row, kv_head);
      for (int64_t d = 0; d < k.head_dim; ++d) out[d] += load_value(k.dtype, key, d) * part;
    }
  }

 private:
  int64_t width_;  // of all heads
  QueryWindow window_;
  std::vector<float> mean_;
  std::vector<float> variance_;
  std::vector<float> bias_;  // of the window's queries, newest first
};

}  // namespace

std::unique_ptr<RowState> actqkv_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings) {
  return std::make_unique<ActQkvState>(PageShape{num_rows, layer.num_kv_heads, settings.page, layer.rope.head_dim},
                                       layer.num_q_heads, settings.window);
}

DecodeReport decode_actqkv(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  auto& state = static_cast<ActQkvState&>(*step.state);
  const int64_t d = step.q.head_dim;
  auto* probe = static_cast<float*>(
      context.shared_scratch(kSlotPolicy, static_cast<size_t>(step.q.num_heads * d) * sizeof(float)));
  state.make_probe(step, probe);
  return attend_pages(context, settings, step, state, {probe, step.q.num_heads, d, d});
}

}  // namespace fasa
