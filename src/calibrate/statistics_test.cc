#include "src/calibrate/statistics.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "fasa/error.h"
#include "src/calibrate/principal_components.h"
#include "src/calibrate/top_sets.h"

namespace fasa::calibrate {
namespace {

// A cache and queries of small integers / 8 when `coarse` (many equal scores), else normal.
struct Data {
  RopeSpec rope;
  int32_t q_heads;
  int32_t kv_heads;
  int64_t rows;
  std::vector<float> k;  // [rows][kv_heads][head_dim]
  std::vector<float> q;  // [q_heads][head_dim]

  Data(const RopeSpec& spec, int32_t num_q, int32_t num_kv, int64_t num_rows, uint32_t seed, bool coarse = false)
      : rope(spec), q_heads(num_q), kv_heads(num_kv), rows(num_rows) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto value = [&] {
      return coarse ? static_cast<float>(static_cast<int>(random() % 5) - 2) / 8 : normal(random);
    };
    k.resize(static_cast<size_t>(rows) * kv_heads * spec.head_dim);
    q.resize(static_cast<size_t>(q_heads) * spec.head_dim);
    std::generate(k.begin(), k.end(), value);
    std::generate(q.begin(), q.end(), value);
  }
  CacheView cache() {
    return {reinterpret_cast<std::byte*>(k.data()),
            DType::kF32,
            rows,
            kv_heads,
            rope.head_dim,
            int64_t{4} * kv_heads * rope.head_dim,
            int64_t{4} * rope.head_dim};
  }
  HeadsView heads() { return {q.data(), q_heads, rope.head_dim, rope.head_dim}; }
  double chunk(int64_t head, int32_t fc, int64_t t) const {
    const DimPair p = fc_dims(rope, fc);
    const float* kt = &k[(t * kv_heads + head / (q_heads / kv_heads)) * rope.head_dim];
    const float* qh = &q[head * rope.head_dim];
    return static_cast<double>(qh[p.first] * kt[p.first] + qh[p.second] * kt[p.second]);
  }
};

std::vector<int64_t> top(const std::vector<float>& scores, int64_t k) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

double naive_agreement(const Data& d, int64_t head, int32_t fc, int64_t rows, int64_t k) {
  std::vector<float> total(rows);
  std::vector<float> chunk(rows);
  for (int64_t t = 0; t < rows; ++t) {
    for (int32_t i = 0; i < num_fcs(d.rope); ++i) {
      total[t] += static_cast<float>(d.chunk(head, i, t));  // in the order of the FCs, in f32
    }
    chunk[t] = static_cast<float>(d.chunk(head, fc, t));
  }
  std::vector<int64_t> both;
  const auto a = top(total, k);
  const auto b = top(chunk, k);
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return static_cast<double>(both.size()) / static_cast<double>(k);
}

RC_GTEST_PROP(TopSets, ThresholdsMakeTheSortedTopK, (uint32_t seed, bool coarse)) {
  std::mt19937 random(seed);
  const int64_t rows = 1 + static_cast<int64_t>(random() % 2500);
  std::cauchy_distribution<float> cauchy;  // clustered with far outliers: the hard case for equal bins
  std::vector<float> scores(rows);
  for (float& s : scores) s = coarse ? static_cast<float>(random() % 6) : cauchy(random);
  TopSetsScratch scratch;
  std::array<TopThreshold, kAgreementSizes.size()> thresholds;
  top_thresholds(scores, scratch, thresholds);
  for (size_t i = 0; i < kAgreementSizes.size() && kAgreementSizes[i] < rows; ++i) {
    std::vector<int64_t> kept;
    for (int64_t t = 0; t < rows; ++t) {
      if (thresholds[i].contains(scores[t], t)) kept.push_back(t);
    }
    RC_ASSERT(kept == top(scores, kAgreementSizes[i]));
  }
}

TEST(TopSets, ScoresWhoseRangeOverflowsOrUnderflows) {
  for (const float scale : {3e38F, 1e-44F}) {
    std::vector<float> scores(500);
    for (size_t t = 0; t < scores.size(); ++t) {
      scores[t] = (static_cast<float>(t * 37 % 100) / 50 - 1) * scale;
    }
    TopSetsScratch scratch;
    std::array<TopThreshold, kAgreementSizes.size()> thresholds;
    top_thresholds(scores, scratch, thresholds);
    std::vector<int64_t> kept;
    for (int64_t t = 0; t < 500; ++t) {
      if (thresholds[1].contains(scores[t], t)) kept.push_back(t);
    }
    EXPECT_EQ(kept, top(scores, 256));
  }
}

TEST(TopSets, AllScoresEqual) {
  const std::vector<float> scores(300, 2.5F);
  TopSetsScratch scratch;
  std::array<TopThreshold, kAgreementSizes.size()> thresholds;
  top_thresholds(scores, scratch, thresholds);
  EXPECT_TRUE(thresholds[1].contains(2.5F, 255));
  EXPECT_FALSE(thresholds[1].contains(2.5F, 256));
}

class AgainstNaive : public testing::TestWithParam<std::tuple<RopeLayout, bool>> {};

TEST_P(AgainstNaive, AllCriteria) {
  const auto [layout, coarse] = GetParam();
  Data d({layout, 12, 8, 10000.0}, 6, 2, 700, 7, coarse);
  const std::vector<int64_t> seen = {700, 300, 699};  // ca512 counts two of them, ca1024 none
  std::vector<QuerySample> queries;
  for (const int64_t rows : seen) queries.push_back({d.heads(), rows});
  LayerStatistics statistics(6, 2, d.rope);
  Context context(make_serial_executor());
  statistics.add(context, d.cache(), queries);
  const auto measures = statistics.measures();
  EXPECT_FALSE(measures.contains("ca1024")) << "no query saw more than 1024 rows";
  for (int64_t head = 0; head < 6; ++head) {
    for (int32_t fc = 0; fc < 6; ++fc) {
      const size_t at = head * 6 + fc;
      double variance = 0;
      double energy = 0;
      for (const int64_t rows : seen) {
        double sum = 0;
        double squares = 0;
        const double n = static_cast<double>(rows - 36);
        for (int64_t t = 4; t < rows - 32; ++t) sum += d.chunk(head, fc, t);
        for (int64_t t = 4; t < rows - 32; ++t) {
          squares += std::pow(d.chunk(head, fc, t) - sum / n, 2);
          energy += std::pow(d.chunk(head, fc, t), 2) / n / 3;
        }
        variance += squares / n / 3;
      }
      EXPECT_NEAR(measures.at("variance")[at], variance, 1e-5 * variance);
      EXPECT_NEAR(measures.at("energy")[at], energy, 1e-5 * energy);
      EXPECT_GE(measures.at("slope")[at], 0);
      double ca256 = 0;
      for (const int64_t rows : seen) ca256 += naive_agreement(d, head, fc, rows, 256) / 3;
      EXPECT_FLOAT_EQ(measures.at("ca256")[at], static_cast<float>(ca256));
      const double ca512 = (naive_agreement(d, head, fc, 700, 512) + naive_agreement(d, head, fc, 699, 512)) / 2;
      EXPECT_FLOAT_EQ(measures.at("ca512")[at], static_cast<float>(ca512));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(LayoutsAndTies, AgainstNaive,
                         testing::Combine(testing::Values(RopeLayout::kHalf, RopeLayout::kInterleaved),
                                          testing::Bool()));

TEST(Statistics, OnlyTheFcThatVariesCounts) {
  Data d({RopeLayout::kHalf, 16, 16, 10000.0}, 2, 1, 400, 11);
  for (int64_t t = 0; t < d.rows; ++t) {
    for (int32_t dim = 0; dim < 16; ++dim) {
      // FC 3 is dims 3 and 11.
      if (dim != 3 && dim != 11) d.k[t * 16 + dim] = 1.0F;
    }
  }
  LayerStatistics statistics(2, 1, d.rope);
  Context context(make_serial_executor());
  const QuerySample query{d.heads(), d.rows};
  statistics.add(context, d.cache(), {&query, 1});
  const auto measures = statistics.measures();
  for (size_t head = 0; head < 2; ++head) {
    for (size_t fc = 0; fc < 8; ++fc) {
      const float variance = measures.at("variance")[head * 8 + fc];
      const float agreement = measures.at("ca64")[head * 8 + fc];
      if (fc == 3) {
        EXPECT_GT(variance, 0.01F);
        EXPECT_GT(agreement, 0.98F) << "the order of alpha is that of FC 3, but for rounding";
      } else {
        EXPECT_EQ(variance, 0.0F);
        EXPECT_LT(agreement, 0.7F);
      }
    }
  }
}

TEST(Statistics, TheSameBytesForAnyNumberOfThreadsAndAnySplitOfQueries) {
  Data d({RopeLayout::kInterleaved, 32, 32, 10000.0}, 8, 4, 500, 3);
  std::vector<QuerySample> queries;
  for (int64_t rows = 400; rows <= 500; rows += 10) queries.push_back({d.heads(), rows});
  Context serial(make_serial_executor());
  LayerStatistics once(8, 4, d.rope);
  once.add(serial, d.cache(), queries);
  const auto want = once.measures();
  for (const int threads : {2, 3, 5}) {
    Context context(make_thread_executor(threads));
    LayerStatistics split(8, 4, d.rope);
    split.add(context, d.cache(), std::span(queries).first(4));
    split.add(context, d.cache(), std::span(queries).subspan(4));
    EXPECT_EQ(split.measures(), want) << threads;
    EXPECT_EQ(split.num_queries(), once.num_queries());
  }
}

TEST(Statistics, HalfPrecisionKeysAreReadExactly) {
  Data d({RopeLayout::kHalf, 8, 8, 10000.0}, 2, 2, 200, 5, true);  // eighths: exact in f16 and bf16
  Context context(make_serial_executor());
  const QuerySample query{d.heads(), d.rows};
  const auto run = [&](const CacheView& k) {
    LayerStatistics statistics(2, 2, d.rope);
    statistics.add(context, k, {&query, 1});
    return statistics.measures();
  };
  const auto want = run(d.cache());
  std::vector<_Float16> f16(d.k.begin(), d.k.end());
  std::vector<uint16_t> bf16;
  for (const float x : d.k) {
    uint32_t bits = 0;
    std::memcpy(&bits, &x, 4);
    bf16.push_back(static_cast<uint16_t>(bits >> 16));
  }
  CacheView half = d.cache();
  half.row_stride /= 2;
  half.head_stride /= 2;
  half.dtype = DType::kF16;
  half.data = reinterpret_cast<std::byte*>(f16.data());
  EXPECT_EQ(run(half), want);
  half.dtype = DType::kBF16;
  half.data = reinterpret_cast<std::byte*>(bf16.data());
  EXPECT_EQ(run(half), want);
}

TEST(Statistics, FewRowsGiveNoMeasureInsteadOfAFalseOne) {
  Data d({RopeLayout::kHalf, 8, 8, 10000.0}, 2, 2, 64, 5);
  Context context(make_serial_executor());
  LayerStatistics statistics(2, 2, d.rope);
  const QuerySample query{d.heads(), 36};
  statistics.add(context, d.cache(), {&query, 1});
  EXPECT_TRUE(statistics.measures().empty());
}

TEST(Statistics, RefusesWrongShapesAndScoresThatAreNotFinite) {
  Data d({RopeLayout::kHalf, 8, 8, 10000.0}, 2, 2, 100, 5);
  Context context(make_serial_executor());
  LayerStatistics statistics(2, 2, d.rope);
  const QuerySample good{d.heads(), 100};
  const QuerySample too_many{d.heads(), 101};
  EXPECT_THROW(statistics.add(context, d.cache(), {&too_many, 1}), Error);
  CacheView k = d.cache();
  k.dtype = DType::kQ8_0;
  EXPECT_THROW(statistics.add(context, k, {&good, 1}), Error);
  k = d.cache();
  k.num_heads = 1;
  EXPECT_THROW(statistics.add(context, k, {&good, 1}), Error);
  EXPECT_THROW(LayerStatistics(3, 2, d.rope), Error);
  d.k[77] = NAN;
  EXPECT_THROW(statistics.add(context, d.cache(), {&good, 1}), Error);
}

TEST(Statistics, ChannelMeans) {
  Data d({RopeLayout::kHalf, 8, 8, 10000.0}, 4, 2, 50, 3);
  LayerStatistics statistics(4, 2, d.rope);
  EXPECT_TRUE(statistics.channels().empty());
  Context context(make_thread_executor(2));
  statistics.add(context, d.cache(), std::vector<QuerySample>{{d.heads(), 50}, {d.heads(), 31}});
  const std::vector<float> means = statistics.channels().at("abs_qk");
  ASSERT_EQ(means.size(), 32U);
  for (int64_t head = 0; head < 4; ++head) {
    for (int64_t c = 0; c < 8; ++c) {
      double mean = 0;
      for (const int64_t rows : {50, 31}) {
        for (int64_t t = 0; t < rows; ++t) {
          const float product = d.q[head * 8 + c] * d.k[(t * 2 + head / 2) * 8 + c];
          mean += static_cast<double>(std::abs(product)) / static_cast<double>(rows) / 2;
        }
      }
      EXPECT_NEAR(means[head * 8 + c], mean, 1e-5 * mean);
    }
  }
}

TEST(PrincipalComponents, EigenvectorsOfASymmetricMatrix) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  for (const int64_t n : {1, 2, 7, 64}) {
    std::vector<double> a(static_cast<size_t>(n * n));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) a[i * n + j] = a[j * n + i] = normal(random);
    }
    const std::vector<double> v = eigenvectors(a, n);
    double last = INFINITY;
    for (int64_t i = 0; i < n; ++i) {
      std::vector<double> av(static_cast<size_t>(n), 0.0);
      double value = 0;
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t c = 0; c < n; ++c) av[r] += a[r * n + c] * v[i * n + c];
        value += v[i * n + r] * av[r];
      }
      EXPECT_LE(value, last + 1e-9);
      last = value;
      for (int64_t r = 0; r < n; ++r) EXPECT_NEAR(av[r], value * v[i * n + r], 1e-9) << n << " " << i;
      for (int64_t j = 0; j < i; ++j) {
        double dot = 0;
        for (int64_t c = 0; c < n; ++c) dot += v[i * n + c] * v[j * n + c];
        EXPECT_NEAR(dot, 0, 1e-9);
      }
    }
  }
}

// Keys that vary along one direction before RoPE: it is the first component, and RoPE smears it.
TEST(PrincipalComponents, FindTheDirectionBeforeRope) {
  const RopeSpec rope{RopeLayout::kInterleaved, 8, 8, 100.0};
  Data d(rope, 1, 1, 2000, 6);
  const std::vector<float> direction = {0.5F, 0, 0, -0.5F, 0.5F, 0, 0.5F, 0};
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (int64_t t = 0; t < d.rows; ++t) {
    float* key = &d.k[t * 8];
    const float along = 3 * normal(random);
    for (int64_t c = 0; c < 8; ++c) key[c] = along * direction[c] + 0.1F * normal(random);
    rope_rotate(rope, static_cast<double>(t), key);
  }
  PrincipalComponents components(1, rope);
  EXPECT_TRUE(components.bases(4).empty());
  Context context(make_serial_executor());
  components.add(context, d.cache(), d.rows);
  const auto bases = components.bases(4);
  ASSERT_EQ(bases.at("pca_pre").size(), 32U);
  const auto along = [&](const std::vector<float>& basis) {
    float dot = 0;
    for (int64_t c = 0; c < 8; ++c) dot += basis[c] * direction[c];
    return std::abs(dot);
  };
  EXPECT_GT(along(bases.at("pca_pre")), 0.99F);
  EXPECT_LT(along(bases.at("pca_post")), 0.95F);
}

// Chunk 1 follows chunk 0 at half its size, and chunk 2 runs against both.
TEST(Statistics, SlopeIsThatOfTheRegressionOnTheChunk) {
  const RopeSpec rope{RopeLayout::kInterleaved, 6, 6, 10000.0};
  Data d(rope, 1, 1, 300, 8);
  for (int64_t t = 0; t < d.rows; ++t) {
    float* k = &d.k[t * 6];
    k[1] = k[3] = k[5] = 0;
    k[2] = 0.5F * k[0];
    k[4] = -0.25F * k[0];
  }
  d.q = {1, 0, 1, 0, 1, 0};
  LayerStatistics statistics(1, 1, rope);
  Context context(make_serial_executor());
  statistics.add(context, d.cache(), std::vector<QuerySample>{{d.heads(), d.rows}});
  const std::vector<float> slope = statistics.measures().at("slope");
  EXPECT_NEAR(slope[0], 1.25, 1e-5);
  EXPECT_NEAR(slope[1], 2.5, 1e-5);
  EXPECT_EQ(slope[2], 0) << "negative";
}

}  // namespace
}  // namespace fasa::calibrate
