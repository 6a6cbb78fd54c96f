#include "cli/eval/single_ca.h"

#include <gtest/gtest.h>

#include "fasa/error.h"
#include "src/calibrate/example_profile.h"

namespace fasa::cli {
namespace {

TEST(SingleCa, BestMedianAndSparsityByHand) {
  Profile profile = example_profile();
  profile.layers.resize(1);  // 4 heads of 4 FCs
  profile.layers[0].measures["ca256"] = {.5F, .1F, .2F, .1F, .5F, .1F, .2F, .1F,
                                         .5F, .1F, .2F, .1F, .1F, .3F, .4F, .4F};
  const Json row = single_agreement(profile, "ca256");
  EXPECT_EQ(row.at("heads"), 4);
  EXPECT_NEAR(row.at("best").get<double>(), (3 * .5 + .4) / 4, 1e-6);
  EXPECT_NEAR(row.at("median").get<double>(), (3 * .15 + .35) / 4, 1e-6);
  EXPECT_NEAR(row.at("share_above_half").get<double>(), (3 * .25 + .75) / 4, 1e-6);
  EXPECT_EQ(row.at("heatmap"), Json::array({{.4, .15, .25, .175}}));
  EXPECT_THROW(single_agreement(profile, "ca7"), Error);
}

}  // namespace
}  // namespace fasa::cli
