#include "src/policy/agreement.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace fasa {
namespace {

// One KV head, two query heads of 2 dims; keys (t, 0), so that q = (1, 0) scores t and q = (-1, 0) scores -t.
class AgreementTest : public testing::Test {
 protected:
  AgreementTest() {
    for (int t = 0; t < kRows; ++t) keys[t] = {static_cast<float>(t), 0.0F};
    step.q = {.data = query, .num_heads = 2, .head_dim = 2, .head_stride = 2};
    step.k = {.data = reinterpret_cast<std::byte*>(keys),
              .dtype = DType::kF32,
              .num_rows = kRows,
              .num_heads = 1,
              .head_dim = 2,
              .row_stride = sizeof(keys[0]),
              .head_stride = sizeof(keys[0])};
    step.scale = 0.5F;
    step.num_visible = kRows;
  }
  static constexpr int kRows = 4;
  struct Key {
    float x, y;
  };
  float query[4] = {1, 0, -1, 0};
  Key keys[kRows];
  DecodeStep step;
  Context context{make_serial_executor()};
};

TEST_F(AgreementTest, SharedRowsByHand) {
  // Kept {0, 3} by both heads. Head 0's best two are {2, 3}, head 1's {0, 1}: one of two each.
  const int32_t rows[] = {0, 3};
  const int64_t counts[] = {2};
  AgreementProbe probe;
  probe.add(context, 7, step, {rows, 2, counts, 1});
  const std::vector<HeadAgreement> heads = probe.heads();
  ASSERT_EQ(heads.size(), 2U);
  const double total = 1 + std::exp(0.5) + std::exp(1.0) + std::exp(1.5);
  const double kept = (1 + std::exp(1.5)) / total;
  for (int head = 0; head < 2; ++head) {
    EXPECT_EQ(heads[head].layer, 7);
    EXPECT_EQ(heads[head].head, head);
    EXPECT_EQ(heads[head].queries, 1);
    EXPECT_DOUBLE_EQ(heads[head].agreement, 0.5);
    EXPECT_NEAR(heads[head].mass, kept, 1e-6);  // the same for both by symmetry
  }
}

TEST_F(AgreementTest, RowsOfEachHeadAndASumOverQueries) {
  const int32_t rows[] = {1, 2, 3, 0, 0, 0};  // head 0 keeps three, head 1 one
  const int64_t counts[] = {3, 1};
  AgreementProbe probe;
  probe.add(context, 0, step, {rows, 3, counts, 2});
  probe.add(context, 0, step, {rows, 3, counts, 2});
  const std::vector<HeadAgreement> heads = probe.heads();
  EXPECT_EQ(heads[0].queries, 2);
  EXPECT_DOUBLE_EQ(heads[0].agreement, 2);
  EXPECT_DOUBLE_EQ(heads[1].agreement, 2);
  probe.clear();
  EXPECT_TRUE(probe.heads().empty());
}

TEST_F(AgreementTest, HiddenRowsAreNoBestRows) {
  const float hidden = -std::numeric_limits<float>::infinity();
  const float bias[] = {0, 0, 0, hidden};
  step.bias = bias;
  step.num_visible = 3;
  const int32_t rows[] = {2};
  const int64_t counts[] = {1};
  AgreementProbe probe;
  probe.add(context, 0, step, {rows, 1, counts, 1});
  EXPECT_DOUBLE_EQ(probe.heads()[0].agreement, 1);
  EXPECT_NEAR(probe.heads()[0].mass, std::exp(1.0) / (1 + std::exp(0.5) + std::exp(1.0)), 1e-6);
}

}  // namespace
}  // namespace fasa
