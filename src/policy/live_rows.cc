#include "src/policy/live_rows.h"

#include <algorithm>
#include <cmath>

#include "src/core/scratch_slots.h"
#include "src/ops/select/select.h"

namespace fasa {

LiveRows::LiveRows(const LiveShape& shape)
    : shape_(shape),
      window_(shape.window, shape.num_q_heads, shape.head_dim),
      lists_(static_cast<size_t>(shape.num_kv_heads)),
      known_(static_cast<size_t>(shape.num_rows), 0),
      mass_(static_cast<size_t>(shape.accumulates ? shape.num_kv_heads * shape.num_rows : 0), 0.0F) {
  for (auto& list : lists_) list.reserve(static_cast<size_t>(shape.num_rows));
  lost_.reserve(static_cast<size_t>(shape.num_rows));
  forced_.reserve(static_cast<size_t>(shape.num_rows));
}

void LiveRows::replaced(int64_t first, int64_t count) {
  window_.forget(first, count);
  for (int64_t row = first; row < first + count; ++row) {
    if (known_[row] == 0) continue;
    overwritten(row);
    known_[row] = 0;
  }
  for (int64_t g = 0; g < shape_.num_kv_heads; ++g) {
    auto& list = lists_[g];
    const auto begin = std::ranges::lower_bound(list, first);
    list.erase(begin, std::lower_bound(begin, list.end(), first + count));
    if (shape_.accumulates) std::fill_n(mass(g) + first, count, 0.0F);
  }
  known_prefix_ = std::min(known_prefix_, first);
}

void LiveRows::shifted(int64_t /*first*/, int64_t /*count*/) {
  window_.clear();  // the queries stand at the old positions
}

void LiveRows::restart() {
  for (auto& list : lists_) list.clear();
  std::ranges::fill(known_, uint8_t{0});
  std::ranges::fill(mass_, 0.0F);
  known_prefix_ = 0;
}

int64_t LiveRows::memory_bytes() const {
  int64_t lists = 0;
  for (const auto& list : lists_) lists += static_cast<int64_t>(list.capacity() * sizeof(int32_t));
  return lists + window_.memory_bytes() +
         static_cast<int64_t>(known_.capacity() + mass_.capacity() * sizeof(float) +
                              (lost_.capacity() + forced_.capacity()) * sizeof(int32_t));
}

void LiveRows::take_in(const DecodeStep& step) {
  int64_t taken = 0;
  for (int64_t row = known_prefix_; row < step.k.num_rows; ++row) {
    if (known_[row] != 0 || !step.sees(row)) continue;
    known_[row] = 1;
    ++taken;
    for (auto& list : lists_) {
      const auto id = static_cast<int32_t>(row);
      if (list.empty() || list.back() < id) {
        list.push_back(id);
      } else {
        list.insert(std::ranges::lower_bound(list, id), id);
      }
    }
  }
  while (known_prefix_ < shape_.num_rows && known_[known_prefix_] != 0) ++known_prefix_;
  unweighed_ |= taken > 1;
}

RowSets LiveRows::visible(Context& context, const DecodeStep& step) const {
  size_t longest = 1;
  for (const auto& list : lists_) longest = std::max(longest, list.size());
  const int64_t num_sets = shape_.num_kv_heads;
  auto* counts = static_cast<int64_t*>(
      context.shared_scratch(kSlotRows, static_cast<size_t>(num_sets) * (sizeof(int64_t) + longest * sizeof(int32_t))));
  auto* rows = reinterpret_cast<int32_t*>(counts + num_sets);
  const auto stride = static_cast<int64_t>(longest);
  for (int64_t g = 0; g < num_sets; ++g) {
    int32_t* to = rows + g * stride;
    const auto end = std::ranges::copy_if(lists_[g], to, [&](int32_t row) { return step.sees(row); }).out;
    counts[g] = end - to;
  }
  return {rows, stride, counts, num_sets};
}

int64_t LiveRows::evict(Context& context, const PolicySettings& settings, const DecodeStep& step, const RowSets& live) {
  auto* ranks = static_cast<float*>(
      context.shared_scratch(kSlotScores, static_cast<size_t>(live.num_sets * live.stride) * sizeof(float)));
  const int64_t read = rank(context, settings, step, live, ranks);
  auto* kept = static_cast<int32_t*>(
      context.shared_scratch(kSlotPolicy, static_cast<size_t>(target(settings)) * sizeof(int32_t)));
  for (int64_t g = 0; g < live.num_sets; ++g) {
    const std::span<const int32_t> rows(live.rows + g * live.stride, static_cast<size_t>(live.counts[g]));
    forced_.clear();
    for (const int32_t row : step.forced) {
      const auto at = std::ranges::lower_bound(rows, row);
      if (at != rows.end() && *at == row) forced_.push_back(static_cast<int32_t>(at - rows.begin()));
    }
    int64_t count = 0;
    ops::select(context, {.scores = ranks + g * live.stride,
                          .scores_stride = live.stride,
                          .num_sets = 1,
                          .num_rows = live.counts[g],
                          .budget = target(settings),
                          .forced = forced_,
                          .rows = kept,
                          .num_kept = &count});
    keep(settings, step, g, rows, {kept, static_cast<size_t>(count)});
  }
  return read;
}

int64_t LiveRows::rank_by_mass(Context& context, const DecodeStep& step, const RowSets& live, float* ranks) {
  int64_t read = 0;
  if (unweighed_) {
    read = window_attention(context, step, window_, live, ranks);
    for (int64_t g = 0; g < live.num_sets; ++g) {
      for (int64_t i = 0; i < live.counts[g]; ++i) {
        mass(g)[live.rows[g * live.stride + i]] += ranks[g * live.stride + i];
      }
    }
    unweighed_ = false;
  }
  for (int64_t g = 0; g < live.num_sets; ++g) {
    for (int64_t i = 0; i < live.counts[g]; ++i) {
      ranks[g * live.stride + i] = mass(g)[live.rows[g * live.stride + i]];
    }
  }
  return read;
}

void LiveRows::keep(const PolicySettings& settings, const DecodeStep& step, int64_t kv_head,
                    std::span<const int32_t> live, std::span<const int32_t> kept) {
  lost_.clear();
  size_t next = 0;
  for (size_t i = 0; i < live.size(); ++i) {
    if (next < kept.size() && kept[next] == static_cast<int32_t>(i)) {
      ++next;
    } else {
      lost_.push_back(live[i]);
    }
  }
  auto& list = lists_[kv_head];
  const auto end = std::ranges::set_difference(list, lost_, list.begin()).out;
  list.erase(end, list.end());
  dropped(settings, step, kv_head, lost_);
}

void LiveRows::accumulate(const RowSets& live, const float* logits, const float* lse) {
  const int64_t group = shape_.num_q_heads / shape_.num_kv_heads;
  for (int64_t g = 0; g < live.num_sets; ++g) {
    for (int64_t i = 0; i < live.counts[g]; ++i) {
      float& sum = mass(g)[live.rows[g * live.stride + i]];
      sum *= shape_.decay;
      for (int64_t h = g * group; h < (g + 1) * group; ++h) sum += std::exp(logits[h * live.stride + i] - lse[h]);
    }
  }
}

DecodeReport LiveRows::decode(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  if (!holds(step)) restart();
  take_in(step);
  RowSets live = visible(context, step);
  int64_t ranked = 0;
  // Nothing is dropped before a whole window of queries was seen.
  const int64_t most = *std::max_element(live.counts, live.counts + live.num_sets);
  if (most > limit(settings) && window_.count_seen(step) == window_.capacity()) {
    ranked = evict(context, settings, step, live);
    live = visible(context, step);
  }
  const int64_t heads = shape_.num_q_heads;
  auto* lse = static_cast<float*>(
      context.shared_scratch(kSlotObserve, static_cast<size_t>(heads * (1 + live.stride)) * sizeof(float)));
  float* logits = shape_.accumulates ? lse + heads : nullptr;
  DecodeReport report = attend_rows(context, step, live, {.lse = lse, .logits = logits});
  finish(context, step, lse, report);
  if (shape_.accumulates) accumulate(live, logits, lse);
  window_.push(step.q, step.row);
  report.kv_bytes += ranked;
  for (int64_t g = 0; g < live.num_sets; ++g) {
    report.index_bytes +=
        live.counts[g] * static_cast<int64_t>(sizeof(int32_t) + (shape_.accumulates ? sizeof(float) : 0));
  }
  return report;
}

DecodeReport decode_evicting(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  return static_cast<LiveRows&>(*step.state).decode(context, settings, step);
}

}  // namespace fasa
