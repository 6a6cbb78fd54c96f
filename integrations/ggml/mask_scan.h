// What a row of llama.cpp's attention mask (F16: 0 visible, -inf hidden, or a bias) says.
#pragma once

#include <cstdint>
#include <vector>

#include "src/kv/layer_index.h"

namespace fasa::ggml {

class MaskScan {
 public:
  // `mask` [num_rows] F16, or null: everything is visible.
  void scan(const uint16_t* mask, int64_t num_rows);

  // Rows up to the last visible one.
  const VisibleRows& visible() const { return visible_; }
  // [visible().num_rows] to add to scores, or null: nothing is hidden among them.
  const float* bias() const { return visible_.mask != nullptr ? bias_.data() : nullptr; }
  // Values other than 0 and -inf occur: only dense attention can follow.
  bool is_biased() const { return biased_; }

 private:
  VisibleRows visible_;
  bool biased_ = false;
  std::vector<uint8_t> flags_;
  std::vector<float> bias_;
};

}  // namespace fasa::ggml
