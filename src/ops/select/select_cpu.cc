// select on the CPU.
//   formula   see select.h
//   mapping   a task is a set. (1) 256 strided samples give a pivot that about twice the wanted rows reach; (2) one
//             SIMD pass compresses the rows at or above it; (3) bisection over the survivors' ordered keys, a SIMD
//             count a step, finds the exact threshold; (4) survivors above it, and the first ties, go out in order
//   memory    reads the scores once (again only where the sample misled: then the pivot is lowered)
//   numerics  exact. Keys are the float's bits made monotone as int32; -0 equals +0; -inf and NaN never survive
//   cost      see select_bench; all-equal scores cost at most 32 counts over all rows, so it is always linear
//   ordering  deterministic
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "src/core/scratch_slots.h"
#include "src/ops/select/select_impl.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/select/select_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#ifndef FASA_OPS_SELECT_SELECT_CPU_TYPES
#define FASA_OPS_SELECT_SELECT_CPU_TYPES
namespace fasa::ops {

inline constexpr int64_t kSamples = 256;
inline constexpr int64_t kPadding = 64;  // CompressStore writes whole vectors
inline constexpr int32_t kNoKey = std::numeric_limits<int32_t>::min();

// Monotone in the score; kNoKey for what is never kept.
inline int32_t ordered_key(float score) {
  if (!(score > -INFINITY)) return kNoKey;
  const auto bits = std::bit_cast<int32_t>(score + 0.0F);  // -0 -> +0
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

}  // namespace fasa::ops
#endif

HWY_BEFORE_NAMESPACE();
namespace fasa::ops::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows begin..end-1 whose score is at least `pivot` (finite), ascending. Returns how many.
int64_t Survivors(const float* scores, int64_t begin, int64_t end, float pivot, int32_t* rows) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto limit = hn::Set(df, pivot);
  auto ids = hn::Iota(di, static_cast<int32_t>(begin));
  const auto step = hn::Set(di, static_cast<int32_t>(lanes));
  int64_t count = 0;
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    const auto reached = hn::RebindMask(di, hn::Ge(hn::LoadU(df, scores + i), limit));
    count += static_cast<int64_t>(hn::CompressStore(ids, reached, di, rows + count));
    ids = hn::Add(ids, step);
  }
  for (; i < end; ++i)
    if (scores[i] >= pivot) rows[count++] = static_cast<int32_t>(i);
  return count;
}

// How many of keys[0..n) are at least `limit`; keys are padded with kNoKey to whole vectors.
HWY_INLINE int64_t CountAtLeast(const int32_t* keys, int64_t n, int32_t limit) {
  const hn::ScalableTag<int32_t> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(di));
  const auto below = hn::Set(di, limit - 1);
  auto sum = hn::Zero(di);  // minus the count in each lane
  for (int64_t i = 0; i < n; i += lanes)
    sum = hn::Add(sum, hn::VecFromMask(di, hn::Gt(hn::LoadU(di, keys + i), below)));
  return -static_cast<int64_t>(hn::GetLane(hn::SumOfLanes(di, sum)));
}

// The k-th largest of n keys, 1 <= k <= how many are above kNoKey.
int32_t KthKey(const int32_t* keys, int64_t n, int64_t k) {
  int64_t low = static_cast<int64_t>(kNoKey) + 1;  // at least k keys reach it
  int64_t high = std::numeric_limits<int32_t>::max();
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (CountAtLeast(keys, n, static_cast<int32_t>(middle)) >= k) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return static_cast<int32_t>(low);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace fasa::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fasa::ops {
namespace {

HWY_EXPORT(Survivors);
HWY_EXPORT(KthKey);

// Scratch of one worker: rows and keys of the survivors, each num_rows + kPadding.
struct Workspace {
  int32_t* rows;
  int32_t* keys;
};

// A score that about `wanted` * `slack` of the rows begin..end-1 reach, by a sample; at least the
// lowest float.
float sampled_pivot(const float* scores, int64_t begin, int64_t end, int64_t wanted, double slack, int32_t* keys) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  const int64_t n = end - begin;
  if (n <= kSamples * 4) return kLowest;
  int64_t usable = 0;
  for (int64_t i = 0; i < kSamples; ++i) {
    keys[i] = ordered_key(scores[begin + i * n / kSamples]);
    usable += static_cast<int64_t>(keys[i] != kNoKey);
  }
  std::fill_n(keys + kSamples, kPadding, kNoKey);
  const double expected = static_cast<double>(wanted) * kSamples / static_cast<double>(n);
  // Three standard deviations of the sample's count, so that too few survive about once in a
  // thousand calls.
  const auto rank = static_cast<int64_t>(slack * (expected + 3.0 * std::sqrt(expected) + 2.0));
  if (rank >= usable) return kLowest;
  const int32_t key = HWY_DYNAMIC_DISPATCH(KthKey)(keys, kSamples, rank);
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7FFFFFFF));
}

// Survivors with their keys; forced rows among them get kNoKey. Returns the number of survivors;
// `*usable` counts keys.
int64_t collect(const float* scores, int64_t begin, int64_t end, float pivot, std::span<const int32_t> forced,
                const Workspace& work, int64_t* usable) {
  const int64_t count = HWY_DYNAMIC_DISPATCH(Survivors)(scores, begin, end, pivot, work.rows);
  for (int64_t i = 0; i < count; ++i) work.keys[i] = ordered_key(scores[work.rows[i]]);
  std::fill_n(work.keys + count, kPadding, kNoKey);
  *usable = count;
  const int32_t* from = work.rows;
  for (const int32_t row : forced) {
    from = std::lower_bound(from, const_cast<const int32_t*>(work.rows) + count, row);
    if (from == work.rows + count) break;
    if (*from != row) continue;
    work.keys[from - work.rows] = kNoKey;
    --*usable;
  }
  return count;
}

// Writes forced rows and the best `room` survivors in ascending order; returns how many.
int64_t merge(std::span<const int32_t> forced, const Workspace& work, int64_t count, int64_t usable, int64_t room,
              int32_t* out) {
  int32_t threshold = kNoKey + 1;
  int64_t ties = usable;  // how many keys equal to the threshold may be taken
  if (usable > room) {
    threshold = room == 0 ? std::numeric_limits<int32_t>::max() : HWY_DYNAMIC_DISPATCH(KthKey)(work.keys, count, room);
    const auto above = std::count_if(work.keys, work.keys + count, [&](int32_t key) { return key > threshold; });
    ties = room == 0 ? 0 : room - above;
  }
  int64_t kept = 0;
  size_t next = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t key = work.keys[i];
    if (key < threshold) continue;
    if (key == threshold && usable > room && ties-- <= 0) continue;
    while (next < forced.size() && forced[next] < work.rows[i]) out[kept++] = forced[next++];
    out[kept++] = work.rows[i];
  }
  while (next < forced.size()) out[kept++] = forced[next++];
  return kept;
}

int64_t select_set(const SelectArgs& args, int64_t set, const Workspace& work) {
  const float* scores = args.scores + set * args.scores_stride;
  const int64_t room = args.budget - static_cast<int64_t>(args.forced.size());
  // Forced rows at either end (sinks and the recent window) need not be scanned.
  size_t head = 0;
  size_t tail = 0;
  while (head < args.forced.size() && args.forced[head] == static_cast<int64_t>(head)) ++head;
  while (tail < args.forced.size() - head &&
         args.forced[args.forced.size() - 1 - tail] == args.num_rows - 1 - static_cast<int64_t>(tail))
    ++tail;
  const auto begin = static_cast<int64_t>(head);
  const int64_t end = args.num_rows - static_cast<int64_t>(tail);
  const auto inner = args.forced.subspan(head, args.forced.size() - head - tail);
  int64_t usable = 0;
  int64_t count = 0;
  for (double slack = 1.0;; slack *= 8.0) {
    const float pivot =
        room == 0 ? INFINITY
                  : sampled_pivot(scores, begin, end, room + static_cast<int64_t>(inner.size()), slack, work.keys);
    count = collect(scores, begin, end, pivot, inner, work, &usable);
    if (usable >= room || pivot == std::numeric_limits<float>::lowest()) break;
  }
  return merge(args.forced, work, count, usable, room, args.rows + set * args.budget);
}

}  // namespace

std::string select_cpu_supports(const SelectArgs& /*args*/) { return {}; }

void select_cpu(Context& context, const SelectArgs& args) {
  const int64_t padded = std::max(args.num_rows, kSamples) + kPadding;
  context.reserve_worker_scratch(kSlotSelect, padded * 2 * sizeof(int32_t));
  context.parallel_for(args.num_sets, [&](int64_t set, int worker) {
    auto* rows = static_cast<int32_t*>(context.worker_scratch(kSlotSelect, worker));
    args.num_kept[set] = select_set(args, set, {rows, rows + padded});
  });
}

}  // namespace fasa::ops
#endif  // HWY_ONCE
