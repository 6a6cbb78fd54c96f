// Policies that select by a score of the moment, against scalar readings of their papers.
#include "fasa/error.h"
#include "src/policy/simulation.h"

namespace fasa {
namespace {

using test::Rows;
using test::Simulation;
using test::small_settings;

constexpr int64_t kPrompt = 150;
constexpr int64_t kDim = Simulation::kDim;
constexpr int64_t kGroup = Simulation::kGroup;
constexpr int64_t kHeads = Simulation::kHeads;
constexpr int64_t kRowBytes = (kDim + Simulation::kValueDim) * 2;

// A prompt and a few steps, each checked.
template <class Check>
void run(const PolicySettings& settings, const Check& check_step) {
  Simulation s(settings);
  s.prefill(kPrompt);
  for (int i = 0; i < 4; ++i) {
    const DecodeReport report = s.decode();
    EXPECT_TRUE(report.sparse);
    check_step(s, report);
    EXPECT_EQ(s.index->count_stale_rows(s.context, s.k), 0);
  }
}

TEST(Settings, IndexTypeFollowsTheHeadUnlessItIsSaid) {
  PolicySettings settings;
  for (const int64_t head_dim : {64, 80, 128})
    EXPECT_EQ(index_type_for(settings, head_dim), IndexType::kI4) << head_dim;
  for (const int64_t head_dim : {192, 256}) EXPECT_EQ(index_type_for(settings, head_dim), IndexType::kI8) << head_dim;
  settings.index_type = parse_index_type("f16");
  for (const int64_t head_dim : {64, 256}) EXPECT_EQ(index_type_for(settings, head_dim), IndexType::kF16) << head_dim;
  EXPECT_EQ(parse_index_type("auto"), std::nullopt);
  EXPECT_THROW(parse_index_type("int2"), Error);
}

TEST(Selecting, Oracle) {
  run(small_settings(PolicyKind::kOracle), [](Simulation& s, const DecodeReport& report) {
    s.expect_top_rows([&](int64_t h, int32_t row) { return s.dot(s.head(h), row, h / kGroup); });
    EXPECT_EQ(report.kv_bytes, s.num_rows * 2 * kDim * 2 + kHeads * 40 * kRowBytes);
  });
}

TEST(Selecting, Fasa) {
  run(small_settings(PolicyKind::kFasa), [](Simulation& s, const DecodeReport& report) {
    const auto fcs = dominant_fcs(s.profile, s.settings);
    s.expect_top_rows([&](int64_t h, int32_t row) {
      double sum = 0;
      for (const int32_t fc : fcs[h / kGroup]) {
        const DimPair pair = fc_dims(s.profile.rope, fc);
        for (const int32_t d : {pair.first, pair.second}) {
          sum += static_cast<double>(s.head(h)[d]) * s.key(row, h / kGroup, d);
        }
      }
      return sum;
    });
    EXPECT_EQ(report.index_bytes, s.num_rows * 2 * 8 * 2);
    EXPECT_EQ(report.kv_bytes, kHeads * 40 * kRowBytes);
  });
}

TEST(Selecting, RandomRowsAreAsManyAndDifferFromStepToStep) {
  Simulation s(small_settings(PolicyKind::kRandom));
  s.prefill(kPrompt);
  const DecodeReport report = s.decode();
  EXPECT_EQ(report.kv_bytes, kHeads * 40 * kRowBytes);
  const std::vector<float> first = s.out;
  find_policy(PolicyKind::kRandom).decode(s.context, s.settings, s.step());
  EXPECT_EQ(s.out, first) << "the same query draws the same rows";
  s.settings.seed = 2;
  find_policy(PolicyKind::kRandom).decode(s.context, s.settings, s.step());
  EXPECT_NE(s.out, first);
  // Every row is drawn equally often: the mean over many seeds of "the value's first dim" nears that of all rows.
  PolicySettings flat = s.settings;
  flat.sinks = flat.recent = 0;
  std::vector<int> drawn(static_cast<size_t>(s.num_rows), 0);
  for (int64_t row = 0; row < s.num_rows; ++row) {
    for (int64_t d = 0; d < Simulation::kValueDim; ++d)
      store_value(DType::kF16, s.v.at(row, 0), d, row % 2 == 0 ? 1 : 0);
    for (int64_t d = 0; d < kDim; ++d) store_value(DType::kF16, s.k.at(row, 0), d, 0);
  }
  double even = 0;
  for (flat.seed = 0; flat.seed < 200; ++flat.seed) {
    s.settings = flat;
    find_policy(PolicyKind::kRandom).decode(s.context, flat, s.step());
    even += static_cast<double>(s.out[0]) / 200;
  }
  EXPECT_NEAR(even, 0.5, 0.03);
}

TEST(Selecting, Streaming) {
  run(small_settings(PolicyKind::kStreaming), [](Simulation& s, const DecodeReport& report) {
    Rows rows = {0, 1};
    for (int64_t row = s.num_rows - 38; row < s.num_rows; ++row) rows.push_back(static_cast<int32_t>(row));
    for (int64_t h = 0; h < kHeads; ++h) s.expect_output(h, s.attention(h, rows));
    EXPECT_EQ(report.kv_bytes, 2 * 40 * kRowBytes);
  });
}

TEST(Selecting, Channels) {
  run(small_settings(PolicyKind::kChannels), [](Simulation& s, const DecodeReport& report) {
    const std::vector<float>& means = s.profile.channels["abs_qk"];
    s.expect_top_rows([&](int64_t h, int32_t row) {
      const int64_t g = h / kGroup;
      std::vector<std::pair<double, int64_t>> order;
      for (int64_t c = 0; c < kDim; ++c) {
        double sum = 0;
        for (int64_t i = g * kGroup; i < (g + 1) * kGroup; ++i) sum += static_cast<double>(means[i * kDim + c]);
        order.emplace_back(-sum, c);
      }
      std::ranges::sort(order);
      double score = 0;
      for (int i = 0; i < 8; ++i)
        score += static_cast<double>(s.head(h)[order[i].second]) * s.key(row, g, order[i].second);
      return score;
    });
    EXPECT_EQ(report.index_bytes, s.num_rows * 2 * 8 * 2) << "the bytes of fasa's index";
  });
}

TEST(Selecting, Loki) {
  for (const char* basis : {"pre", "post"}) {
    PolicySettings settings = small_settings(PolicyKind::kLoki);
    settings.basis = basis;
    run(settings, [&](Simulation& s, const DecodeReport& report) {
      const std::vector<float>& axes = s.profile.bases[std::string("pca_") + basis];
      s.expect_top_rows([&](int64_t h, int32_t row) {
        const int64_t g = h / kGroup;
        double score = 0;
        for (int64_t a = 0; a < 8; ++a) {
          double q = 0;
          double k = 0;
          for (int64_t d = 0; d < kDim; ++d) {
            const double axis = axes[(g * kDim / 2 + a) * kDim + d];
            q += axis * s.head(h)[d];
            k += axis * s.key(row, g, d);
          }
          score += q * f16_to_f32(f32_to_f16(static_cast<float>(k)));
        }
        return score;
      });
      EXPECT_EQ(report.index_bytes, s.num_rows * 2 * 8 * 2);
    });
  }
}

TEST(Selecting, KvQuant) {
  run(small_settings(PolicyKind::kKvQuant), [](Simulation& s, const DecodeReport& report) {
    s.expect_top_rows([&](int64_t h, int32_t row) {
      const int64_t g = h / kGroup;
      double largest = 0;
      for (int64_t d = 0; d < kDim; ++d) largest = std::max(largest, std::abs(s.key(row, g, d)));
      uint16_t scale = f32_to_f16(static_cast<float>(largest / 7));
      if (f16_to_f32(scale) < largest / 7) ++scale;
      double score = 0;
      for (int64_t d = 0; d < kDim; ++d) {
        score += static_cast<double>(s.head(h)[d]) * std::nearbyint(s.key(row, g, d) / f16_to_f32(scale));
      }
      return score * f16_to_f32(scale);
    });
    EXPECT_EQ(report.index_bytes, s.num_rows * 2 * (kDim / 2 + 2));
  });
}

TEST(Selecting, Sparq) {
  for (const bool shared : {false, true}) {
    PolicySettings settings = small_settings(PolicyKind::kSparq);
    settings.share_tokens = shared;
    run(settings, [&](Simulation& s, const DecodeReport& report) {
      std::vector<std::vector<double>> approximate;  // s^ of every head
      for (int64_t h = 0; h < kHeads; ++h) {
        const int64_t g = h / kGroup;
        std::vector<std::pair<double, int64_t>> order;
        for (int64_t c = 0; c < kDim; ++c) {
          double sum = 0;
          for (int64_t i = g * kGroup; i < (g + 1) * kGroup; ++i) sum += std::abs(static_cast<double>(s.head(i)[c]));
          order.emplace_back(-sum, c);
        }
        std::ranges::sort(order);
        double all = 0;
        double chosen = 0;
        for (int64_t c = 0; c < kDim; ++c) all += std::abs(static_cast<double>(s.head(h)[c]));
        for (int i = 0; i < 8; ++i) chosen += std::abs(static_cast<double>(s.head(h)[order[i].second]));
        std::vector<double> p;
        for (const int32_t row : s.all()) {
          double score = 0;
          for (int i = 0; i < 8; ++i)
            score += static_cast<double>(s.head(h)[order[i].second]) * s.key(row, g, order[i].second);
          p.push_back(std::exp(score / std::sqrt(kDim * chosen / all)));
        }
        const double sum = std::accumulate(p.begin(), p.end(), 0.0);
        for (double& x : p) x /= sum;
        approximate.push_back(p);
      }
      for (int64_t h = 0; h < kHeads; ++h) {
        const int64_t g = h / kGroup;
        std::vector<double> ranking = approximate[h];
        for (size_t i = 0; shared && i < ranking.size(); ++i) {
          ranking[i] = 0;
          for (int64_t j = g * kGroup; j < (g + 1) * kGroup; ++j) ranking[i] += approximate[j][i];
        }
        const Rows rows = s.top(s.all(), ranking, s.settings.budget);
        double alpha = 0;
        for (const int32_t row : rows) alpha += approximate[h][row];
        std::vector<double> wanted = s.attention(h, rows);
        for (int64_t d = 0; d < Simulation::kValueDim; ++d) {
          double mean = 0;
          for (const int32_t row : s.all()) mean += s.value(row, g, d) / static_cast<double>(s.num_rows);
          wanted[d] = alpha * wanted[d] + (1 - alpha) * mean;
        }
        s.expect_output(h, wanted);
      }
      const int64_t fresh = s.num_rows == kPrompt + 1 ? kPrompt + 1 : 1;  // rows copied, and added to the mean of V
      EXPECT_EQ(report.index_bytes, s.num_rows * 2 * 8 * 2 + fresh * 2 * kRowBytes);
    });
  }
}

// Scores of pages spread over their rows.
template <class PageScore>
void expect_top_pages(Simulation& s, const PageScore& score) {
  for (int64_t h = 0; h < kHeads; ++h) {
    std::vector<double> scores;
    for (const int32_t row : s.all()) {
      const int64_t first = row / s.settings.page * s.settings.page;
      scores.push_back(score(h, first, std::min(first + s.settings.page, s.num_rows)));
    }
    s.expect_output(h, s.attention(h, s.top(s.all(), scores, s.settings.budget)));
  }
}

TEST(Selecting, Quest) {
  run(small_settings(PolicyKind::kQuest), [](Simulation& s, const DecodeReport& report) {
    expect_top_pages(s, [&](int64_t h, int64_t first, int64_t last) {
      double bound = 0;
      for (int64_t d = 0; d < kDim; ++d) {
        double low = INFINITY;
        double high = -INFINITY;
        for (int64_t row = first; row < last; ++row) {
          low = std::min(low, s.key(row, h / kGroup, d));
          high = std::max(high, s.key(row, h / kGroup, d));
        }
        bound += std::max(static_cast<double>(s.head(h)[d]) * low, static_cast<double>(s.head(h)[d]) * high);
      }
      return bound;
    });
    const int64_t pages = (s.num_rows + 7) / 8;
    const int64_t summarised = s.num_rows == kPrompt + 1 ? s.num_rows : (s.num_rows - 1) % 8 + 1;
    EXPECT_EQ(report.index_bytes, pages * 2 * 2 * kDim * 2 + summarised * 2 * kDim * 2);
  });
}

TEST(Selecting, QuickLlama) {
  run(small_settings(PolicyKind::kQuickLlama), [](Simulation& s, const DecodeReport& report) {
    const size_t decoded = static_cast<size_t>(s.num_rows - kPrompt);
    const auto question = [&](int64_t h, int64_t d) {  // the mean query of the prompt's last 5 tokens
      double mean = 0;
      for (size_t age = decoded; age < decoded + 5; ++age) mean += static_cast<double>(s.head(h, age)[d]) / 5;
      return mean;
    };
    expect_top_pages(s, [&](int64_t h, int64_t first, int64_t last) {
      const int64_t g = h / kGroup;
      std::vector<std::pair<double, int64_t>> rows;
      for (int64_t row = first; row < last; ++row) {
        double score = 0;
        for (int64_t i = g * kGroup; i < (g + 1) * kGroup; ++i) {
          for (int64_t d = 0; d < kDim; ++d) score += question(i, d) * s.key(row, g, d);
        }
        rows.emplace_back(-score, row);
      }
      std::ranges::sort(rows);
      rows.resize(std::min<size_t>(rows.size(), 4));
      double relevance = 0;
      for (int64_t d = 0; d < kDim; ++d) {
        double mean = 0;
        for (const auto& [score, row] : rows) mean += s.key(row, g, d) / static_cast<double>(rows.size());
        const double stored = f16_to_f32(f32_to_f16(static_cast<float>(mean)));
        relevance += (static_cast<double>(s.head(h)[d]) + 0.5 * question(h, d)) * stored;
      }
      return relevance;
    });
    EXPECT_GE(report.index_bytes, (s.num_rows + 7) / 8 * 2 * kDim * 2);
  });
}

TEST(Selecting, ActQkv) {
  run(small_settings(PolicyKind::kActQkv), [](Simulation& s, const DecodeReport& report) {
    constexpr int64_t kWidth = kHeads * kDim;
    const auto q = [&](size_t age, int64_t i) { return static_cast<double>(s.head(i / kDim, age)[i % kDim]); };
    std::vector<double> mean(kWidth, 0.0);
    std::vector<double> variance(kWidth, 0.0);
    for (int64_t i = 0; i < kWidth; ++i) {
      for (size_t age = 0; age < 5; ++age) mean[i] += q(age, i) / 5;
      for (size_t age = 0; age < 5; ++age) variance[i] += (q(age, i) - mean[i]) * (q(age, i) - mean[i]) / 5;
    }
    const double floor = std::accumulate(variance.begin(), variance.end(), 0.0) / kWidth / 100;
    std::vector<double> bias(5, 0.0);
    for (size_t age = 0; age < 5; ++age) {
      for (int64_t i = 0; i < kWidth; ++i) {
        bias[age] += (q(age, i) - mean[i]) * (q(age, i) - mean[i]) / (variance[i] + floor);
      }
    }
    const double total = std::accumulate(bias.begin(), bias.end(), 0.0);
    expect_top_pages(s, [&](int64_t h, int64_t first, int64_t last) {
      double score = 0;
      for (int64_t d = 0; d < kDim; ++d) {
        double probe = 0;
        for (size_t age = 0; age < 5; ++age) probe += bias[age] / total * q(age, h * kDim + d);
        double key = 0;
        for (int64_t row = first; row < last; ++row)
          key += s.key(row, h / kGroup, d) / static_cast<double>(last - first);
        score += probe * f16_to_f32(f32_to_f16(static_cast<float>(key)));
      }
      return score;
    });
    EXPECT_GE(report.index_bytes, (s.num_rows + 7) / 8 * 2 * kDim * 2);
  });
}

// With room for every row nothing may change, whatever ranks them.
TEST(Selecting, RoomForEveryRowIsFullAttention) {
  for (const PolicyInfo& info : policy_infos()) {
    if (info.drops_tokens) continue;
    PolicySettings settings = small_settings(info.kind);
    settings.budget = kPrompt + 1;
    Simulation s(settings);
    s.prefill(kPrompt);
    s.decode();
    const std::vector<float> sparse = s.out;
    s.decode_full_again();
    for (size_t i = 0; i < sparse.size(); ++i) EXPECT_NEAR(sparse[i], s.out[i], 2e-5) << info.name;
  }
}

// A layer whose share of the budget is small leaves nothing out of a context that the whole budget covers.
TEST(Selecting, AContextWithinTheWholeBudgetIsFullAttention) {
  PolicySettings settings = small_settings(PolicyKind::kFasa);
  settings.full_rows = kPrompt + 1;
  Simulation s(settings);
  s.prefill(kPrompt);
  for (const bool sparse : {false, true}) {
    s.next_token();
    EXPECT_EQ(decode_step(s.context, s.settings, s.step()).sparse, sparse);
  }
}

TEST(Settings, TheFirstSparseLayersOfFasaHaveMoreOfTheBudget) {
  PolicySettings settings;
  for (const PolicyInfo& info : policy_infos()) {
    settings.kind = info.kind;
    EXPECT_EQ(budget_slope_for(settings), info.kind == PolicyKind::kFasa ? 0.3 : 0.0) << info.name;
  }
  settings.budget_slope = -0.25;
  EXPECT_EQ(budget_slope_for(settings), -0.25);
  settings.budget_slope = 1.5;
  EXPECT_THROW(check(settings), Error);
}

TEST(Selecting, OverwrittenAndRotatedRowsAreSeen) {
  for (const PolicyInfo& info : policy_infos()) {
    if (info.drops_tokens || info.kind == PolicyKind::kFull) continue;
    Simulation s(small_settings(info.kind));
    s.prefill(kPrompt);
    s.decode();
    // Rows 40..59 become other tokens, rows 80..89 are rotated in place.
    for (int64_t row = 40; row < 60; ++row) s.write(row);
    for (int64_t row = 80; row < 90; ++row) {
      for (int64_t g = 0; g < Simulation::kKvHeads; ++g) {
        for (int64_t d = 0; d < kDim; ++d)
          store_value(DType::kF16, s.k.at(row, g), d, static_cast<float>(-s.key(row, g, d)));
      }
    }
    s.index->invalidate(80, 10);
    s.decode();
    EXPECT_EQ(s.index->count_stale_rows(s.context, s.k), 0) << info.name;
    // The same rows in a layer that never held anything else; policies that look at queries see the same ones.
    if (info.observes_prefill || info.kind == PolicyKind::kRandom) continue;
    Simulation fresh(small_settings(info.kind));
    fresh.k_bytes = s.k_bytes;
    fresh.v_bytes = s.v_bytes;
    fresh.k.data = fresh.k_bytes.data();
    fresh.v.data = fresh.v_bytes.data();
    fresh.num_rows = s.num_rows;
    fresh.queries = s.queries;
    DecodeStep step = fresh.step();
    step.forced = s.step().forced;  // sinks and recent rows go by age
    find_policy(info.kind).decode(fresh.context, fresh.settings, step);
    const std::vector<float> wanted = fresh.out;
    find_policy(info.kind).decode(s.context, s.settings, s.step());
    for (size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(s.out[i], wanted[i], 1e-5) << info.name;
  }
}

}  // namespace
}  // namespace fasa
