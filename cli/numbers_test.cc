#include "cli/numbers.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace fasa::cli {
namespace {

TEST(Numbers, QuantilesOfKnownValues) {
  EXPECT_DOUBLE_EQ(quantile({4, 1, 3, 2}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(quantile({4, 1, 3, 2}, 0), 1);
  EXPECT_DOUBLE_EQ(quantile({4, 1, 3, 2}, 1), 4);
  EXPECT_DOUBLE_EQ(quantile({7}, 0.9), 7);
}

TEST(Numbers, KlOfTwoCoins) {
  const float p[] = {std::log(0.5f), std::log(0.5f)};
  const float q[] = {std::log(0.25f) + 3, std::log(0.75f) + 3};  // a shift changes nothing
  const double kl = kl_divergence(p, log_sum_exp(p, 2), q, log_sum_exp(q, 2), 2);
  EXPECT_NEAR(kl, 0.5 * std::log(2.0) + 0.5 * std::log(0.5 / 0.75), 1e-6);
  EXPECT_NEAR(log_sum_exp(q, 2), 3, 1e-6);
}

TEST(Numbers, LogSumExpDoesNotOverflow) {
  const float big[] = {1000, 1000};
  EXPECT_NEAR(log_sum_exp(big, 2), 1000 + std::log(2.0), 1e-9);
}

RC_GTEST_PROP(Numbers, KlIsZeroOnlyForEqualDistributions, ()) {
  const auto seed = *rc::gen::inRange(0, 1 << 20);
  std::mt19937 random(static_cast<uint32_t>(seed));
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> p(100);
  std::vector<float> q(100);
  for (float& x : p) x = normal(random);
  for (float& x : q) x = normal(random);
  const double pp = log_sum_exp(p.data(), 100);
  const double qq = log_sum_exp(q.data(), 100);
  RC_ASSERT(std::abs(kl_divergence(p.data(), pp, p.data(), pp, 100)) < 1e-12);
  RC_ASSERT(kl_divergence(p.data(), pp, q.data(), qq, 100) > 0.01);
}

// Of independent values the error is sigma / sqrt(n); of blocks of 50 equal ones, sigma / sqrt(n / 50).
TEST(Numbers, BatchMeansSeesCorrelation) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal(5, 2);
  std::vector<double> independent(50000);
  for (double& x : independent) x = normal(random);
  EXPECT_NEAR(batch_means_error(independent, 50), 2 / std::sqrt(50000.0), 0.001);
  std::vector<double> correlated;
  for (int i = 0; i < 1000; ++i) correlated.insert(correlated.end(), 50, normal(random));
  EXPECT_NEAR(batch_means_error(correlated, 50), 2 / std::sqrt(1000.0), 0.01);
  EXPECT_EQ(batch_means_error({}, 50), 0);
}

}  // namespace
}  // namespace fasa::cli
