#include "src/kv/layer_index.h"

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <utility>

#include "src/ops/append/append.h"

namespace fasa {
namespace {

constexpr size_t kAlignment = 64;

std::byte* allocate_zeroed(int64_t bytes) {
  const size_t size = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
  void* data = std::aligned_alloc(kAlignment, std::max(size, kAlignment));
  if (data == nullptr) throw std::bad_alloc();
  std::memset(data, 0, std::max(size, kAlignment));
  return static_cast<std::byte*>(data);
}

bool is_visible(const VisibleRows& visible, int64_t row) { return visible.mask == nullptr || visible.mask[row] != 0; }

}  // namespace

void LayerIndex::Free::operator()(std::byte* data) const { std::free(data); }

LayerIndex::LayerIndex(IndexContent content, std::unique_ptr<RowState> state, int64_t first_scored)
    : content_(std::move(content)),
      state_(std::move(state)),
      data_(allocate_zeroed(content_.shape.total_bytes())),
      valid_(static_cast<size_t>(num_rows()), 0),
      stamps_(static_cast<size_t>(num_rows())),
      last_stamp_(static_cast<uint32_t>(num_rows())),
      first_scored_(first_scored),
      ordered_prefix_(num_rows()) {
  std::iota(stamps_.begin(), stamps_.end(), 1U);
  assert(!content_.basis.empty() ||
         static_cast<int64_t>(content_.dims.size()) == content_.shape.num_planes * content_.shape.num_fcs * 2);
  visible_rows_.reserve(static_cast<size_t>(num_rows()));
}

IndexView LayerIndex::view() const {
  IndexView view;
  view.shape = content_.shape;
  if (content_.shape.num_planes == 0) return view;
  view.data = data_.get();
  view.dims = content_.dims.data();
  if (!content_.basis.empty()) view.basis = content_.basis.data();
  if (!content_.weights.empty()) view.weights = content_.weights.data();
  return view;
}

void LayerIndex::stamp(int64_t row) {
  if (last_stamp_ == std::numeric_limits<uint32_t>::max()) {
    // Renumber once in four billion writes: equal order, small numbers.
    std::vector<int64_t> rows(stamps_.size());
    std::iota(rows.begin(), rows.end(), 0);
    std::ranges::sort(rows, {}, [&](int64_t i) { return stamps_[i]; });
    last_stamp_ = 0;
    for (const int64_t i : rows) stamps_[i] = ++last_stamp_;
  }
  stamps_[row] = ++last_stamp_;
  if (row <= ordered_prefix_) ordered_prefix_ = row + 1;
}

void LayerIndex::append(Context& context, const CacheView& src, std::span<const int64_t> rows, const CacheView& cache) {
  const bool due = std::ranges::any_of(rows, [&](int64_t row) { return row >= first_scored_; });
  ops::append(context, {.src = src, .rows = rows, .cache = cache, .index = due ? view() : IndexView{}});
  for (const int64_t row : rows) {
    valid_[row] = due ? 1 : 0;
    if (!due) valid_prefix_ = std::min(valid_prefix_, row);
    stamp(row);
    if (state_ != nullptr) state_->replaced(row, 1);
  }
  while (valid_prefix_ < num_rows() && valid_[valid_prefix_] != 0) ++valid_prefix_;
}

void LayerIndex::forget(int64_t first, int64_t count) {
  if (count <= 0) return;
  std::fill_n(valid_.begin() + first, count, uint8_t{0});
  valid_prefix_ = std::min(valid_prefix_, first);
}

void LayerIndex::invalidate(int64_t first, int64_t count) {
  forget(first, count);
  if (state_ != nullptr) state_->shifted(first, count);
}

void LayerIndex::replaced(int64_t first, int64_t count) {
  forget(first, count);
  if (state_ != nullptr) state_->replaced(first, count);
  for (int64_t row = first; row < first + count; ++row) stamp(row);
}

int64_t LayerIndex::refresh(Context& context, const CacheView& cache, const VisibleRows& visible) {
  assert(visible.num_rows <= num_rows());
  first_scored_ = 0;
  if (visible.mask == nullptr && visible.num_rows <= valid_prefix_) return 0;
  rebuild_.clear();
  for (int64_t row = 0; row < visible.num_rows; ++row) {
    if (valid_[row] == 0 && is_visible(visible, row)) rebuild_.push_back(row);
  }
  if (rebuild_.empty()) return 0;
  ops::append(context, {.src = {}, .rows = rebuild_, .cache = cache, .index = view()});
  for (const int64_t row : rebuild_) {
    valid_[row] = 1;
  }
  while (valid_prefix_ < num_rows() && valid_[valid_prefix_] != 0) ++valid_prefix_;
  return static_cast<int64_t>(rebuild_.size());
}

bool LayerIndex::in_age_order(const VisibleRows& visible) const {
  return visible.mask == nullptr && visible.num_rows <= ordered_prefix_;
}

std::span<const int32_t> LayerIndex::forced_rows(const VisibleRows& visible, int64_t sinks, int64_t recent) {
  forced_.clear();
  const int64_t n = visible.num_visible;
  if (sinks + recent <= 0) return {};
  if (in_age_order(visible)) {
    const int64_t oldest = std::min(sinks, n);
    for (int64_t i = 0; i < oldest; ++i) forced_.push_back(static_cast<int32_t>(i));
    for (int64_t i = std::max(oldest, n - recent); i < n; ++i) {
      forced_.push_back(static_cast<int32_t>(i));
    }
    return forced_;
  }
  visible_rows_.clear();
  for (int64_t row = 0; row < visible.num_rows; ++row) {
    if (is_visible(visible, row)) visible_rows_.push_back(static_cast<int32_t>(row));
  }
  const auto older = [&](int32_t a, int32_t b) { return stamps_[a] < stamps_[b]; };
  const auto begin = visible_rows_.begin();
  const auto end = visible_rows_.end();
  if (sinks + recent >= n) {
    forced_.assign(begin, end);
    return forced_;
  }
  const auto after_sinks = begin + sinks;
  std::nth_element(begin, after_sinks, end, older);
  const auto first_recent = end - recent;
  if (recent > 0) std::nth_element(after_sinks, first_recent, end, older);
  forced_.assign(begin, after_sinks);
  forced_.insert(forced_.end(), first_recent, end);
  std::ranges::sort(forced_);
  return forced_;
}

int64_t LayerIndex::newest_row(const VisibleRows& visible) const {
  if (in_age_order(visible)) return visible.num_rows - 1;
  int64_t newest = -1;
  for (int64_t row = 0; row < visible.num_rows; ++row) {
    if (is_visible(visible, row) && (newest < 0 || stamps_[row] > stamps_[newest])) newest = row;
  }
  return newest;
}

int64_t LayerIndex::count_stale_rows(Context& context, const CacheView& cache) const {
  const IndexShape& shape = content_.shape;
  int64_t stale = state_ == nullptr ? 0 : state_->count_stale(cache);
  if (shape.num_planes == 0) return stale;
  LayerIndex fresh(content_);
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < num_rows(); ++row) {
    if (is_valid(row)) rows.push_back(row);
  }
  if (rows.empty()) return stale;
  ops::append(context, {.src = {}, .rows = rows, .cache = cache, .index = fresh.view()});
  const int64_t value_bytes = shape.fc_bytes() / kIndexBlock;  // both dims of a row
  const bool scaled = shape.type != IndexType::kF16;
  for (const int64_t row : rows) {
    bool same = true;
    for (int64_t plane = 0; plane < shape.num_planes; ++plane) {
      const std::byte* mine = view().block(plane, row / kIndexBlock);
      const std::byte* theirs = fresh.view().block(plane, row / kIndexBlock);
      const int64_t in_block = row % kIndexBlock;
      for (int64_t fc = 0; fc < shape.num_fcs; ++fc) {
        const int64_t at = fc * shape.fc_bytes() + in_block * value_bytes;
        same &= std::memcmp(mine + at, theirs + at, static_cast<size_t>(value_bytes)) == 0;
      }
      const int64_t scale_at = shape.num_fcs * shape.fc_bytes() + in_block * 2;
      if (scaled) same &= std::memcmp(mine + scale_at, theirs + scale_at, 2) == 0;
    }
    stale += same ? 0 : 1;
  }
  return stale;
}

int64_t LayerIndex::memory_bytes() const {
  return content_.shape.total_bytes() + (state_ == nullptr ? 0 : state_->memory_bytes()) +
         static_cast<int64_t>(content_.dims.size() * sizeof(int16_t) +
                              (content_.basis.size() + content_.weights.size()) * sizeof(float)) +
         num_rows() * static_cast<int64_t>(sizeof(uint8_t) + sizeof(uint32_t)) +
         static_cast<int64_t>(rebuild_.capacity() * sizeof(int64_t) +
                              (visible_rows_.capacity() + forced_.capacity()) * sizeof(int32_t));
}

}  // namespace fasa
