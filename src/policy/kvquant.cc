// kvquant: an index of the whole key in 4 bits; the 16-bit rows are read for the selected tokens only. The low-bit
// keys are those of KVQuant (arXiv 2401.18079, section 3), used as a scorer. Simplified: a scale for each token instead
// of one for each channel before RoPE, uniform levels, and no outliers kept apart.
#include <numeric>

#include "src/policy/decode_step.h"

namespace fasa {

IndexContent kvquant_index(const LayerProfile& layer, const PolicySettings& /*settings*/) {
  IndexContent content;
  content.shape.type = IndexType::kI4;
  content.shape.num_planes = layer.num_kv_heads;
  content.shape.num_fcs = layer.rope.head_dim / 2;
  content.dims.resize(static_cast<size_t>(content.shape.num_planes * layer.rope.head_dim));
  for (int64_t plane = 0; plane < content.shape.num_planes; ++plane) {
    const auto first = content.dims.begin() + plane * layer.rope.head_dim;
    std::iota(first, first + layer.rope.head_dim, int16_t{0});
  }
  return content;
}

}  // namespace fasa
