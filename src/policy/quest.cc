// quest: the pages whose keys could score highest (Quest, arXiv 2406.10774, section 3.3, algorithm 1).
//
//   m[c], M[c] = min and max over the page's keys of k[c]
//   score of a page = sum over c of max(q[c] m[c], q[c] M[c]) = max(q, 0) . M + min(q, 0) . m
//
// The right side is a dot product with a summary [M; m] of 2d values. All rows of the best pages are kept until the
// budget is full, so the last page may be cut. Simplified: pages are of physical rows; forced rows count in the budget.
#include <algorithm>
#include <memory>

#include "src/core/dtype.h"
#include "src/core/scratch_slots.h"
#include "src/policy/pages.h"

namespace fasa {
namespace {

class QuestState final : public PageState {
 public:
  using PageState::PageState;

 protected:
  void summarise(const CacheView& k, int64_t kv_head, int64_t first, int64_t last, float* out) const override {
    for (int64_t c = 0; c < k.head_dim; ++c) {
      float low = load_value(k.dtype, k.at(first, kv_head), c);
      float high = low;
      for (int64_t row = first + 1; row < last; ++row) {
        const float x = load_value(k.dtype, k.at(row, kv_head), c);
        low = std::min(low, x);
        high = std::max(high, x);
      }
      out[c] = high;
      out[k.head_dim + c] = low;
    }
  }
};

}  // namespace

std::unique_ptr<RowState> quest_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings) {
  return std::make_unique<QuestState>(
      PageShape{num_rows, layer.num_kv_heads, settings.page, 2 * static_cast<int64_t>(layer.rope.head_dim)});
}

DecodeReport decode_quest(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  const int64_t d = step.q.head_dim;
  auto* split = static_cast<float*>(
      context.shared_scratch(kSlotPolicy, static_cast<size_t>(step.q.num_heads * 2 * d) * sizeof(float)));
  for (int64_t h = 0; h < step.q.num_heads; ++h) {
    for (int64_t c = 0; c < d; ++c) {
      split[h * 2 * d + c] = std::max(step.q.at(h)[c], 0.0F);
      split[h * 2 * d + d + c] = std::min(step.q.at(h)[c], 0.0F);
    }
  }
  return attend_pages(context, settings, step, static_cast<PageState&>(*step.state),
                      {split, step.q.num_heads, 2 * d, 2 * d});
}

}  // namespace fasa
