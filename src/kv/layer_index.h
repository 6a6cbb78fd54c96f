// The index of one layer's K cache (one stream of it), what of it is valid, and how old its rows
// are.
//
// A row is valid while its index bytes follow from the K cache. Rows are aged by the order in which
// they were written, which is the order of positions in a sequence; physical rows are in no
// particular order.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fasa/context.h"
#include "fasa/index.h"
#include "fasa/tensor.h"
#include "src/kv/row_state.h"

namespace fasa {

// The rows that a query may see: rows 0..num_rows-1, of them those with mask[row] != 0.
struct VisibleRows {
  int64_t num_rows = 0;
  int64_t num_visible = 0;
  const uint8_t* mask = nullptr;  // [num_rows], or null: every one of them is visible
};

// What an index holds; the fields are IndexView's.
struct IndexContent {
  IndexShape shape;  // num_planes 0: no index, only the age of rows is kept
  std::vector<int16_t> dims;
  std::vector<float> basis;
  std::vector<float> weights;
};

class LayerIndex {
 public:
  // `state` (or null) is told what happens to the rows. Until the first refresh, rows below `first_scored` get no index:
  // while a context is that short, nothing reads it.
  explicit LayerIndex(IndexContent content, std::unique_ptr<RowState> state = nullptr, int64_t first_scored = 0);

  // cache[rows[i]] = src[i], with the index rows where they are due; the rows become the newest, in the order given.
  // src.data null: the caller wrote the cache already.
  void append(Context& context, const CacheView& src, std::span<const int64_t> rows, const CacheView& cache);

  // The K of rows first..first+count-1 was changed in place; they keep their age.
  void invalidate(int64_t first, int64_t count);
  // They were replaced by something else (state load, copy): they become the newest, in row order.
  void replaced(int64_t first, int64_t count);

  // Makes every visible row valid. Returns how many index rows were rebuilt. O(1) for a prefix of rows
  // with nothing to do.
  int64_t refresh(Context& context, const CacheView& cache, const VisibleRows& visible);

  // The `sinks` oldest and the `recent` newest visible rows, ascending and distinct; call refresh
  // first. The span lives until the next call.
  std::span<const int32_t> forced_rows(const VisibleRows& visible, int64_t sinks, int64_t recent);

  // The newest visible row, or -1.
  int64_t newest_row(const VisibleRows& visible) const;

  // Valid rows whose index bytes differ from what K gives: 0, unless there is a bug.
  int64_t count_stale_rows(Context& context, const CacheView& cache) const;

  IndexView view() const;  // data null: no index
  RowState* state() const { return state_.get(); }
  // [num_rows], greater is newer.
  const uint32_t* ages() const { return stamps_.data(); }
  int64_t num_rows() const { return content_.shape.num_rows; }
  bool is_valid(int64_t row) const { return valid_[row] != 0; }
  int64_t memory_bytes() const;

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };

  void stamp(int64_t row);
  void forget(int64_t first, int64_t count);
  bool in_age_order(const VisibleRows& visible) const;

  IndexContent content_;
  std::unique_ptr<RowState> state_;
  std::unique_ptr<std::byte, Free> data_;
  std::vector<uint8_t> valid_;
  std::vector<uint32_t> stamps_;  // distinct; at first in row order
  uint32_t last_stamp_ = 0;
  int64_t first_scored_;        // 0 from the first refresh on
  int64_t valid_prefix_ = 0;    // rows 0..valid_prefix_-1 are all valid
  int64_t ordered_prefix_ = 0;  // rows 0..ordered_prefix_-1 have ascending stamps
  std::vector<int64_t> rebuild_;
  std::vector<int32_t> visible_rows_;
  std::vector<int32_t> forced_;
};

}  // namespace fasa
