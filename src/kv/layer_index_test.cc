// LayerIndex against a model that remembers everything: the keys, and when each row was written.
#include "src/kv/layer_index.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "src/core/dtype.h"

namespace fasa {
namespace {

constexpr int64_t kRows = 70;  // two blocks and a cut one
constexpr int64_t kHeadDim = 8;

// One KV head of f32 keys with its index, and beside it the plain record.
struct Cache {
  explicit Cache(int64_t first_scored = 0)
      : index({.shape = {IndexType::kI8, 1, 2, kRows}, .dims = {0, 4, 1, 5}, .basis = {}, .weights = {}}, nullptr,
              first_scored) {
    std::iota(age.begin(), age.end(), 0);
  }

  CacheView view() { return {keys.data(), DType::kF32, kRows, 1, kHeadDim, kHeadDim * 4, kHeadDim * 4}; }

  void write(const std::vector<int64_t>& rows) {
    std::vector<float> source(rows.size() * kHeadDim);
    for (float& x : source) x = next_value();
    const CacheView src = {reinterpret_cast<std::byte*>(source.data()),
                           DType::kF32,
                           static_cast<int64_t>(rows.size()),
                           1,
                           kHeadDim,
                           kHeadDim * 4,
                           kHeadDim * 4};
    index.append(context, src, rows, view());
    for (const int64_t row : rows) age[row] = ++clock;
  }
  // K changed in place (a shift) or was replaced (a state load).
  void overwrite(int64_t first, int64_t count, bool replace) {
    for (int64_t row = first; row < first + count; ++row)
      for (int64_t d = 0; d < kHeadDim; ++d)
        store_value(DType::kF32, keys.data() + row * kHeadDim * 4, d, next_value());
    if (!replace) return index.invalidate(first, count);
    index.replaced(first, count);
    for (int64_t row = first; row < first + count; ++row) age[row] = ++clock;
  }
  float next_value() { return static_cast<float>((value = value * 1103515245U + 12345U) >> 8) / 1e6F - 8; }

  Context context{make_serial_executor()};
  LayerIndex index;
  alignas(64) std::array<std::byte, kRows * kHeadDim * 4> keys{};
  std::array<int64_t, kRows> age{};
  int64_t clock = kRows;
  uint32_t value = 1;
};

// The visible rows from the oldest to the newest.
std::vector<int32_t> by_age(const Cache& cache, const VisibleRows& visible) {
  std::vector<int32_t> rows;
  for (int64_t row = 0; row < visible.num_rows; ++row)
    if (visible.mask == nullptr || visible.mask[row] != 0) rows.push_back(static_cast<int32_t>(row));
  std::ranges::sort(rows, {}, [&](int32_t row) { return cache.age[row]; });
  return rows;
}

void expect_right(Cache& cache, const VisibleRows& visible, int64_t sinks, int64_t recent) {
  cache.index.refresh(cache.context, cache.view(), visible);
  std::vector<int32_t> expected = by_age(cache, visible);
  for (const int32_t row : expected) RC_ASSERT(cache.index.is_valid(row));
  RC_ASSERT(cache.index.count_stale_rows(cache.context, cache.view()) == 0);
  RC_ASSERT(cache.index.newest_row(visible) == (expected.empty() ? -1 : expected.back()));
  const auto n = static_cast<int64_t>(expected.size());
  if (sinks + recent < n) expected.erase(expected.begin() + sinks, expected.end() - recent);
  if (sinks + recent == 0) expected.clear();
  std::ranges::sort(expected);
  const auto forced = cache.index.forced_rows(visible, sinks, recent);
  RC_ASSERT(std::vector<int32_t>(forced.begin(), forced.end()) == expected);
}

RC_GTEST_PROP(LayerIndex, AgesAndValidityFollowEveryChange, ()) {
  Cache cache(*rc::gen::inRange<int64_t>(0, kRows + 1));
  const auto steps = *rc::gen::inRange(1, 12);
  for (int step = 0; step < steps; ++step) {
    const auto first = *rc::gen::inRange<int64_t>(0, kRows);
    const auto count = *rc::gen::inRange<int64_t>(1, kRows - first + 1);
    switch (*rc::gen::inRange(0, 4)) {
      case 0: {  // a run of rows, as a prompt or a token takes them
        std::vector<int64_t> rows(static_cast<size_t>(count));
        std::iota(rows.begin(), rows.end(), first);
        cache.write(rows);
        break;
      }
      case 1:  // holes that removal left, in any order
        cache.write(*rc::gen::unique<std::vector<int64_t>>(rc::gen::inRange<int64_t>(0, kRows)));
        break;
      case 2:
        cache.overwrite(first, count, false);
        break;
      default:
        cache.overwrite(first, count, true);
    }
    if (step + 1 < steps && *rc::gen::arbitrary<bool>()) continue;  // several changes before one look
    std::vector<uint8_t> mask(kRows);
    int64_t visible_count = 0;
    for (uint8_t& m : mask) visible_count += m = *rc::gen::inRange<uint8_t>(0, 2);
    const auto sinks = *rc::gen::inRange<int64_t>(0, 6);
    const auto recent = *rc::gen::inRange<int64_t>(0, 20);
    expect_right(cache, {kRows, visible_count, mask.data()}, sinks, recent);
    const auto prefix = *rc::gen::inRange<int64_t>(0, kRows + 1);
    expect_right(cache, {prefix, prefix, nullptr}, sinks, recent);
  }
}

TEST(LayerIndex, OnlyChangedRowsAreRebuilt) {
  Cache cache;
  std::vector<int64_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  cache.write(rows);
  const VisibleRows all = {kRows, kRows, nullptr};
  EXPECT_EQ(cache.index.refresh(cache.context, cache.view(), all), 0);
  cache.overwrite(10, 3, false);
  EXPECT_EQ(cache.index.refresh(cache.context, cache.view(), all), 3);
  EXPECT_EQ(cache.index.refresh(cache.context, cache.view(), all), 0);
}

TEST(LayerIndex, RowsThatNothingScoresYetAreIndexedOnce) {
  constexpr int64_t kFirstScored = 40;
  Cache cache(kFirstScored);
  std::vector<int64_t> rows(kFirstScored);
  std::iota(rows.begin(), rows.end(), 0);
  cache.write(rows);
  EXPECT_FALSE(cache.index.is_valid(0));
  cache.write({kFirstScored});
  EXPECT_TRUE(cache.index.is_valid(kFirstScored));
  const VisibleRows all = {kFirstScored + 1, kFirstScored + 1, nullptr};
  EXPECT_EQ(cache.index.refresh(cache.context, cache.view(), all), kFirstScored);
  cache.write({3});
  EXPECT_TRUE(cache.index.is_valid(3)) << "from the first refresh on every write is indexed";
  EXPECT_EQ(cache.index.count_stale_rows(cache.context, cache.view()), 0);
}

TEST(LayerIndex, RowsOfARunThatReachesFurtherStayRight) {
  Cache cache(40);
  std::vector<int64_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  cache.write(rows);  // reaches beyond row 40: indexed
  cache.write({5});   // not due
  EXPECT_EQ(cache.index.refresh(cache.context, cache.view(), {kRows, kRows, nullptr}), 1);
  EXPECT_EQ(cache.index.count_stale_rows(cache.context, cache.view()), 0);
}

TEST(LayerIndex, StaleRowsAreCounted) {
  Cache cache;
  cache.write({0, 1, 2});
  store_value(DType::kF32, cache.keys.data() + kHeadDim * 4, 4, 1000.0F);  // behind its back, in row 1
  EXPECT_EQ(cache.index.count_stale_rows(cache.context, cache.view()), 1);
}

}  // namespace
}  // namespace fasa
