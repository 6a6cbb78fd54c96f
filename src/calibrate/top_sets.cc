#include "src/calibrate/top_sets.h"

#include <algorithm>
#include <functional>

namespace fasa::calibrate {
namespace {

constexpr int kBins = 1024;

// Which bins between the smallest and the largest score the rows fall into; returns false if all
// are equal.
bool fill_bins(std::span<const float> scores, TopSetsScratch& scratch) {
  const auto [low, high] = std::minmax_element(scores.begin(), scores.end());
  const double width = static_cast<double>(*high) - *low;
  if (width <= 0) return false;
  // Monotone in the score, so every score of a higher bin is above all of a lower one.
  const double scale = (kBins - 1) / width;
  scratch.bin_of_row.resize(scores.size());
  scratch.histogram.assign(kBins, 0);
  const double origin = *low;
  for (size_t t = 0; t < scores.size(); ++t) {
    const auto bin = static_cast<uint16_t>((scores[t] - origin) * scale);
    scratch.bin_of_row[t] = bin;
    ++scratch.histogram[bin];
  }
  return true;
}

}  // namespace

void top_thresholds(std::span<const float> scores, TopSetsScratch& scratch,
                    std::span<TopThreshold, kAgreementSizes.size()> thresholds) {
  const auto rows = static_cast<int64_t>(scores.size());
  const bool spread = rows > kAgreementSizes[0] && fill_bins(scores, scratch);
  int bin = kBins;
  int64_t above = 0;  // rows in bins above `bin`
  for (size_t i = 0; i < kAgreementSizes.size(); ++i) {
    const int64_t k = kAgreementSizes[i];
    if (k >= rows) return;
    if (!spread) {
      thresholds[i] = {scores[0], k - 1};
      continue;
    }
    while (bin == kBins || above + scratch.histogram[bin] < k) {
      if (bin < kBins) above += scratch.histogram[bin];
      --bin;
    }
    scratch.candidates.clear();
    for (int64_t t = 0; t < rows; ++t) {
      if (scratch.bin_of_row[t] == bin) scratch.candidates.push_back(scores[t]);
    }
    const auto nth = scratch.candidates.begin() + (k - above - 1);
    std::nth_element(scratch.candidates.begin(), nth, scratch.candidates.end(), std::greater<>());
    const float value = *nth;
    // How many of the equal rows fit: those left after the greater ones, lowest rows first.
    int64_t equal_wanted = k - above -
                           std::count_if(scratch.candidates.begin(), scratch.candidates.end(),
                                         [value](float s) { return s > value; });
    int64_t last_row = -1;
    const int64_t equal_all =
        std::count(scratch.candidates.begin(), scratch.candidates.end(), value);
    if (equal_wanted == equal_all) {
      last_row = rows - 1;
    } else {
      while (equal_wanted > 0) equal_wanted -= scores[++last_row] == value ? 1 : 0;
    }
    thresholds[i] = {value, last_row};
  }
}

}  // namespace fasa::calibrate
