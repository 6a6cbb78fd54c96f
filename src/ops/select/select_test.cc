#include "src/ops/select/select.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "src/ops/select/select_impl.h"

namespace fasa::ops {
namespace {

struct Kept {
  std::vector<int32_t> rows;      // [num_sets, budget], -7 where nothing was written
  std::vector<int64_t> num_kept;  // [num_sets]
  bool operator==(const Kept&) const = default;
};

using Run = void (*)(Context&, const SelectArgs&);

Kept run(Run implementation, Context& context, const std::vector<float>& scores, int64_t num_sets, int64_t budget,
         const std::vector<int32_t>& forced) {
  Kept kept{std::vector<int32_t>(num_sets * budget, -7), std::vector<int64_t>(num_sets, -7)};
  SelectArgs args;
  args.scores = scores.data();
  args.num_sets = num_sets;
  args.num_rows = static_cast<int64_t>(scores.size()) / num_sets;
  args.scores_stride = args.num_rows;
  args.budget = budget;
  args.forced = forced;
  args.rows = kept.rows.data();
  args.num_kept = kept.num_kept.data();
  check(args);
  implementation(context, args);
  return kept;
}

void expect_same(const std::vector<float>& scores, int64_t num_sets, int64_t budget,
                 const std::vector<int32_t>& forced) {
  Context serial(make_serial_executor());
  Context threads(make_thread_executor(3));
  const Kept wanted = run(select_ref, serial, scores, num_sets, budget, forced);
  for (const auto& implementation : select_implementations()) {
    EXPECT_EQ(run(implementation.run, serial, scores, num_sets, budget, forced), wanted) << implementation.name;
    EXPECT_EQ(run(implementation.run, threads, scores, num_sets, budget, forced), wanted) << implementation.name;
  }
}

std::vector<int32_t> sinks_and_recent(int64_t num_rows, int64_t budget) {
  std::vector<int32_t> forced;
  for (int32_t row = 0; row < num_rows; ++row)
    if ((row < 4 || row >= num_rows - 32) && static_cast<int64_t>(forced.size()) < budget) forced.push_back(row);
  return forced;
}

TEST(Select, KeepsTheBestByHand) {
  expect_same({1, 5, 3, 5, 2}, 1, 2, {});
  Context context(make_serial_executor());
  const Kept kept = run(select_cpu, context, {1, 5, 3, 5, 2}, 1, 3, {0});
  EXPECT_EQ(kept.rows, (std::vector<int32_t>{0, 1, 3}));
  // Ties go to the lower row.
  EXPECT_EQ(run(select_cpu, context, {5, 5, 5, 5}, 1, 2, {}).rows, (std::vector<int32_t>{0, 1}));
}

struct Distribution {
  const char* name;
  float (*draw)(std::mt19937& rng, int64_t i, int64_t n);
};

float normal(std::mt19937& rng) { return std::normal_distribution<float>()(rng); }

constexpr Distribution kDistributions[] = {
    {"normal", [](std::mt19937& rng, int64_t, int64_t) { return normal(rng); }},
    {"clustered", [](std::mt19937& rng, int64_t, int64_t) { return 20.0F + 0.5F * normal(rng); }},
    {"all_equal", [](std::mt19937&, int64_t, int64_t) { return -3.0F; }},
    {"two_values", [](std::mt19937& rng, int64_t, int64_t) { return rng() % 50 == 0 ? 1.0F : 0.0F; }},
    {"few_values", [](std::mt19937& rng, int64_t, int64_t) { return static_cast<float>(rng() % 7); }},
    {"ascending", [](std::mt19937&, int64_t i, int64_t) { return static_cast<float>(i); }},
    {"descending", [](std::mt19937&, int64_t i, int64_t) { return -static_cast<float>(i); }},
    {"hot_window", [](std::mt19937& rng, int64_t i,
                      int64_t n) { return normal(rng) + (i > n / 2 && i < n / 2 + 300 ? 50.0F : 0.0F); }},
    {"mostly_masked", [](std::mt19937& rng, int64_t, int64_t) { return rng() % 100 == 0 ? normal(rng) : -INFINITY; }},
    {"all_masked", [](std::mt19937&, int64_t, int64_t) { return -INFINITY; }},
    {"some_nan", [](std::mt19937& rng, int64_t, int64_t) { return rng() % 5 == 0 ? NAN : normal(rng); }},
    {"infinities", [](std::mt19937& rng, int64_t, int64_t) { return rng() % 300 == 0 ? INFINITY : normal(rng); }},
    {"signed_zeros", [](std::mt19937& rng, int64_t, int64_t) { return rng() % 2 == 0 ? 0.0F : -0.0F; }},
    {"huge", [](std::mt19937& rng, int64_t, int64_t) { return 3e38F * std::tanh(normal(rng)); }},
    {"denormal", [](std::mt19937& rng, int64_t, int64_t) { return 1e-40F * normal(rng); }},
};

class SelectDistributions : public testing::TestWithParam<Distribution> {};

TEST_P(SelectDistributions, EqualsTheReference) {
  for (const int64_t num_rows : {1, 31, 256, 1000, 1025, 4096, 8003, 40000}) {
    for (const int64_t budget : {1, 7, 64, 256, 1024}) {
      std::mt19937 rng(17);
      std::vector<float> scores(num_rows * 2);
      for (int64_t i = 0; i < num_rows * 2; ++i) scores[i] = GetParam().draw(rng, i % num_rows, num_rows);
      expect_same(scores, 2, budget, {});
      expect_same(scores, 2, budget, sinks_and_recent(num_rows, budget));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SelectDistributions, testing::ValuesIn(kDistributions),
                         [](const auto& param) { return std::string(param.param.name); });

RC_GTEST_PROP(Select, AnyScoresAnyForcedRows, ()) {
  const auto num_rows = *rc::gen::inRange<int64_t>(0, 3000);
  const auto budget = *rc::gen::inRange<int64_t>(1, 400);
  const auto seed = *rc::gen::arbitrary<uint32_t>();
  const auto levels = *rc::gen::inRange<uint32_t>(1, 1000);  // few levels: many ties
  std::mt19937 rng(seed);
  std::vector<float> scores(num_rows);
  const int64_t middle = levels / 2;
  for (float& score : scores) score = static_cast<float>(static_cast<int64_t>(rng() % levels) - middle);
  std::vector<int32_t> forced;
  for (int32_t row = 0; row < num_rows && static_cast<int64_t>(forced.size()) < budget; ++row)
    if (rng() % 20 == 0) forced.push_back(row);
  expect_same(scores, 1, budget, forced);
}

TEST(Select, ForcedRowsFillTheBudget) {
  const std::vector<float> scores(2000, 1.0F);
  expect_same(scores, 1, 3, {5, 900, 1999});
  expect_same(scores, 1, 36, sinks_and_recent(2000, 36));
}

TEST(Select, ForcedRowsAreKeptThoughMasked) { expect_same(std::vector<float>(2000, -INFINITY), 1, 8, {0, 1000}); }

// A sample at every n/256-th row sees none of the good rows: the pivot must not end the search.
TEST(Select, SurvivesASampleThatMisleads) {
  std::vector<float> scores(256 * 40);
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = i % 40 == 0 ? 100.0F : static_cast<float>(i % 39);
  expect_same(scores, 1, 2000, {});
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = i % 40 == 0 ? -100.0F : static_cast<float>(i % 39);
  expect_same(scores, 1, 2000, {});
}

TEST(Select, RefusesBadArguments) {
  Context context(make_serial_executor());
  const std::vector<float> scores(10);
  EXPECT_THROW(run(select_cpu, context, scores, 1, 0, {}), Error);
  EXPECT_THROW(run(select_cpu, context, scores, 1, 1, {1, 2}), Error);
  EXPECT_THROW(run(select_cpu, context, scores, 1, 4, {2, 1}), Error);
  EXPECT_THROW(run(select_cpu, context, scores, 1, 4, {10}), Error);
}

}  // namespace
}  // namespace fasa::ops
