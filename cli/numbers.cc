#include "cli/numbers.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fasa::cli {

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

double mean(std::span<const double> values) {
  if (values.empty()) return 0;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double batch_means_error(std::span<const double> values, int64_t block) {
  const auto size = static_cast<int64_t>(values.size());
  block = std::max<int64_t>(1, std::min(block, size / 4));
  const int64_t blocks = size / block;
  if (blocks < 2) return 0;
  std::vector<double> means;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t end = b + 1 == blocks ? size : (b + 1) * block;
    means.push_back(mean(values.subspan(static_cast<size_t>(b * block), static_cast<size_t>(end - b * block))));
  }
  const double center = mean(means);
  double squares = 0;
  for (const double m : means) squares += (m - center) * (m - center);
  return std::sqrt(squares / static_cast<double>(blocks - 1) / static_cast<double>(blocks));
}

double log_sum_exp(const float* logits, int64_t size) {
  const double top = *std::max_element(logits, logits + size);
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += std::exp(static_cast<double>(logits[i]) - top);
  return top + std::log(sum);
}

double kl_divergence(const float* p, double p_log_sum, const float* q, double q_log_sum, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) {
    const double log_p = static_cast<double>(p[i]) - p_log_sum;
    const double log_q = static_cast<double>(q[i]) - q_log_sum;
    sum += std::exp(log_p) * (log_p - log_q);
  }
  return sum;
}

int64_t argmax(const float* logits, int64_t size) { return std::max_element(logits, logits + size) - logits; }

}  // namespace fasa::cli
