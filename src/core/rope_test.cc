#include "fasa/rope.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "fasa/error.h"

namespace fasa {
namespace {

std::vector<float> random_head(const RopeSpec& spec) {
  std::vector<float> head(static_cast<size_t>(spec.head_dim));
  for (float& x : head) x = static_cast<float>(*rc::gen::inRange(-1000, 1001)) / 250.0F;
  return head;
}

std::vector<float> rotated(const RopeSpec& spec, std::vector<float> head, int position) {
  rope_rotate(spec, position, head.data());
  return head;
}

double pair_score(const DimPair& d, const std::vector<float>& q, const std::vector<float>& k) {
  return static_cast<double>(q[d.first]) * k[d.first] + static_cast<double>(q[d.second]) * k[d.second];
}

RopeSpec any_spec() {
  RopeSpec spec;
  spec.layout = *rc::gen::element(RopeLayout::kHalf, RopeLayout::kInterleaved);
  spec.head_dim = *rc::gen::element(64, 80, 96, 128, 256);
  spec.rotary_dim = 2 * *rc::gen::inRange(1, spec.head_dim / 2 + 1);
  spec.freq_base = *rc::gen::element(10000.0, 100000.0, 1000000.0);
  return spec;
}

RC_GTEST_PROP(Rope, OneMorePositionForBothLeavesEveryChunkScore, ()) {
  const RopeSpec spec = any_spec();
  const std::vector<float> q = random_head(spec);
  const std::vector<float> k = random_head(spec);
  const int at_q = *rc::gen::inRange(0, 5000);
  const int at_k = *rc::gen::inRange(0, 5000);
  for (int32_t fc = 0; fc < num_fcs(spec); ++fc) {
    const DimPair d = fc_dims(spec, fc);
    const double before = pair_score(d, rotated(spec, q, at_q), rotated(spec, k, at_k));
    const double after = pair_score(d, rotated(spec, q, at_q + 1), rotated(spec, k, at_k + 1));
    RC_ASSERT(std::abs(before - after) < 2e-5);
  }
}

RC_GTEST_PROP(Rope, ChunksCoverEveryDimOnce, ()) {
  const RopeSpec spec = any_spec();
  std::vector<int> seen(static_cast<size_t>(spec.head_dim));
  for (int32_t fc = 0; fc < num_fcs(spec); ++fc) {
    ++seen.at(static_cast<size_t>(fc_dims(spec, fc).first));
    ++seen.at(static_cast<size_t>(fc_dims(spec, fc).second));
  }
  RC_ASSERT(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
}

// What pairing neighbours on a rotate-half model would do: its "chunks" change with the absolute
// position.
TEST(Rope, AdjacentDimsAreNoChunkOfTheHalfLayout) {
  const RopeSpec spec{RopeLayout::kHalf, 64, 64, 10000.0};
  std::vector<float> q(64);
  std::vector<float> k(64);
  for (int i = 0; i < 64; ++i) {
    q[i] = std::sin(static_cast<float>(3 * i + 1));
    k[i] = std::cos(static_cast<float>(5 * i + 2));
  }
  double worst = 0;
  for (int32_t fc = 0; fc < 32; ++fc) {
    const DimPair adjacent{2 * fc, 2 * fc + 1};
    worst = std::max(worst, std::abs(pair_score(adjacent, rotated(spec, q, 9), rotated(spec, k, 4)) -
                                     pair_score(adjacent, rotated(spec, q, 10), rotated(spec, k, 5))));
  }
  EXPECT_GT(worst, 0.1);
}

TEST(Rope, DimsOfBothLayouts) {
  EXPECT_EQ(fc_dims({RopeLayout::kHalf, 64, 64, 1e4}, 5), (DimPair{5, 37}));
  EXPECT_EQ(fc_dims({RopeLayout::kInterleaved, 64, 64, 1e4}, 5), (DimPair{10, 11}));
  // Partial rotary: rotating chunks first, then static pairs of neighbours.
  EXPECT_EQ(fc_dims({RopeLayout::kHalf, 80, 32, 1e4}, 15), (DimPair{15, 31}));
  EXPECT_EQ(fc_dims({RopeLayout::kHalf, 80, 32, 1e4}, 16), (DimPair{32, 33}));
}

TEST(Rope, Frequencies) {
  const RopeSpec spec{RopeLayout::kHalf, 80, 32, 10000.0};
  EXPECT_DOUBLE_EQ(fc_frequency(spec, 0), 1.0);
  EXPECT_DOUBLE_EQ(fc_frequency(spec, 8), 0.01);  // 10000^(-16/32)
  EXPECT_EQ(fc_frequency(spec, 16), 0.0);
}

TEST(Rope, CheckRefuses) {
  EXPECT_NO_THROW(check({RopeLayout::kHalf, 128, 128, 5e5}));
  for (const RopeSpec& spec : {RopeSpec{RopeLayout::kHalf, 0, 0, 1e4}, RopeSpec{RopeLayout::kHalf, 63, 62, 1e4},
                               RopeSpec{RopeLayout::kHalf, 64, 66, 1e4}, RopeSpec{RopeLayout::kHalf, 64, 31, 1e4},
                               RopeSpec{RopeLayout::kHalf, 8192, 64, 1e4}, RopeSpec{RopeLayout::kHalf, 64, 64, 0.0}})
    EXPECT_THROW(check(spec), Error) << spec.head_dim << " " << spec.rotary_dim;
}

}  // namespace
}  // namespace fasa
