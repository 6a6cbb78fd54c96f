#include "src/ops/score/score.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "src/core/dtype.h"
#include "src/ops/append/append.h"

namespace fasa::ops {
namespace {

constexpr float kSentinel = -12345.0F;

struct Shape {
  IndexType type = IndexType::kI8;
  int64_t kv_heads = 2;
  int64_t group = 3;
  bool plane_per_q_head = false;
  int64_t head_dim = 64;
  int64_t num_fcs = 8;
  int64_t rows = 100;
  int64_t capacity = 128;
};

// A random case, its index made by append; K and q stay at hand as the truth.
struct Case {
  explicit Case(const Shape& s, uint32_t seed = 1, float spoiled = 0.0F) : shape(s) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const int64_t q_heads = s.kv_heads * s.group;
    const int64_t planes = s.plane_per_q_head ? q_heads : s.kv_heads;
    keys.resize(static_cast<size_t>(s.capacity * s.kv_heads * s.head_dim));
    for (float& x : keys) x = normal(random);
    if (spoiled != 0.0F)  // row 1, every head
      for (int64_t i = 0; i < s.kv_heads * s.head_dim; i += 3) keys[s.kv_heads * s.head_dim + i] = spoiled;
    queries.resize(static_cast<size_t>(q_heads * (s.head_dim + 3)));
    for (float& x : queries) x = 3 * normal(random);
    for (int64_t i = 0; i < planes * s.num_fcs * 2; ++i)
      dims.push_back(static_cast<int16_t>(random() % static_cast<uint32_t>(s.head_dim)));
    bias.resize(static_cast<size_t>(s.capacity));
    for (float& x : bias) x = random() % 4 == 0 ? -std::numeric_limits<float>::infinity() : 0.0F;
    const IndexShape index_shape{s.type, planes, s.num_fcs, s.capacity};
    storage.resize(static_cast<size_t>(index_shape.total_bytes()));
    index = {storage.data(), index_shape, dims.data()};
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < s.capacity; ++i) rows.push_back(i);
    AppendArgs args;
    args.rows = rows;
    args.cache = {reinterpret_cast<std::byte*>(keys.data()),
                  DType::kF32,
                  s.capacity,
                  s.kv_heads,
                  s.head_dim,
                  s.kv_heads * s.head_dim * 4,
                  s.head_dim * 4};
    args.index = index;
    Context context(make_serial_executor());
    append(context, args);
    cache = args.cache;
  }

  ScoreArgs args(std::vector<float>& out, GroupReduce reduce, bool with_bias) {
    ScoreArgs a;
    const int64_t q_heads = shape.kv_heads * shape.group;
    a.q = {queries.data(), q_heads, shape.head_dim, shape.head_dim + 3};
    a.num_kv_heads = shape.kv_heads;
    a.index = index;
    a.num_rows = shape.rows;
    a.bias = with_bias ? bias.data() : nullptr;
    a.reduce = reduce;
    a.scores_stride = shape.rows + 5;
    out.assign(static_cast<size_t>((reduce == GroupReduce::kNone ? q_heads : shape.kv_heads) * a.scores_stride),
               kSentinel);
    a.scores = out.data();
    return a;
  }

  // q.k over the dims of the plane, and how far the index and 16-bit queries may be from it.
  void truth(int64_t head, int64_t row, double* score, double* tolerance) const {
    const int64_t kv = head / shape.group;
    const int64_t plane = shape.plane_per_q_head ? head : kv;
    const float* q = queries.data() + head * (shape.head_dim + 3);
    const float* k = keys.data() + (row * shape.kv_heads + kv) * shape.head_dim;
    double sum = 0;
    double sum_q = 0;
    double sum_k = 0;
    double max_q = 0;
    double max_k = 0;
    for (int64_t i = 0; i < shape.num_fcs * 2; ++i) {
      const int16_t d = dims[static_cast<size_t>(plane * shape.num_fcs * 2 + i)];
      sum += static_cast<double>(q[d]) * k[d];
      sum_q += std::abs(q[d]);
      sum_k += std::abs(k[d]);
      max_q = std::max(max_q, std::abs(static_cast<double>(q[d])));
      max_k = std::max(max_k, std::abs(static_cast<double>(k[d])));
    }
    const double levels = shape.type == IndexType::kI4 ? 7 : 127;
    const double of_key = shape.type == IndexType::kF16 ? max_k * 0x1p-11 : max_k / levels * 0.5 * 1.002;
    *score = sum;
    *tolerance = sum_q * of_key + (sum_k + shape.num_fcs * 2 * of_key) * max_q * 0x1p-16 * 1.1 + 1e-5 * sum_q * max_k;
  }

  Shape shape;
  std::vector<float> keys;
  std::vector<float> queries;
  std::vector<int16_t> dims;
  std::vector<float> bias;
  std::vector<std::byte> storage;
  IndexView index;
  CacheView cache;
};

// Each implementation against q.k itself; `with_bias` rows at -inf must be exactly that.
void expect_truth(const Shape& shape, GroupReduce reduce, bool with_bias, uint32_t seed) {
  Case c(shape, seed);
  for (const auto& implementation : score_implementations()) {
    std::vector<float> out;
    const ScoreArgs args = c.args(out, reduce, with_bias);
    check(args);
    ASSERT_EQ(implementation.supports(args), "");
    Context context(make_thread_executor(2));
    implementation.run(context, args);
    const int64_t per_set = reduce == GroupReduce::kNone ? 1 : shape.group;
    for (int64_t set = 0; set < static_cast<int64_t>(out.size()) / args.scores_stride; ++set) {
      for (int64_t row = 0; row < args.scores_stride; ++row) {
        const float got = out[set * args.scores_stride + row];
        if (row >= shape.rows) {
          ASSERT_EQ(got, kSentinel) << implementation.name << " wrote past the rows";
          continue;
        }
        if (with_bias && std::isinf(c.bias[row])) {
          ASSERT_EQ(got, c.bias[row]);
          continue;
        }
        double best = -1e30;
        double tolerance = 0;
        for (int64_t i = 0; i < per_set; ++i) {
          double score = 0;
          double slack = 0;
          c.truth(set * per_set + i, row, &score, &slack);
          best = std::max(best, score);
          tolerance = std::max(tolerance, slack);
        }
        ASSERT_NEAR(got, best, tolerance) << implementation.name << " " << index_type_name(shape.type) << " set " << set
                                          << " row " << row << " fcs " << shape.num_fcs << " group " << shape.group;
      }
    }
  }
}

Shape any_shape() {
  Shape s;
  s.type = *rc::gen::element(IndexType::kF16, IndexType::kI8, IndexType::kI4);
  s.kv_heads = *rc::gen::inRange(1, 4);
  s.group = *rc::gen::inRange(1, 17);
  s.plane_per_q_head = *rc::gen::arbitrary<bool>();
  s.head_dim = *rc::gen::element(64, 80, 96, 128, 256);
  s.num_fcs = *rc::gen::inRange(1, 65);
  s.rows = *rc::gen::inRange(0, 150);
  s.capacity = s.rows + *rc::gen::inRange(1, 40);
  return s;
}

RC_GTEST_PROP(Score, IsTheProductWithTheKeys, (bool with_bias, bool share, uint32_t seed)) {
  const Shape shape = any_shape();
  expect_truth(shape, share ? GroupReduce::kMax : GroupReduce::kNone, with_bias, seed);
  RC_ASSERT(!testing::Test::HasFatalFailure());
}

TEST(Score, EveryGroupAndTail) {
  for (const IndexType type : {IndexType::kF16, IndexType::kI8, IndexType::kI4})
    for (int64_t group = 1; group <= 16; ++group) {
      Shape shape;
      shape.type = type;
      shape.group = group;
      shape.rows = 64 + group * 2 - 1;
      for (const bool per_head : {false, true}) {
        shape.plane_per_q_head = per_head;
        expect_truth(shape, GroupReduce::kNone, true, 7);
        expect_truth(shape, GroupReduce::kMax, false, 8);
      }
    }
}

// The reference reads the same index; what is left is the query's 16 bits: 2^-16 of its largest
// part for every value.
TEST(Score, CpuIsWithin16BitsOfTheReference) {
  for (const IndexType type : {IndexType::kF16, IndexType::kI8, IndexType::kI4})
    for (const int64_t num_fcs : {1, 8, 32, 64, 128}) {
      Shape shape;
      shape.type = type;
      shape.head_dim = 256;
      shape.num_fcs = num_fcs;
      Case c(shape);
      std::vector<float> want;
      std::vector<float> got;
      Context context(make_serial_executor());
      for (const auto& implementation : score_implementations()) {
        const bool is_ref = std::string_view(implementation.name) == "ref";
        implementation.run(context, c.args(is_ref ? want : got, GroupReduce::kNone, false));
      }
      const double bits = num_fcs <= 64 ? 0x1p-16 : 0x1p-15;
      const double tolerance = static_cast<double>(num_fcs) * 2 * 4.5 * 15 * bits + 1e-4;  // |k| < 4.5, |q| < 15
      for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << index_type_name(type);
    }
}

TEST(Score, ExtremesDoNotOverflow) {
  Shape shape;
  shape.num_fcs = 64;
  shape.head_dim = 128;
  Case c(shape);
  for (float& x : c.keys) x = -3.0F;
  for (float& x : c.queries) x = 5.0F;
  std::vector<int64_t> rows(static_cast<size_t>(shape.capacity));
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int64_t>(i);
  AppendArgs append_args;
  append_args.rows = rows;
  append_args.cache = c.cache;
  append_args.index = c.index;
  Context context(make_serial_executor());
  append(context, append_args);
  for (const auto& implementation : score_implementations()) {
    std::vector<float> out;
    implementation.run(context, c.args(out, GroupReduce::kNone, false));
    EXPECT_NEAR(out[0], -15.0F * 128, 2.0F) << implementation.name;
  }
}

TEST(Score, SameBitsForAnyNumberOfThreads) {
  for (const IndexType type : {IndexType::kF16, IndexType::kI8, IndexType::kI4}) {
    Shape shape;
    shape.type = type;
    shape.rows = 9001;
    shape.capacity = 9100;
    Case c(shape);
    std::vector<float> first;
    for (const int threads : {1, 2, 3, 7, 2}) {
      std::vector<float> out;
      Context context(make_thread_executor(threads));
      score(context, c.args(out, GroupReduce::kNone, true));
      if (first.empty()) first = out;
      ASSERT_EQ(std::memcmp(first.data(), out.data(), out.size() * 4), 0) << threads;
    }
  }
}

TEST(Score, NonFiniteKeysSpoilNoOtherRow) {
  for (const float spoiled : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(), 1e38F})
    for (const IndexType type : {IndexType::kF16, IndexType::kI8, IndexType::kI4}) {
      Shape shape;
      shape.type = type;
      Case good(shape);
      Case bad(shape, 1, spoiled);
      for (const auto& implementation : score_implementations()) {
        Context context(make_serial_executor());
        std::vector<float> want;
        std::vector<float> got;
        implementation.run(context, good.args(want, GroupReduce::kNone, false));
        implementation.run(context, bad.args(got, GroupReduce::kNone, false));
        const int64_t stride = shape.rows + 5;
        for (size_t i = 0; i < want.size(); ++i) {
          if (static_cast<int64_t>(i) % stride == 1) {
            ASSERT_TRUE(std::isfinite(got[i]));
          } else {
            ASSERT_EQ(got[i], want[i]) << implementation.name << " " << i;
          }
        }
      }
    }
}

TEST(Score, NoRowsAndZeroQuery) {
  Shape shape;
  shape.rows = 0;
  Case none(shape);
  std::vector<float> out;
  Context context(make_thread_executor(2));
  score(context, none.args(out, GroupReduce::kNone, true));
  shape.rows = 40;
  Case zero(shape);
  for (float& x : zero.queries) x = 0;
  const ScoreArgs args = zero.args(out, GroupReduce::kMax, false);
  score(context, args);
  EXPECT_EQ(out[39], 0.0F);
}

TEST(Score, CheckRefuses) {
  Case c(Shape{});
  std::vector<float> out;
  const ScoreArgs good = c.args(out, GroupReduce::kNone, false);
  const auto refuses = [&](auto change) {
    ScoreArgs args = good;
    change(args);
    EXPECT_THROW(check(args), Error);
  };
  EXPECT_NO_THROW(check(good));
  refuses([](ScoreArgs& a) { a.q.data = nullptr; });
  refuses([](ScoreArgs& a) { a.num_kv_heads = 4; });
  refuses([](ScoreArgs& a) { a.num_kv_heads = 0; });
  refuses([](ScoreArgs& a) { a.index.data = nullptr; });
  refuses([](ScoreArgs& a) { a.index.shape.num_planes = 5; });
  refuses([](ScoreArgs& a) { a.num_rows = a.index.shape.num_rows + 1; });
  refuses([](ScoreArgs& a) { a.scores_stride = a.num_rows - 1; });
  EXPECT_GT(bytes(good), 100 * 2 * 18);
}

TEST(ExactScore, IsTheProductWithTheKeys) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const int64_t head_dim : {64, 80, 96, 128, 256})
      for (const GroupReduce reduce : {GroupReduce::kNone, GroupReduce::kMax}) {
        const int64_t rows = 700;
        const int64_t row_bytes = dtype_bytes(type, head_dim);
        std::vector<std::byte> keys(static_cast<size_t>(rows * (2 * row_bytes + 8)));
        const CacheView k{keys.data(), type, rows, 2, head_dim, 2 * row_bytes + 8, row_bytes + 4};
        for (int64_t row = 0; row < rows; ++row)
          for (int64_t h = 0; h < 2; ++h)
            for (int64_t d = 0; d < head_dim; ++d) store_value(type, k.at(row, h), d, normal(random));
        std::vector<float> q(static_cast<size_t>(6 * head_dim));
        for (float& x : q) x = normal(random);
        for (const auto& implementation : exact_score_implementations()) {
          const int64_t sets = reduce == GroupReduce::kNone ? 6 : 2;
          std::vector<float> out(static_cast<size_t>(sets * (rows + 1)), kSentinel);
          const ExactScoreArgs args{{q.data(), 6, head_dim, head_dim}, k, nullptr, reduce, out.data(), rows + 1};
          check(args);
          Context context(make_thread_executor(2));
          implementation.run(context, args);
          for (int64_t set = 0; set < sets; ++set) {
            EXPECT_EQ(out[set * (rows + 1) + rows], kSentinel);
            for (int64_t row = 0; row < rows; ++row) {
              double best = -1e30;
              for (int64_t head = set * 6 / sets; head < (set + 1) * 6 / sets; ++head) {
                double sum = 0;
                for (int64_t d = 0; d < head_dim; ++d)
                  sum += static_cast<double>(q[head * head_dim + d]) * load_value(type, k.at(row, head / 3), d);
                best = std::max(best, sum);
              }
              ASSERT_NEAR(out[set * (rows + 1) + row], best, 1e-4) << implementation.name << " " << dtype_name(type);
            }
          }
        }
      }
}

TEST(ExactScore, OfGivenRowsIsThatOfAllRows) {
  Case c(Shape{});
  const std::vector<int32_t> rows = {5, 5, 99, 0, 3, -7, 1, 2, 64, 63, 0, 0};  // 2 lists of 6
  const std::vector<int64_t> counts = {5, 4};
  for (const GroupReduce reduce : {GroupReduce::kNone, GroupReduce::kMax}) {
    for (const auto& implementation : exact_score_implementations()) {
      const int64_t sets = reduce == GroupReduce::kNone ? 6 : 2;
      std::vector<float> all(static_cast<size_t>(sets * 128));
      std::vector<float> some(static_cast<size_t>(sets * 6), kSentinel);
      ExactScoreArgs args;
      args.q = {c.queries.data(), 6, 64, 67};
      args.k = c.cache;
      args.bias = c.bias.data();
      args.reduce = reduce;
      args.scores = all.data();
      args.scores_stride = 128;
      Context context(make_thread_executor(2));
      implementation.run(context, args);
      args.rows = rows.data();
      args.rows_stride = 6;
      args.num_kept = counts.data();
      args.scores = some.data();
      args.scores_stride = 6;
      check(args);
      implementation.run(context, args);
      for (int64_t set = 0; set < sets; ++set) {
        const int64_t g = set * 2 / sets;
        for (int64_t i = 0; i < 6; ++i) {
          const float got = some[set * 6 + i];
          EXPECT_EQ(got, i < counts[g] ? all[set * 128 + rows[g * 6 + i]] : kSentinel) << implementation.name;
        }
      }
      EXPECT_LT(bytes(args), 9 * (256 + 3 * 4) + 1);
    }
  }
}

TEST(ColumnScore, IsTheProductOverTheChosenDims) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const int64_t rows : {1, 31, 33, 2500}) {
    const int64_t stride = (rows + 31) / 32 * 32;
    std::vector<uint16_t> columns(static_cast<size_t>(2 * 64 * stride));
    for (uint16_t& x : columns) x = f32_to_f16(normal(random));
    std::vector<float> q(static_cast<size_t>(6 * 64));
    for (float& x : q) x = normal(random);
    std::vector<float> bias(static_cast<size_t>(rows));
    for (float& x : bias) x = random() % 4 == 0 ? -std::numeric_limits<float>::infinity() : 0.0F;
    std::vector<int16_t> dims;
    for (int i = 0; i < 2 * 7; ++i) dims.push_back(static_cast<int16_t>(random() % 64));
    for (const auto& implementation : column_score_implementations()) {
      std::vector<float> out(static_cast<size_t>(6 * (rows + 1)), kSentinel);
      ColumnScoreArgs args;
      args.q = {q.data(), 6, 64, 64};
      args.columns = columns.data();
      args.columns_stride = stride;
      args.num_kv_heads = 2;
      args.dims = dims.data();
      args.num_dims = 7;
      args.num_rows = rows;
      args.bias = bias.data();
      args.scores = out.data();
      args.scores_stride = rows + 1;
      check(args);
      Context context(make_thread_executor(2));
      implementation.run(context, args);
      for (int64_t head = 0; head < 6; ++head) {
        EXPECT_EQ(out[head * (rows + 1) + rows], kSentinel);
        for (int64_t row = 0; row < rows; ++row) {
          double sum = bias[row];
          for (int i = 0; i < 7; ++i) {
            const int64_t c = dims[head / 3 * 7 + i];
            sum += static_cast<double>(q[head * 64 + c]) * f16_to_f32(columns[(head / 3 * 64 + c) * stride + row]);
          }
          const float got = out[head * (rows + 1) + row];
          if (std::isinf(sum)) {
            ASSERT_EQ(got, sum);
          } else {
            ASSERT_NEAR(got, sum, 1e-4) << implementation.name << " " << row;
          }
        }
      }
    }
  }
}

// A basis of unit vectors is a choice of dims, and a weight multiplies an FC's part.
TEST(Score, BasisAndWeights) {
  for (const IndexType type : {IndexType::kF16, IndexType::kI8, IndexType::kI4}) {
    Shape shape;
    shape.type = type;
    Case c(shape);
    std::vector<float> basis(c.dims.size() * 64, 0.0F);
    for (size_t i = 0; i < c.dims.size(); ++i) basis[i * 64 + static_cast<size_t>(c.dims[i])] = 1;
    std::vector<std::byte> storage(c.storage.size());
    std::vector<int64_t> rows(static_cast<size_t>(shape.capacity));
    std::iota(rows.begin(), rows.end(), 0);
    AppendArgs write;
    write.rows = rows;
    write.cache = c.cache;
    write.index = {storage.data(), c.index.shape, nullptr, basis.data()};
    Context context(make_serial_executor());
    append(context, write);
    EXPECT_EQ(storage, c.storage);

    const std::vector<float> weights = {0, 1, 2, 3, 4, 5, 6, 7, 1, 1, 0.5F, 1, 1, 1, 1, 1};
    for (const auto& implementation : score_implementations()) {
      std::vector<float> got;
      ScoreArgs args = c.args(got, GroupReduce::kNone, false);
      args.index = write.index;
      args.index.weights = weights.data();
      check(args);
      implementation.run(context, args);
      for (int64_t head = 0; head < 6; ++head) {
        for (int64_t row = 0; row < shape.rows; ++row) {
          double wanted = 0;
          double largest = 0;
          double size = 0;
          for (int64_t i = 0; i < 16; ++i) {
            const int64_t at = head / 3 * 16 + i;
            const double q = static_cast<double>(c.queries[head * 67 + c.dims[at]]) * weights[at / 2];
            const double k = c.keys[(row * 2 + head / 3) * 64 + c.dims[at]];
            wanted += q * k;
            size += std::abs(q);
            largest = std::max(largest, std::abs(k));
          }
          const double levels = type == IndexType::kI4 ? 7 : 127;
          const double of_key = type == IndexType::kF16 ? largest * 0x1p-11 : largest / levels * 0.51;
          ASSERT_NEAR(got[head * args.scores_stride + row], wanted, size * (of_key + largest * 1e-3))
              << implementation.name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace fasa::ops
