// Statistics of the measurements.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fasa::cli {

// Linear interpolation between order statistics; q in [0, 1]. `values` is not empty.
double quantile(std::vector<double> values, double q);

double mean(std::span<const double> values);
// Standard error of the mean of a correlated series by batch means: blocks of `block` values (fewer
// where there are not four of them), the spread of the blocks' means over sqrt(number of blocks).
double batch_means_error(std::span<const double> values, int64_t block);

// log sum exp of `size` logits, in double.
double log_sum_exp(const float* logits, int64_t size);

// KL(p || q) of two softmax distributions given by logits, in double over all `size` of them.
double kl_divergence(const float* p, double p_log_sum, const float* q, double q_log_sum, int64_t size);

int64_t argmax(const float* logits, int64_t size);

}  // namespace fasa::cli
