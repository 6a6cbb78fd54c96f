// Pages: runs of `page` physical rows, each with a summary of its keys, by which pages are chosen whole.
#pragma once

#include <cstdint>
#include <vector>

#include "src/kv/row_state.h"
#include "src/policy/decode_step.h"

namespace fasa {

struct PageShape {
  int64_t num_rows = 0;
  int64_t num_kv_heads = 0;
  int64_t page = 0;
  int64_t width = 0;  // values of a summary
};

// A page is summarised again when one of its rows was written, or a query sees more of it. Rows that are not visible
// (another sequence's, removed ones) stay in until they are overwritten.
class PageState : public RowState {
 public:
  explicit PageState(const PageShape& shape);

  void replaced(int64_t first, int64_t count) override;
  void shifted(int64_t first, int64_t count) override { replaced(first, count); }
  int64_t count_stale(const CacheView& k) const override;
  int64_t memory_bytes() const override;

  // Summarises what has to be; returns the bytes of K read for it.
  int64_t update(const DecodeStep& step);
  // [pages that hold rows 0..num_rows-1, num_kv_heads, width] f16
  CacheView summaries(int64_t num_rows);
  int64_t page() const { return shape_.page; }

 protected:
  // The summary of rows first..last-1 of one KV head. [width]
  virtual void summarise(const CacheView& k, int64_t kv_head, int64_t first, int64_t last, float* out) const = 0;

 private:
  void store(const CacheView& k, int64_t p, int64_t last, std::vector<uint16_t>& to) const;

  PageShape shape_;
  std::vector<uint16_t> summaries_;  // f16 [pages][num_kv_heads][width]
  std::vector<int64_t> covered_;     // [pages] rows of the page in its summary; 0: none
  mutable std::vector<float> work_;  // [width]
};

// Chooses rows by the scores of their pages, q . summary (q: [num_q_heads, width]), and attends to them.
DecodeReport attend_pages(Context& context, const PolicySettings& settings, const DecodeStep& step, PageState& state,
                          const HeadsView& q);

}  // namespace fasa
