// channels: an index of single channels chosen offline (Double Sparsity, arXiv 2408.07092, section 3.1: the channels of
// the largest |q_c k_c| on calibration data; section 3.2: the label cache holds them, quantised).
//
//   m[h, c] = mean over queries and tokens of |q[h, c] k[t, c]|   (the profile's "abs_qk")
//   channels of a KV head: the r largest of the sum of m over its query heads
//
// r = 2 N_tip, so the index has the bytes of fasa's. Scoring and attention are fasa's.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "fasa/error.h"
#include "src/policy/decode_step.h"

namespace fasa {

IndexContent channels_index(const LayerProfile& layer, const PolicySettings& settings) {
  const auto at = layer.channels.find("abs_qk");
  if (at == layer.channels.end()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("The profile has no channel means for layer {}, which --policy channels needs: make it "
                            "again with `fasa calibrate`.",
                            layer.layer));
  }
  IndexContent content;
  content.shape.type = index_type_for(settings, layer.rope.head_dim);
  content.shape.num_planes = settings.share_fcs ? layer.num_kv_heads : layer.num_q_heads;
  content.shape.num_fcs = fcs_per_head(settings, num_fcs(layer.rope));
  const int64_t head_dim = layer.rope.head_dim;
  const int64_t group = layer.num_q_heads / content.shape.num_planes;
  for (int64_t plane = 0; plane < content.shape.num_planes; ++plane) {
    std::vector<double> sum(static_cast<size_t>(head_dim), 0.0);
    for (int64_t head = plane * group; head < (plane + 1) * group; ++head) {
      for (int64_t c = 0; c < head_dim; ++c) sum[c] += static_cast<double>(at->second[head * head_dim + c]);
    }
    std::vector<int16_t> order(static_cast<size_t>(head_dim));
    std::iota(order.begin(), order.end(), int16_t{0});
    std::ranges::stable_sort(order, [&](int16_t a, int16_t b) { return sum[a] > sum[b]; });
    content.dims.insert(content.dims.end(), order.begin(), order.begin() + 2 * content.shape.num_fcs);
  }
  return content;
}

}  // namespace fasa
