#include "src/ops/attend/attend.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "src/core/dtype.h"
#include "src/core/math_util.h"
#include "src/ops/attend/attend_impl.h"

namespace fasa::ops {
namespace {

struct Shape {
  int64_t num_q_heads = 6, num_kv_heads = 2, head_dim = 64, head_dim_v = 64, num_rows = 300;
  DType k_type = DType::kF16, v_type = DType::kF16;
};

// Inputs in f32 (as rounded by the cache's type), their caches with gaps between rows, and outputs behind sentinels.
struct Problem {
  explicit Problem(const Shape& s, uint32_t seed = 1) : shape(s) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    q.resize(s.num_q_heads * (s.head_dim + 3));
    for (float& x : q) x = normal(rng);
    fill(k_bytes, s.k_type, s.head_dim, rng);
    fill(v_bytes, s.v_type, s.head_dim_v, rng);
    out.assign(s.num_q_heads * s.head_dim_v + 8, kSentinel);
    lse.assign(s.num_q_heads + 1, kSentinel);
    args.q = {q.data(), s.num_q_heads, s.head_dim, s.head_dim + 3};
    args.k = view(k_bytes, s.k_type, s.head_dim);
    args.v = view(v_bytes, s.v_type, s.head_dim_v);
    args.scale = 1.0F / std::sqrt(static_cast<float>(s.head_dim));
    args.num_rows = s.num_rows;
    args.out = {out.data(), s.num_q_heads, s.head_dim_v, s.head_dim_v};
    args.lse = lse.data();
  }

  void keep(std::vector<int32_t> kept, int64_t sets, std::vector<int64_t> counts) {
    rows = std::move(kept);
    num_kept = std::move(counts);
    args.rows = rows.data();
    args.rows_stride = static_cast<int64_t>(rows.size()) / sets;
    args.num_kept = num_kept.data();
    args.num_sets = sets;
  }

  // [num_q_heads * head_dim_v] outputs, then lse.
  std::vector<float> run(void (*implementation)(Context&, const AttendArgs&), Context& context) {
    std::fill(out.begin(), out.end(), kSentinel);
    std::fill(lse.begin(), lse.end(), kSentinel);
    check(args);
    implementation(context, args);
    for (size_t i = shape.num_q_heads * shape.head_dim_v; i < out.size(); ++i) EXPECT_EQ(out[i], kSentinel);
    EXPECT_EQ(lse.back(), kSentinel);
    std::vector<float> result(out.begin(), out.end() - 8);
    result.insert(result.end(), lse.begin(), lse.end() - 1);
    return result;
  }

  static constexpr float kSentinel = 12345.0F;
  Shape shape;
  AttendArgs args;
  std::vector<float> q, bias, sinks, out, lse;
  std::vector<std::byte> k_bytes, v_bytes;
  std::vector<int32_t> rows;
  std::vector<int64_t> num_kept;

 private:
  static int64_t head_bytes(DType type, int64_t dim) { return dtype_bytes(type, dim) + 6; }
  int64_t row_bytes(DType type, int64_t dim) const { return head_bytes(type, dim) * shape.num_kv_heads + 10; }

  void fill(std::vector<std::byte>& bytes, DType type, int64_t dim, std::mt19937& rng) const {
    std::normal_distribution<float> normal;
    bytes.assign(row_bytes(type, dim) * shape.num_rows + 64, std::byte{0xFF});
    for (int64_t row = 0; row < shape.num_rows; ++row)
      for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
        std::byte* p = bytes.data() + row * row_bytes(type, dim) + head * head_bytes(type, dim);
        if (type == DType::kQ8_0) {
          for (int64_t b = 0; b < dim / kQ8Block; ++b) {
            Q8Block block{f32_to_f16(0.02F), {}};
            for (int8_t& x : block.values) x = static_cast<int8_t>(static_cast<int>(rng() % 255) - 127);
            std::memcpy(p + b * static_cast<int64_t>(sizeof block), &block, sizeof block);
          }
        } else {
          for (int64_t d = 0; d < dim; ++d) store_value(type, p, d, normal(rng));
        }
      }
  }
  CacheView view(std::vector<std::byte>& bytes, DType type, int64_t dim) const {
    return {bytes.data(), type, shape.num_rows, shape.num_kv_heads, dim, row_bytes(type, dim), head_bytes(type, dim)};
  }
};

// f32 arithmetic on values around 1: the error of a plain f32 computation is below 1e-6 of the largest term.
void expect_close(const std::vector<float>& got, const std::vector<float>& wanted, const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(wanted[i])) {
      EXPECT_EQ(got[i], wanted[i]) << what << " at " << i;
    } else {
      ASSERT_NEAR(got[i], wanted[i], 5e-6 * std::max(1.0F, std::abs(wanted[i]))) << what << " at " << i;
    }
  }
}

void expect_all_agree(Problem& problem, const std::string& what) {
  Context serial(make_serial_executor());
  Context threads(make_thread_executor(3));
  const std::vector<float> wanted = problem.run(attend_ref, serial);
  for (const auto& implementation : attend_implementations()) {
    if (!implementation.supports(problem.args).empty()) continue;
    const std::vector<float> got = problem.run(implementation.run, serial);
    expect_close(got, wanted, what + " " + implementation.name);
    EXPECT_EQ(problem.run(implementation.run, threads), got) << "another result with 3 threads: " << what;
  }
}

std::vector<int32_t> every(int64_t step, int64_t num_rows) {
  std::vector<int32_t> rows;
  for (int64_t row = 0; row < num_rows; row += step) rows.push_back(static_cast<int32_t>(row));
  return rows;
}

TEST(Attend, AveragesEqualKeysByHand) {
  Problem problem({.num_q_heads = 1, .num_kv_heads = 1, .head_dim = 16, .head_dim_v = 16, .num_rows = 4});
  std::fill(problem.q.begin(), problem.q.end(), 0.0F);  // all logits 0: the mean of the values, lse = log 4
  Context context(make_serial_executor());
  const std::vector<float> got = problem.run(attend_cpu, context);
  float mean = 0;
  for (int64_t row = 0; row < 4; ++row) mean += load_value(DType::kF16, problem.args.v.at(row, 0), 5) / 4;
  EXPECT_NEAR(got[5], mean, 1e-6);
  EXPECT_NEAR(got.back(), std::log(4.0F), 1e-6);
}

TEST(Attend, DenseOverShapesAndTypes) {
  for (const int64_t head_dim : {64, 80, 96, 128, 192, 256})
    for (const int64_t group : {1, 2, 3, 4, 5, 8, 16})
      for (const int64_t num_rows : {1, 31, 32, 33, 700})
        for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
          Problem problem({2 * group, 2, head_dim, head_dim, num_rows, type, type});
          expect_all_agree(problem, "dense head_dim " + std::to_string(head_dim) + " group " + std::to_string(group) +
                                        " rows " + std::to_string(num_rows) + " " + dtype_name(type));
        }
}

TEST(Attend, Q8ValuesAndOtherWidthOfV) {
  Problem problem({6, 2, 64, 128, 257, DType::kF16, DType::kQ8_0});
  expect_all_agree(problem, "q8_0 V");
  problem.keep(every(3, 257), 1, {86});
  problem.num_kept = {43, 43};
  problem.args.num_kept = problem.num_kept.data();
  problem.args.num_sets = 2;
  problem.args.rows_stride = 43;
  expect_all_agree(problem, "q8_0 V, sparse");
}

TEST(Attend, HeadDimThatNoVectorFits) {
  Problem problem({4, 2, 40, 24, 100});
  EXPECT_FALSE(attend_cpu_supports(problem.args).empty());
  Context context(make_serial_executor());
  const std::vector<float> wanted = problem.run(attend_ref, context);
  EXPECT_EQ(problem.run(attend, context), wanted);  // the table falls back to the reference
}

TEST(Attend, SparseByQueryHeadAndByKvHead) {
  for (const int64_t sets : {6, 2})
    for (const int64_t longest : {1, 32, 127, 128, 129, 256, 1000}) {
      Problem problem({.num_rows = 1500});
      std::mt19937 rng(3);
      std::vector<int32_t> rows;
      std::vector<int64_t> counts;
      for (int64_t s = 0; s < sets; ++s) {
        std::vector<int32_t> all = every(1, 1500);
        std::shuffle(all.begin(), all.end(), rng);
        rows.insert(rows.end(), all.begin(), all.begin() + longest);
        counts.push_back(s == 1 ? 0 : longest - s % std::min<int64_t>(longest, 3));  // one empty set
      }
      problem.keep(rows, sets, counts);
      expect_all_agree(problem, "sparse sets " + std::to_string(sets) + " rows " + std::to_string(longest));
    }
}

TEST(Attend, KeepingEveryRowIsDense) {
  for (const int64_t num_rows : {100, 2000}) {
    Problem problem({.num_rows = num_rows});
    Context context(make_serial_executor());
    const std::vector<float> dense = problem.run(attend_cpu, context);
    std::vector<int32_t> rows;
    for (int s = 0; s < 6; ++s)
      for (int32_t row = 0; row < num_rows; ++row) rows.push_back(row);
    problem.keep(rows, 6, std::vector<int64_t>(6, num_rows));
    expect_close(problem.run(attend_cpu, context), dense, "all rows kept");
  }
}

TEST(Attend, SoftcapSinksAndBias) {
  Problem problem({.num_rows = 600});
  problem.args.softcap = 2.0F;
  expect_all_agree(problem, "softcap");
  problem.sinks = {-1, 0, 1, 2, 30, -INFINITY};
  problem.args.sink_logits = problem.sinks.data();
  expect_all_agree(problem, "softcap and sinks");
  std::mt19937 rng(5);
  problem.bias.resize(600);
  for (float& b : problem.bias) b = rng() % 3 == 0 ? -INFINITY : 0.1F * static_cast<float>(rng() % 7);
  problem.args.bias = problem.bias.data();
  expect_all_agree(problem, "softcap, sinks and bias");
}

TEST(Attend, MaskedRowsDoNotLeak) {
  Problem problem({.num_rows = 200});
  Context context(make_serial_executor());
  problem.bias.assign(200, 0.0F);
  for (const int64_t row : {0, 31, 32, 77, 199}) problem.bias[row] = -INFINITY;
  problem.args.bias = problem.bias.data();
  const std::vector<float> clean = problem.run(attend_cpu, context);
  for (const int64_t row : {0, 31, 32, 77, 199})
    for (int64_t head = 0; head < 2; ++head)
      for (int64_t d = 0; d < 64; ++d) {
        store_value(DType::kF16, problem.args.k.at(row, head), d, d % 2 == 0 ? NAN : INFINITY);
        store_value(DType::kF16, problem.args.v.at(row, head), d, d % 2 == 0 ? INFINITY : NAN);
      }
  EXPECT_EQ(problem.run(attend_cpu, context), clean);
  expect_all_agree(problem, "masked NaN");
}

TEST(Attend, NoRowsGiveZero) {
  Problem problem({.num_rows = 50});
  problem.args.num_rows = 0;
  expect_all_agree(problem, "no rows");
  problem.args.num_rows = 50;
  problem.bias.assign(50, -INFINITY);
  problem.args.bias = problem.bias.data();
  expect_all_agree(problem, "all masked");
  problem.sinks.assign(6, 0.5F);
  problem.args.sink_logits = problem.sinks.data();
  expect_all_agree(problem, "all masked, with sinks");
}

// Logits of +-3,000: without the running maximum they overflow.
TEST(Attend, LargeLogits) {
  Problem problem({.num_rows = 900});
  problem.args.scale = 100.0F;
  Context context(make_serial_executor());
  const std::vector<float> wanted = problem.run(attend_ref, context);
  const std::vector<float> got = problem.run(attend_cpu, context);
  // f32 logits of 3,000 carry an error of 2e-4, and so do the weights.
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], wanted[i], 2e-3 * std::max(1.0F, std::abs(wanted[i]))) << i;
}

RC_GTEST_PROP(Attend, AnySparseProblem, ()) {
  const auto kv_heads = *rc::gen::inRange<int64_t>(1, 4);
  const auto group = *rc::gen::inRange<int64_t>(1, 9);
  const auto num_rows = *rc::gen::inRange<int64_t>(1, 600);
  Problem problem({kv_heads * group, kv_heads, 16 * *rc::gen::inRange<int64_t>(1, 9),
                   32 * *rc::gen::inRange<int64_t>(1, 5), num_rows},
                  *rc::gen::arbitrary<uint32_t>());
  const auto stride = *rc::gen::inRange<int64_t>(1, num_rows + 1);
  const int64_t sets = *rc::gen::arbitrary<bool>() ? kv_heads : kv_heads * group;
  std::vector<int32_t> rows;
  std::vector<int64_t> counts;
  for (int64_t s = 0; s < sets; ++s) {
    for (int64_t i = 0; i < stride; ++i) rows.push_back(static_cast<int32_t>((i * 7 + s) % num_rows));
    counts.push_back(*rc::gen::inRange<int64_t>(0, stride + 1));
  }
  problem.keep(rows, sets, counts);
  expect_all_agree(problem, "random");
}

TEST(Attend, RefusesBadArguments) {
  Context context(make_serial_executor());
  Problem problem({});
  const AttendArgs good = problem.args;
  AttendArgs bad = good;
  bad.q.num_heads = 5;
  EXPECT_THROW(attend(context, bad), Error);
  bad = good;
  bad.num_rows = 301;
  EXPECT_THROW(attend(context, bad), Error);
  bad = good;
  bad.v.num_heads = 1;
  EXPECT_THROW(attend(context, bad), Error);
  bad = good;
  bad.softcap = -1;
  EXPECT_THROW(attend(context, bad), Error);
  problem.keep(every(2, 300), 1, {150});
  EXPECT_THROW(attend(context, problem.args), Error);  // one set for two KV heads
}

TEST(Attend, LogitsAreThoseOfTheKeptRows) {
  Problem problem({.num_rows = 700});
  problem.args.softcap = 5.0F;
  problem.keep(every(2, 600), 2, {140, 33});
  for (const auto& implementation : attend_implementations()) {
    std::vector<float> logits(static_cast<size_t>(6 * problem.args.rows_stride), Problem::kSentinel);
    problem.args.logits = logits.data();
    Context context(make_thread_executor(2));
    problem.run(implementation.run, context);
    for (int64_t head = 0; head < 6; ++head) {
      double sum = 0;
      for (int64_t i = 0; i < problem.args.rows_stride; ++i) {
        const float got = logits[head * problem.args.rows_stride + i];
        if (i >= problem.num_kept[head / 3]) {
          ASSERT_EQ(got, Problem::kSentinel) << implementation.name;
          continue;
        }
        double dot = 0;
        const int64_t row = problem.rows[head / 3 * problem.args.rows_stride + i];
        for (int64_t d = 0; d < 64; ++d) {
          dot += static_cast<double>(problem.args.q.at(head)[d]) *
                 load_value(DType::kF16, problem.args.k.at(row, head / 3), d);
        }
        ASSERT_NEAR(got, 5 * std::tanh(dot / 8 / 5), 1e-5) << implementation.name;
        sum += std::exp(static_cast<double>(got) - problem.lse[head]);
      }
      EXPECT_NEAR(sum, 1, 1e-5) << "the weights of head " << head;
    }
  }
}

}  // namespace
}  // namespace fasa::ops
