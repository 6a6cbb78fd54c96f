// The table of criteria. To add one: a function from a ChunkSample to a number, and a row.
#include <algorithm>
#include <span>

#include "src/calibrate/statistics.h"

namespace fasa::calibrate {
namespace {

// Fixed order of summation: kLanes partial sums, so that the compiler may use SIMD and every run
// agrees.
constexpr size_t kLanes = 8;

template <class F>
double sum_over(std::span<const float> values, F term) {
  double lane[kLanes] = {};
  size_t t = 0;
  for (; t + kLanes <= values.size(); t += kLanes) {
    for (size_t i = 0; i < kLanes; ++i) lane[i] += term(values[t + i]);
  }
  double sum = 0;
  for (; t < values.size(); ++t) sum += term(values[t]);
  for (const double l : lane) sum += l;
  return sum;
}

std::optional<double> variance(const ChunkSample& s) {
  if (s.body.empty()) return std::nullopt;
  const auto n = static_cast<double>(s.body.size());
  const double mean = sum_over(s.body, [](float x) { return static_cast<double>(x); }) / n;
  return sum_over(s.body, [mean](float x) { return (x - mean) * (x - mean); }) / n;
}

std::optional<double> energy(const ChunkSample& s) {
  if (s.body.empty()) return std::nullopt;
  const auto n = static_cast<double>(s.body.size());
  return sum_over(s.body, [](float x) { return static_cast<double>(x) * x; }) / n;
}

// Of the regression of the whole score on the chunk's: what a unit of it stands for, where other chunks follow it.
std::optional<double> slope(const ChunkSample& s) {
  if (s.body.empty()) return std::nullopt;
  const auto total = s.total.subspan(static_cast<size_t>(s.body.data() - s.chunk.data()), s.body.size());
  const auto n = static_cast<double>(s.body.size());
  const double mean = sum_over(s.body, [](float x) { return static_cast<double>(x); }) / n;
  const double spread = sum_over(s.body, [mean](float x) { return (x - mean) * (x - mean); });
  double product = 0;
  for (size_t t = 0; t < s.body.size(); ++t)
    product += (static_cast<double>(s.body[t]) - mean) * static_cast<double>(total[t]);
  return spread > 0 ? std::max(0.0, product / spread) : 0.0;
}

// CA_K. With K rows or fewer both sets are all rows, which says nothing about the FC.
template <size_t kWhich>
std::optional<double> agreement(const ChunkSample& s) {
  if (s.agreement[kWhich] < 0) return std::nullopt;
  return static_cast<double>(s.agreement[kWhich]) / static_cast<double>(kAgreementSizes[kWhich]);
}

constexpr Criterion kCriteria[] = {
    {"variance", "variance over tokens of the chunk score, outside sinks and recent", variance},
    {"energy", "mean square of the chunk score, outside sinks and recent", energy},
    {"slope", "slope of the regression of the score on the chunk score, outside sinks and recent; 0 where negative",
     slope},
    {"ca64", "contextual agreement at K = 64", agreement<0>},
    {"ca256", "contextual agreement at K = 256", agreement<1>},
    {"ca512", "contextual agreement at K = 512", agreement<2>},
    {"ca1024", "contextual agreement at K = 1024", agreement<3>},
};

}  // namespace

std::span<const Criterion> criteria() { return kCriteria; }

}  // namespace fasa::calibrate
