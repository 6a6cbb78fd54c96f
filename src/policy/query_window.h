// The last queries of one stream, kept to see what they attend to (observation window of SnapKV, probes of ActQKV).
#pragma once

#include <cstdint>
#include <vector>

#include "src/policy/decode_step.h"

namespace fasa {

class QueryWindow {
 public:
  QueryWindow(int64_t capacity, int64_t num_heads, int64_t head_dim);

  // `row` holds the query's own token.
  void push(const HeadsView& q, int64_t row);
  // Rows that hold other tokens now: their queries are gone.
  void forget(int64_t first, int64_t count);
  void clear();

  int64_t capacity() const { return static_cast<int64_t>(rows_.size()); }
  // Calls f(q, row) for the queries whose token `step` sees, newest first; returns how many there are.
  template <class F>
  int64_t for_each_seen(const DecodeStep& step, F&& f) {
    int64_t seen = 0;
    for (int64_t age = 1; age <= capacity(); ++age) {
      const int64_t at = (next_ + capacity() - age) % capacity();
      if (rows_[at] < 0 || !step.sees(rows_[at])) continue;
      ++seen;
      f(HeadsView{queries_.data() + at * num_heads_ * head_dim_, num_heads_, head_dim_, head_dim_}, rows_[at]);
    }
    return seen;
  }
  int64_t count_seen(const DecodeStep& step) {
    return for_each_seen(step, [](const HeadsView&, int64_t) {});
  }
  int64_t memory_bytes() const;

 private:
  int64_t num_heads_, head_dim_;
  int64_t next_ = 0;
  std::vector<float> queries_;  // [capacity][num_heads][head_dim]
  std::vector<int64_t> rows_;   // [capacity], -1: none
};

// sums[g * sets.stride + i] = sum over the window's queries and the query heads of KV head g of the attention (softmax
// over the set's rows, causal by age) to rows[g * sets.stride + i]; sets are KV heads. Returns the bytes of K read.
int64_t window_attention(Context& context, const DecodeStep& step, QueryWindow& window, const RowSets& sets,
                         float* sums);

}  // namespace fasa
