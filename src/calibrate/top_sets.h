// The nested sets TopK of a row of scores, for several K at once.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "src/calibrate/statistics.h"

namespace fasa::calibrate {

// Row t is in TopK iff score > value, or score == value and t <= last_row.
struct TopThreshold {
  float value = 0;
  int64_t last_row = 0;
  bool contains(float score, int64_t row) const { return score > value || (score == value && row <= last_row); }
};

// Buffers that are kept from call to call.
struct TopSetsScratch {
  std::vector<int32_t> bin_of_row;
  std::vector<int32_t> histogram;
  std::vector<float> candidates;
};

// thresholds[k] for each K < scores.size(); `scores` are finite. K ascends in kAgreementSizes.
void top_thresholds(std::span<const float> scores, TopSetsScratch& scratch,
                    std::span<TopThreshold, kAgreementSizes.size()> thresholds);

}  // namespace fasa::calibrate
