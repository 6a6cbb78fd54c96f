// A layer with one sequence for tests of policies: random keys, values and queries, a prompt whose queries are shown to
// the policy, then decode steps; and the attention that a scalar reading of a paper asks for.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "src/core/dtype.h"
#include "src/policy/decode_step.h"

namespace fasa::test {

using Rows = std::vector<int32_t>;  // ascending

struct Simulation {
  static constexpr int64_t kHeads = 6, kKvHeads = 2, kGroup = 3, kDim = 32, kValueDim = 16;

  explicit Simulation(const PolicySettings& policy_settings, int64_t capacity = 400, uint32_t seed = 1)
      : settings(policy_settings),
        k_bytes(static_cast<size_t>(capacity * kKvHeads * kDim * 2)),
        v_bytes(static_cast<size_t>(capacity * kKvHeads * kValueDim * 2)),
        rng(seed) {
    k = {k_bytes.data(), DType::kF16, capacity, kKvHeads, kDim, kKvHeads * kDim * 2, kDim * 2};
    v = {v_bytes.data(), DType::kF16, capacity, kKvHeads, kValueDim, kKvHeads * kValueDim * 2, kValueDim * 2};
    profile.num_q_heads = kHeads;
    profile.num_kv_heads = kKvHeads;
    profile.rope = {RopeLayout::kHalf, kDim, kDim, 10000.0};
    profile.measures["energy"] = uniform(kHeads * kDim / 2);
    profile.channels["abs_qk"] = uniform(kHeads * kDim);
    for (const char* name : {"pca_pre", "pca_post"}) profile.bases[name] = normal_values(kKvHeads * kDim / 2 * kDim);
    const Policy& policy = find_policy(settings.kind);
    IndexContent content;
    if (policy.index != nullptr) content = policy.index(profile, settings);
    content.shape.num_rows = capacity;
    index = std::make_unique<LayerIndex>(
        content, policy.make_state == nullptr ? nullptr : policy.make_state(profile, capacity, settings));
  }

  std::vector<float> uniform(int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& x : values) x = std::uniform_real_distribution<float>(0.0F, 1.0F)(rng);
    return values;
  }
  std::vector<float> normal_values(int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& x : values) x = std::normal_distribution<float>()(rng);
    return values;
  }

  void write(int64_t row) {
    for (int64_t g = 0; g < kKvHeads; ++g) {
      for (int64_t d = 0; d < kDim; ++d) store_value(DType::kF16, k.at(row, g), d, normal_values(1)[0]);
      for (int64_t d = 0; d < kValueDim; ++d) store_value(DType::kF16, v.at(row, g), d, normal_values(1)[0]);
    }
    const std::vector<int64_t> rows = {row};
    index->append(context, {}, rows, k);
  }
  // The next token: its key, its value and its query (the last of `queries`).
  void next_token() {
    write(num_rows++);
    queries.push_back(normal_values(kHeads * kDim));
  }
  void prefill(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      next_token();
      if (index->state() != nullptr) index->state()->observe(query(), num_rows - 1);
    }
  }
  HeadsView query() { return {queries.back().data(), kHeads, kDim, kDim}; }

  DecodeStep step() {
    DecodeStep s;
    s.q = query();
    s.k = k;
    s.k.num_rows = num_rows;
    s.v = v;
    s.v.num_rows = num_rows;
    s.scale = 1.0F / std::sqrt(static_cast<float>(kDim));
    const VisibleRows visible{num_rows, num_rows, nullptr};
    index->refresh(context, k, visible);
    s.num_visible = num_rows;
    s.forced = index->forced_rows(visible, settings.sinks, forced_recent(settings));
    s.index = index->view();
    s.state = index->state();
    s.ages = index->ages();
    s.row = num_rows - 1;
    out.assign(static_cast<size_t>(kHeads * kValueDim), NAN);
    s.out = {out.data(), kHeads, kValueDim, kValueDim};
    return s;
  }
  // One decode step of the policy itself; its output stays in `out`.
  DecodeReport decode() {
    next_token();
    return find_policy(settings.kind).decode(context, settings, step());
  }
  void decode_full_again() { decode_full(context, settings, step()); }

  double key(int64_t row, int64_t g, int64_t d) const { return load_value(DType::kF16, k.at(row, g), d); }
  double value(int64_t row, int64_t g, int64_t d) const { return load_value(DType::kF16, v.at(row, g), d); }
  double dot(const float* q, int64_t row, int64_t g) const {
    double sum = 0;
    for (int64_t d = 0; d < kDim; ++d) sum += static_cast<double>(q[d]) * key(row, g, d);
    return sum;
  }
  const float* head(int64_t h, size_t age = 0) const { return queries[queries.size() - 1 - age].data() + h * kDim; }

  // softmax(scale q . k) over `rows` for head h of the query `age` tokens ago.
  std::vector<double> weights(int64_t h, const Rows& rows, size_t age = 0) const {
    std::vector<double> p;
    for (const int32_t row : rows) p.push_back(std::exp(dot(head(h, age), row, h / kGroup) / std::sqrt(kDim)));
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& x : p) x /= sum;
    return p;
  }
  std::vector<double> attention(int64_t h, const Rows& rows) const {
    std::vector<double> result(kValueDim, 0.0);
    const std::vector<double> p = weights(h, rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      for (int64_t d = 0; d < kValueDim; ++d) result[d] += p[i] * value(rows[i], h / kGroup, d);
    }
    return result;
  }
  void expect_output(int64_t h, const std::vector<double>& wanted) const {
    for (int64_t d = 0; d < kValueDim; ++d) ASSERT_NEAR(out[h * kValueDim + d], wanted[d], 2e-5) << h << " " << d;
  }

  Rows all() const {
    Rows rows(static_cast<size_t>(num_rows));
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }
  // The forced rows and the best others of `rows` by score, `count` in all.
  Rows top(const Rows& rows, const std::vector<double>& scores, int64_t count) const {
    const auto forced = [&](int32_t row) { return row < settings.sinks || row >= num_rows - forced_recent(settings); };
    std::vector<size_t> order(rows.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, [&](size_t a, size_t b) {
      if (forced(rows[a]) != forced(rows[b])) return forced(rows[a]);
      return scores[a] > scores[b];
    });
    Rows kept;
    for (size_t i = 0; i < std::min(order.size(), static_cast<size_t>(count)); ++i) kept.push_back(rows[order[i]]);
    std::ranges::sort(kept);
    return kept;
  }
  // The output for every head, when its rows are the best by score(h, row).
  template <class Score>
  void expect_top_rows(const Score& score) const {
    for (int64_t h = 0; h < kHeads; ++h) {
      std::vector<double> scores;
      for (const int32_t row : all()) scores.push_back(score(h, row));
      expect_output(h, attention(h, top(all(), scores, settings.budget)));
    }
  }

  PolicySettings settings;
  std::vector<std::byte> k_bytes, v_bytes;
  std::mt19937 rng;
  CacheView k, v;
  LayerProfile profile;
  std::unique_ptr<LayerIndex> index;
  Context context{make_serial_executor()};
  int64_t num_rows = 0;
  std::vector<std::vector<float>> queries;
  std::vector<float> out;
};

inline PolicySettings small_settings(PolicyKind kind) {
  PolicySettings settings;
  settings.kind = kind;
  settings.budget = 40;
  settings.sinks = 2;
  settings.recent = 6;
  settings.fc_count = 4;
  settings.index_type = IndexType::kF16;
  settings.page = 8;
  settings.window = 5;
  return settings;
}

}  // namespace fasa::test
