// snapkv: at the end of the prompt, the rows that its last `window` queries attend to (SnapKV, arXiv 2404.14469,
// section 4, listing 1).
//
//   C[g, t] = sum over the window's queries and the query heads of KV head g of softmax(q . K)[t]
//   rank = average of C over 5 neighbours;  kept: the best, and the window itself (the recent rows)
//
// Simplified: a KV head's query heads share their rows (the paper keeps K for each query head). Beyond the paper, which
// keeps every generated token, the same rule runs again when budget rows are live, with the last generated queries as
// the window; it then makes room for a window of tokens, so that the budget bounds what is read.
#include "src/policy/snapkv.h"

#include <algorithm>
#include <memory>

namespace fasa {

int64_t SnapKvState::target(const PolicySettings& settings) const {
  const int64_t free = settings.budget - settings.sinks - settings.recent;
  return settings.budget - std::min(settings.window, free / 2);
}

int64_t SnapKvState::rank(Context& context, const PolicySettings& /*settings*/, const DecodeStep& step,
                          const RowSets& live, float* ranks) {
  constexpr int64_t kHalf = 2;
  const int64_t read = window_attention(context, step, window(), live, ranks);
  for (int64_t g = 0; g < live.num_sets; ++g) {
    float* rank = ranks + g * live.stride;
    const int64_t n = live.counts[g];
    float before[kHalf] = {};  // what stood at i - 2 and i - 1
    for (int64_t i = 0; i < n; ++i) {
      float sum = before[0] + before[1];
      for (int64_t j = i; j <= std::min(i + kHalf, n - 1); ++j) sum += rank[j];
      before[0] = before[1];
      before[1] = rank[i];
      rank[i] = sum / (2 * kHalf + 1);
    }
  }
  return read;
}

LiveShape snapkv_shape(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings) {
  return {.num_rows = num_rows,
          .num_q_heads = layer.num_q_heads,
          .num_kv_heads = layer.num_kv_heads,
          .head_dim = layer.rope.head_dim,
          .window = settings.window};
}

std::unique_ptr<RowState> snapkv_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings) {
  return std::make_unique<SnapKvState>(snapkv_shape(layer, num_rows, settings));
}

}  // namespace fasa
