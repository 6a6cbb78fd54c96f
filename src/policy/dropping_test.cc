// Policies that drop tokens, against scalar readings of their papers that run beside them for some steps.
#include "src/policy/simulation.h"

namespace fasa {
namespace {

using test::Rows;
using test::Simulation;
using test::small_settings;

constexpr int64_t kPrompt = 150;
constexpr int64_t kSteps = 16;
constexpr int64_t kDim = Simulation::kDim;
constexpr int64_t kGroup = Simulation::kGroup;
constexpr int64_t kKvHeads = Simulation::kKvHeads;
constexpr int64_t kValueDim = Simulation::kValueDim;
constexpr size_t kWindow = 5;
constexpr int64_t kRowBytes = (kDim + kValueDim) * 2;

// What the 5 queries before this one attend to among `rows` (which includes this token): sums over the group.
std::vector<double> window_sums(const Simulation& s, int64_t g, const Rows& rows) {
  std::vector<double> sums(rows.size(), 0.0);
  for (size_t age = 1; age <= kWindow; ++age) {
    Rows visible;
    for (const int32_t row : rows) {
      if (row < s.num_rows - static_cast<int64_t>(age)) visible.push_back(row);
    }
    for (int64_t h = g * kGroup; h < (g + 1) * kGroup; ++h) {
      const std::vector<double> p = s.weights(h, visible, age);
      for (size_t i = 0; i < visible.size(); ++i) sums[i] += p[i];
    }
  }
  return sums;
}

std::vector<double> pooled(const std::vector<double>& x) {
  std::vector<double> result;
  for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
    double sum = 0;
    for (int64_t j = i - 2; j <= i + 2; ++j) sum += j >= 0 && j < static_cast<int64_t>(x.size()) ? x[j] : 0.0;
    result.push_back(sum / 5);
  }
  return result;
}

TEST(Dropping, H2o) {
  Simulation s(small_settings(PolicyKind::kH2o));
  s.prefill(kPrompt);
  std::vector<Rows> kept(kKvHeads, s.all());
  std::vector<std::vector<double>> heavy(kKvHeads, std::vector<double>(400, 0.0));
  for (int64_t step = 0; step < kSteps; ++step) {
    const DecodeReport report = s.decode();
    for (int64_t g = 0; g < kKvHeads; ++g) {
      kept[g].push_back(static_cast<int32_t>(s.num_rows - 1));
      if (step == 0) {
        const std::vector<double> sums = window_sums(s, g, kept[g]);
        for (size_t i = 0; i < sums.size(); ++i) heavy[g][kept[g][i]] += sums[i];
      }
      std::vector<double> scores;
      for (const int32_t row : kept[g]) scores.push_back(heavy[g][row]);
      kept[g] = s.top(kept[g], scores, 40);
      for (int64_t h = g * kGroup; h < (g + 1) * kGroup; ++h) {
        const std::vector<double> p = s.weights(h, kept[g]);
        for (size_t i = 0; i < p.size(); ++i) heavy[g][kept[g][i]] += p[i];
        s.expect_output(h, s.attention(h, kept[g]));
      }
    }
    const int64_t observed = step == 0 ? kWindow * 2 * (kPrompt + 1) * kDim * 2 : 0;
    EXPECT_EQ(report.kv_bytes, kKvHeads * 40 * kRowBytes + observed) << step;
  }
}

// snapkv and graphkv: `rank` maps the pooled sums to ranks.
template <class Rank>
void expect_snapkv(PolicyKind kind, const Rank& rank) {
  Simulation s(small_settings(kind));
  s.prefill(kPrompt);
  std::vector<Rows> kept(kKvHeads, s.all());
  int evictions = 0;
  for (int64_t step = 0; step < kSteps; ++step) {
    s.decode();
    for (int64_t g = 0; g < kKvHeads; ++g) {
      kept[g].push_back(static_cast<int32_t>(s.num_rows - 1));
      if (kept[g].size() > 40) {
        kept[g] = s.top(kept[g], rank(s, g, kept[g], pooled(window_sums(s, g, kept[g]))), 35);
        ++evictions;
      }
      for (int64_t h = g * kGroup; h < (g + 1) * kGroup; ++h) s.expect_output(h, s.attention(h, kept[g]));
    }
  }
  EXPECT_EQ(evictions, 3 * kKvHeads);
}

TEST(Dropping, SnapKv) {
  expect_snapkv(PolicyKind::kSnapKv,
                [](const Simulation&, int64_t, const Rows&, const std::vector<double>& sums) { return sums; });
}

TEST(Dropping, GraphKv) {
  expect_snapkv(PolicyKind::kGraphKv, [](const Simulation& s, int64_t g, const Rows& rows, std::vector<double> rank) {
    const auto cosine = [&](int32_t a, int32_t b) {
      double ab = 0;
      double aa = 0;
      double bb = 0;
      for (int64_t d = 0; d < kDim; ++d) {
        ab += s.key(a, g, d) * s.key(b, g, d);
        aa += s.key(a, g, d) * s.key(a, g, d);
        bb += s.key(b, g, d) * s.key(b, g, d);
      }
      return ab / std::sqrt(aa * bb);
    };
    std::vector<size_t> order(rows.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return rank[a] > rank[b]; });
    order.resize(35 / 8);
    std::vector<double> result = rank;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (std::ranges::find(order, i) != order.end()) continue;
      double nearest = 0;
      for (const size_t source : order) nearest = std::max(nearest, cosine(rows[i], rows[source]));
      result[i] *= 1 - nearest;
    }
    return result;
  });
}

struct Slot {
  std::vector<double> k = std::vector<double>(kDim, 0.0);
  std::vector<double> v = std::vector<double>(kValueDim, 0.0);
  double weight = 0;
  void merge(const Simulation& s, int64_t g, int32_t row) {
    for (int64_t d = 0; d < kDim; ++d) k[d] = (k[d] * weight + s.key(row, g, d)) / (weight + 1);
    for (int64_t d = 0; d < kValueDim; ++d) v[d] = (v[d] * weight + s.value(row, g, d)) / (weight + 1);
    weight += 1;
  }
};

// Attention over rows and slots; the weights on the rows go to `p`.
std::vector<double> attention_with_slots(const Simulation& s, int64_t h, const Rows& rows,
                                         const std::vector<Slot>& slots, std::vector<double>* p) {
  const int64_t g = h / kGroup;
  std::vector<double> out(kValueDim, 0.0);
  double sum = 0;
  p->clear();
  for (const int32_t row : rows) {
    p->push_back(std::exp(s.dot(s.head(h), row, g) / std::sqrt(kDim)));
    sum += p->back();
    for (int64_t d = 0; d < kValueDim; ++d) out[d] += p->back() * s.value(row, g, d);
  }
  for (const Slot& slot : slots) {
    double dot = 0;
    for (int64_t d = 0; d < kDim; ++d) dot += static_cast<double>(s.head(h)[d]) * slot.k[d];
    const double e = slot.weight * std::exp(dot / std::sqrt(kDim));
    sum += e;
    for (int64_t d = 0; d < kValueDim; ++d) out[d] += e * slot.v[d];
  }
  for (double& x : out) x /= sum;
  for (double& x : *p) x /= sum;
  return out;
}

TEST(Dropping, ZeroMerge) {
  Simulation s(small_settings(PolicyKind::kZeroMerge));
  s.prefill(kPrompt);
  constexpr int64_t kSlots = 5;
  std::vector<Rows> kept(kKvHeads, s.all());
  std::vector<std::vector<Slot>> slots(kKvHeads, std::vector<Slot>(kSlots));
  std::vector<std::vector<double>> score(kKvHeads, std::vector<double>(400, 0.0));
  for (int64_t step = 0; step < kSteps; ++step) {
    s.decode();
    for (int64_t g = 0; g < kKvHeads; ++g) {
      kept[g].push_back(static_cast<int32_t>(s.num_rows - 1));
      if (step == 0) {
        const std::vector<double> sums = window_sums(s, g, kept[g]);
        for (size_t i = 0; i < sums.size(); ++i) score[g][kept[g][i]] += sums[i];
      }
      std::vector<double> scores;
      for (const int32_t row : kept[g]) scores.push_back(score[g][row]);
      const Rows left = s.top(kept[g], scores, 40 - kSlots);
      Rows gone;
      std::ranges::set_difference(kept[g], left, std::back_inserter(gone));
      for (size_t i = 0; i < gone.size(); ++i) {
        size_t to = i * kSlots / gone.size();
        for (size_t j = 0; step > 0 && j < kSlots; ++j) {
          const auto dot = [&](size_t slot) {
            double sum = 0;
            for (int64_t d = 0; d < kDim; ++d) sum += slots[g][slot].k[d] * s.key(gone[i], g, d);
            return sum;
          };
          if (j == 0) to = 0;
          if (dot(j) > dot(to)) to = j;
        }
        slots[g][to].merge(s, g, gone[i]);
      }
      kept[g] = left;
      for (const int32_t row : kept[g]) score[g][row] *= 0.98;
      for (int64_t h = g * kGroup; h < (g + 1) * kGroup; ++h) {
        std::vector<double> p;
        s.expect_output(h, attention_with_slots(s, h, kept[g], slots[g], &p));
        for (size_t i = 0; i < p.size(); ++i) score[g][kept[g][i]] += p[i];
      }
    }
  }
  double merged = 0;
  for (const Slot& slot : slots[0]) merged += slot.weight;
  EXPECT_EQ(merged, static_cast<double>(kPrompt + kSteps - 35)) << "every row is kept or merged";
}

const PolicyKind kDropping[] = {PolicyKind::kH2o, PolicyKind::kSnapKv, PolicyKind::kGraphKv, PolicyKind::kZeroMerge};

std::vector<float> run(Simulation& s, int64_t prompt, int64_t steps) {
  s.prefill(prompt);
  std::vector<float> outs;
  for (int64_t i = 0; i < steps; ++i) {
    s.decode();
    outs.insert(outs.end(), s.out.begin(), s.out.end());
  }
  return outs;
}

TEST(Dropping, NothingIsDroppedWithinTheBudget) {
  for (const PolicyKind kind : kDropping) {
    PolicySettings settings = small_settings(kind);
    settings.budget = 300;
    Simulation s(settings);
    run(s, kPrompt, 5);
    const std::vector<float> ours = s.out;
    s.decode_full_again();
    for (size_t i = 0; i < ours.size(); ++i) EXPECT_NEAR(ours[i], s.out[i], 2e-5) << policy_name(kind);
  }
}

// After a clear (every row replaced) nothing of the former sequence may be left.
TEST(Dropping, ClearForgetsEverything) {
  for (const PolicyKind kind : kDropping) {
    Simulation used(small_settings(kind));
    run(used, kPrompt, 6);
    used.index->replaced(0, used.index->num_rows());
    used.num_rows = 0;
    used.queries.clear();
    used.rng.seed(7);
    Simulation fresh(small_settings(kind));
    fresh.rng.seed(7);
    EXPECT_EQ(run(used, kPrompt, 6), run(fresh, kPrompt, 6)) << policy_name(kind);
  }
}

// The tail is removed and other tokens are written there.
TEST(Dropping, RowsWrittenAgainAreNewTokens) {
  for (const PolicyKind kind : kDropping) {
    Simulation s(small_settings(kind));
    run(s, kPrompt, 6);
    s.num_rows -= 12;
    for (int64_t i = 0; i < 8; ++i) {
      s.decode();
      for (const float x : s.out) ASSERT_TRUE(std::isfinite(x));
    }
    // The newest rows are forced, so this token's own value counts: it changes the output.
    const std::vector<float> before = s.out;
    for (int64_t d = 0; d < kValueDim; ++d) store_value(DType::kF16, s.v.at(s.num_rows - 1, 0), d, 50.0F);
    find_policy(kind).decode(s.context, s.settings, s.step());
    EXPECT_GT(std::abs(s.out[0] - before[0]), 0.1F) << policy_name(kind);
  }
}

// Without a prompt that was seen (a loaded state), nothing is dropped until a window of queries was decoded.
TEST(Dropping, WaitsForAWindowOfQueries) {
  for (const PolicyKind kind : kDropping) {
    Simulation s(small_settings(kind));
    for (int64_t i = 0; i < kPrompt; ++i) s.next_token();
    for (size_t i = 0; i < kWindow; ++i) {
      const DecodeReport report = s.decode();
      EXPECT_EQ(report.kv_bytes, kKvHeads * s.num_rows * kRowBytes) << policy_name(kind);
      const std::vector<float> ours = s.out;
      s.decode_full_again();
      for (size_t j = 0; j < ours.size(); ++j) ASSERT_NEAR(ours[j], s.out[j], 2e-5) << policy_name(kind);
    }
    s.decode();
    EXPECT_LE(s.decode().kv_bytes, kKvHeads * 40 * (kRowBytes + kDim * 2 + kValueDim * 2)) << policy_name(kind);
  }
}

// A merged row is rotated with the cache; what was merged would be wrong then.
TEST(Dropping, ZeroMergeStartsOverWhenKeysAreRotated) {
  Simulation s(small_settings(PolicyKind::kZeroMerge));
  run(s, kPrompt, 3);
  s.index->invalidate(0, s.index->num_rows());
  s.decode();
  const std::vector<float> ours = s.out;
  s.decode_full_again();
  for (size_t i = 0; i < ours.size(); ++i) ASSERT_NEAR(ours[i], s.out[i], 2e-5);
}

}  // namespace
}  // namespace fasa
