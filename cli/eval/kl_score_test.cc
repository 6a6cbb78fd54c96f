#include "cli/eval/kl_score.h"

#include <gtest/gtest.h>

#include <cmath>

namespace fasa::cli {
namespace {

TEST(KlScore, TwoTokensByHand) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = 1/2 log 2 - 1/4 log 2 = log(2) / 4; then twice the same distribution.
  const float p[] = {std::log(0.5F), std::log(0.25F), std::log(0.25F)};
  const float q[] = {std::log(0.25F), std::log(0.5F), std::log(0.25F)};
  KlScore score(3);
  score.add(p, q, 0);
  score.add(p, p, 1);
  const Json row = score.summary();
  EXPECT_EQ(row.at("tokens"), 2);
  EXPECT_NEAR(row.at("kl_mean").get<double>(), std::log(2.0) / 8, 1e-6);
  EXPECT_EQ(score.kl()[1], 0);  // exactly: it is the same computation
  EXPECT_EQ(row.at("kl_blocks"), Json::array({std::round(std::log(2.0) / 8 * 1e6) / 1e6}));
  EXPECT_DOUBLE_EQ(row.at("top1_agreement").get<double>(), 0.5);
  // Losses log 4 twice, and of full attention log 2 and log 4.
  EXPECT_NEAR(row.at("ppl").get<double>(), 4, 1e-5);
  EXPECT_NEAR(row.at("ppl_full").get<double>(), std::sqrt(8.0), 1e-5);
  EXPECT_NEAR(row.at("ppl_se").get<double>(), 0, 1e-6);
  // Two blocks of one token: the spread of log 2 and log 4 over sqrt 2 is log(2) / 2.
  EXPECT_NEAR(row.at("ppl_full_se").get<double>(), std::sqrt(8.0) * std::log(2.0) / 2, 1e-5);
}

}  // namespace
}  // namespace fasa::cli
