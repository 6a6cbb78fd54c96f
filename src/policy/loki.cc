// loki: an index of the first principal components of the keys (Loki, arXiv 2406.02542, section 4, algorithm 1).
//
//   S[t] = (P_r q) . (P_r k_t),  P_r = the r leading eigenvectors of the covariance of a KV head's keys
//
// P is computed offline from keys before or after RoPE ("basis") and in both cases applied after it, as in the paper.
// r = 2 N_tip, so the index has the bytes of fasa's. Scoring and attention are fasa's. Simplified: the index is a copy
// (int8 by default) beside K; the paper keeps the cache itself in the rotated basis.
#include <fmt/format.h>

#include <algorithm>

#include "fasa/error.h"
#include "src/policy/decode_step.h"

namespace fasa {

IndexContent loki_index(const LayerProfile& layer, const PolicySettings& settings) {
  const auto at = layer.bases.find("pca_" + settings.basis);
  if (at == layer.bases.end()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("The profile has no principal components ({} RoPE) for layer {}, which --policy loki "
                            "needs: make it again with `fasa calibrate --pca`.",
                            settings.basis, layer.layer));
  }
  IndexContent content;
  content.shape.type = index_type_for(settings, layer.rope.head_dim);
  content.shape.num_planes = layer.num_kv_heads;
  content.shape.num_fcs = fcs_per_head(settings, num_fcs(layer.rope));
  const int64_t axes = static_cast<int64_t>(at->second.size()) / (layer.num_kv_heads * layer.rope.head_dim);
  if (2 * content.shape.num_fcs > axes) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("The profile has {} principal components a head, fewer than the {} that N_tip asks for: "
                            "give an N_tip of at most {}.",
                            axes, 2 * content.shape.num_fcs, axes / 2));
  }
  const int64_t taken = 2 * content.shape.num_fcs * layer.rope.head_dim;
  for (int64_t plane = 0; plane < content.shape.num_planes; ++plane) {
    const auto first = at->second.begin() + plane * axes * layer.rope.head_dim;
    content.basis.insert(content.basis.end(), first, first + taken);
  }
  return content;
}

}  // namespace fasa
