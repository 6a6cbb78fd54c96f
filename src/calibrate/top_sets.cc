#include "src/calibrate/top_sets.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace fasa::calibrate {
namespace {

constexpr int kBins = 1024;

struct Range {
  float low;
  float high;
};

Range range_of(std::span<const float> scores) {
  constexpr size_t kLanes = 8;  // so that the compiler may use SIMD
  float low[kLanes];
  float high[kLanes];
  std::fill_n(low, kLanes, scores[0]);
  std::fill_n(high, kLanes, scores[0]);
  const auto widen = [&](size_t lane, float s) {
    low[lane] = s < low[lane] ? s : low[lane];
    high[lane] = s > high[lane] ? s : high[lane];
  };
  size_t t = 0;
  for (; t + kLanes <= scores.size(); t += kLanes) {
    for (size_t i = 0; i < kLanes; ++i) widen(i, scores[t + i]);
  }
  for (; t < scores.size(); ++t) widen(0, scores[t]);
  return {*std::min_element(low, low + kLanes), *std::max_element(high, high + kLanes)};
}

// Which bins between the smallest and the largest score the rows fall into; false if all are equal.
bool fill_bins(std::span<const float> scores, TopSetsScratch& scratch) {
  const auto [low, high] = range_of(scores);
  if (low == high) return false;
  // Monotone in the score, so every score of a higher bin is above all of a lower one.
  const float scale = (kBins - 1) / (high - low);
  const bool one_bin = !(std::isnormal(scale) && std::isfinite(high - low));
  scratch.bin_of_row.resize(scores.size());
  int32_t* bins = scratch.bin_of_row.data();
  for (size_t t = 0; t < scores.size(); ++t) {
    bins[t] = one_bin ? 0 : static_cast<int32_t>((scores[t] - low) * scale);
  }
  scratch.histogram.assign(kBins + 1, 0);
  for (size_t t = 0; t < scores.size(); ++t) ++scratch.histogram[bins[t]];
  return true;
}

// The scores of one bin, in scratch.candidates.
std::span<float> scores_of_bin(std::span<const float> scores, int bin, TopSetsScratch& scratch) {
  scratch.candidates.resize(scores.size() + 1);
  float* out = scratch.candidates.data();
  size_t count = 0;
  for (size_t t = 0; t < scores.size(); ++t) {  // without a branch, which none could predict
    out[count] = scores[t];
    count += scratch.bin_of_row[t] == bin ? 1 : 0;
  }
  return {out, count};
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
    while (above + scratch.histogram[bin] < k) {
      above += scratch.histogram[bin];
      --bin;
    }
    const std::span<float> candidates = scores_of_bin(scores, bin, scratch);
    const auto nth = candidates.begin() + (k - above - 1);
    std::nth_element(candidates.begin(), nth, candidates.end(), std::greater<>());
    const float value = *nth;
    // How many of the equal rows fit: those left after the greater ones, lowest rows first.
    int64_t equal_wanted =
        k - above - std::count_if(candidates.begin(), candidates.end(), [value](float s) { return s > value; });
    int64_t last_row = -1;
    const int64_t equal_all = std::count(candidates.begin(), candidates.end(), value);
    if (equal_wanted == equal_all) {
      last_row = rows - 1;
    } else {
      while (equal_wanted > 0) equal_wanted -= scores[++last_row] == value ? 1 : 0;
    }
    thresholds[i] = {value, last_row};
  }
}

}  // namespace fasa::calibrate
