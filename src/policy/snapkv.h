// SnapKV's rows; GraphKV ranks them once more.
#pragma once

#include <cstdint>

#include "src/policy/live_rows.h"

namespace fasa {

class SnapKvState : public LiveRows {
 public:
  using LiveRows::LiveRows;

 protected:
  // Room for a window of new rows, but never less than half of what is not forced.
  int64_t target(const PolicySettings& settings) const override;
  int64_t rank(Context& context, const PolicySettings& settings, const DecodeStep& step, const RowSets& live,
               float* ranks) override;
};

LiveShape snapkv_shape(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);

}  // namespace fasa
