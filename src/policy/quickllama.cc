// quickllama: blocks of tokens that are relevant to the current token and to the question (QuickLLaMA, arXiv
// 2406.07528, section 3.2, on the block memory of InfLLM, arXiv 2402.04617).
//
//   representatives R(B) of a block: its 4 tokens of the highest sum of q . k over the observed queries
//   relevance of a block = q . r + 0.5 p . r,  r = mean of the keys in R(B), p = mean of the question's queries
//
// The question is the last `window` tokens of the prompt, whose queries are p and choose the representatives. A block
// is a page. Simplified: representatives come from those queries instead of each token's own following window; each
// head chooses its blocks (the paper sums the relevance over heads); blocks stay at their positions.
#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "src/core/dtype.h"
#include "src/core/scratch_slots.h"
#include "src/policy/pages.h"

namespace fasa {
namespace {

constexpr int64_t kRepresentatives = 4;
constexpr float kQuestionWeight = 0.5F;

class QuickLlamaState final : public PageState {
 public:
  QuickLlamaState(const PageShape& shape, int64_t num_q_heads, int64_t window)
      : PageState(shape),
        num_rows_(shape.num_rows),
        num_kv_heads_(shape.num_kv_heads),
        head_dim_(shape.width),
        num_q_heads_(num_q_heads),
        window_(window),
        queries_(static_cast<size_t>(window * num_q_heads * shape.width)),
        question_(static_cast<size_t>(num_q_heads * shape.width), 0.0F),
        probe_(static_cast<size_t>(shape.num_kv_heads * shape.width), 0.0F) {}

  void observe(const HeadsView& q, int64_t /*row*/) override {
    float* to = queries_.data() + observed_ % window_ * num_q_heads_ * head_dim_;
    for (int64_t h = 0; h < num_q_heads_; ++h) std::copy_n(q.at(h), head_dim_, to + h * head_dim_);
    ++observed_;
    changed_ = true;
  }
  // The question as it was asked stands for its positions only.
  void shifted(int64_t first, int64_t count) override {
    PageState::shifted(first, count);
    observed_ = 0;
    changed_ = true;
  }
  int64_t memory_bytes() const override {
    return PageState::memory_bytes() +
           static_cast<int64_t>((queries_.capacity() + question_.capacity() + probe_.capacity()) * sizeof(float));
  }

  // Without a prompt that was seen, the first decoded queries are the question.
  void decode(const HeadsView& q) {
    if (observed_ < window_) observe(q, 0);
    if (!std::exchange(changed_, false)) return;
    const int64_t count = std::min(observed_, window_);
    const int64_t group = num_q_heads_ / num_kv_heads_;
    std::ranges::fill(question_, 0.0F);
    std::ranges::fill(probe_, 0.0F);
    for (int64_t i = 0; i < count * num_q_heads_ * head_dim_; ++i) {
      question_[i % (num_q_heads_ * head_dim_)] += queries_[i] / static_cast<float>(count);
    }
    for (int64_t i = 0; i < num_q_heads_ * head_dim_; ++i) {
      probe_[i / head_dim_ / group * head_dim_ + i % head_dim_] += question_[i];
    }
    PageState::replaced(0, num_rows_);  // other representatives
  }
  const float* question(int64_t head) const { return question_.data() + head * head_dim_; }

 protected:
  void summarise(const CacheView& k, int64_t kv_head, int64_t first, int64_t last, float* out) const override {
    std::array<std::pair<float, int64_t>, kRepresentatives> best;
    int64_t found = 0;
    for (int64_t row = first; row < last; ++row) {
      float dot = 0;
      for (int64_t d = 0; d < head_dim_; ++d) {
        dot += probe_[kv_head * head_dim_ + d] * load_value(k.dtype, k.at(row, kv_head), d);
      }
      // The list stays sorted, best first; equal rows keep their order.
      int64_t at = found < kRepresentatives ? found++ : kRepresentatives;
      if (at == kRepresentatives && !(dot > best[kRepresentatives - 1].first)) continue;
      at = std::min(at, kRepresentatives - 1);
      for (; at > 0 && dot > best[at - 1].first; --at) best[at] = best[at - 1];
      best[at] = {dot, row};
    }
    std::fill_n(out, head_dim_, 0.0F);
    for (int64_t i = 0; i < found; ++i) {
      const std::byte* key = k.at(best[i].second, kv_head);
      for (int64_t d = 0; d < head_dim_; ++d) out[d] += load_value(k.dtype, key, d) / static_cast<float>(found);
    }
  }

 private:
  int64_t num_rows_, num_kv_heads_, head_dim_, num_q_heads_, window_;
  int64_t observed_ = 0;
  bool changed_ = false;
  std::vector<float> queries_;   // [window][num_q_heads][head_dim], a ring
  std::vector<float> question_;  // [num_q_heads][head_dim] their mean
  std::vector<float> probe_;     // [num_kv_heads][head_dim] its sum over the group
};

}  // namespace

std::unique_ptr<RowState> quickllama_state(const LayerProfile& layer, int64_t num_rows,
                                           const PolicySettings& settings) {
  return std::make_unique<QuickLlamaState>(PageShape{num_rows, layer.num_kv_heads, settings.page, layer.rope.head_dim},
                                           layer.num_q_heads, settings.window);
}

DecodeReport decode_quickllama(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  auto& state = static_cast<QuickLlamaState&>(*step.state);
  state.decode(step.q);
  const int64_t d = step.q.head_dim;
  auto* q = static_cast<float*>(
      context.shared_scratch(kSlotPolicy, static_cast<size_t>(step.q.num_heads * d) * sizeof(float)));
  for (int64_t h = 0; h < step.q.num_heads; ++h) {
    for (int64_t c = 0; c < d; ++c) q[h * d + c] = step.q.at(h)[c] + kQuestionWeight * state.question(h)[c];
  }
  return attend_pages(context, settings, step, state, {q, step.q.num_heads, d, d});
}

}  // namespace fasa
