#include "integrations/ggml/mask_scan.h"

#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace fasa::ggml {
namespace {

constexpr uint16_t kMinusInf = 0xFC00;

// Small counters let the compiler use 16-bit lanes: blocks of at most 4096 rows.
void count(const uint16_t* mask, int64_t num_rows, int64_t* zeros, int64_t* hidden) {
  for (int64_t begin = 0; begin < num_rows; begin += 4096) {
    const int64_t end = std::min(begin + 4096, num_rows);
    uint16_t zeros_here = 0;
    uint16_t hidden_here = 0;
    for (int64_t i = begin; i < end; ++i) {
      zeros_here = static_cast<uint16_t>(zeros_here + (mask[i] == 0 ? 1 : 0));
      hidden_here = static_cast<uint16_t>(hidden_here + (mask[i] == kMinusInf ? 1 : 0));
    }
    *zeros += zeros_here;
    *hidden += hidden_here;
  }
}

}  // namespace

void MaskScan::scan(const uint16_t* mask, int64_t num_rows) {
  biased_ = false;
  visible_ = {.num_rows = num_rows, .num_visible = num_rows, .mask = nullptr};
  if (mask == nullptr) return;
  int64_t zeros = 0;
  int64_t hidden = 0;
  count(mask, num_rows, &zeros, &hidden);
  biased_ = zeros + hidden != num_rows;
  if (!biased_) {
    int64_t leading = 0;
    int64_t unused = 0;
    count(mask, zeros, &leading, &unused);
    if (leading == zeros) {
      visible_ = {.num_rows = zeros, .num_visible = zeros, .mask = nullptr};
      return;
    }
  }
  int64_t end = num_rows;
  while (end > 0 && mask[end - 1] == kMinusInf) --end;
  flags_.resize(std::max(flags_.size(), static_cast<size_t>(num_rows)));
  bias_.resize(std::max(bias_.size(), static_cast<size_t>(num_rows)));
  for (int64_t i = 0; i < end; ++i) {
    flags_[i] = mask[i] != kMinusInf ? 1 : 0;
    bias_[i] = flags_[i] != 0 ? 0.0F : -std::numeric_limits<float>::infinity();
  }
  if (biased_) {
    for (int64_t i = 0; i < end; ++i) bias_[i] = ggml_fp16_to_fp32(mask[i]);
  }
  visible_ = {.num_rows = end, .num_visible = num_rows - hidden, .mask = flags_.data()};
}

}  // namespace fasa::ggml
