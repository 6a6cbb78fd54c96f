// What the policies share that drop tokens: each KV head has a list of the rows that are left. When it holds more than
// the budget, the policy ranks its rows and drops the last ones.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/kv/row_state.h"
#include "src/policy/decode_step.h"
#include "src/policy/query_window.h"

namespace fasa {

struct LiveShape {
  int64_t num_rows = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;
  bool accumulates = false;  // attention weights are added to mass(), older ones times `decay` a step
  float decay = 1.0F;
};

class LiveRows : public RowState {
 public:
  explicit LiveRows(const LiveShape& shape);

  void replaced(int64_t first, int64_t count) override;
  void shifted(int64_t first, int64_t count) override;
  void observe(const HeadsView& q, int64_t row) override { window_.push(q, row); }
  int64_t memory_bytes() const override;

  DecodeReport decode(Context& context, const PolicySettings& settings, const DecodeStep& step);

  std::span<const int32_t> rows(int64_t kv_head) const { return lists_[kv_head]; }

 protected:
  // More live rows than `limit` are reduced to `target`, which is at least the forced ones and one more.
  virtual int64_t limit(const PolicySettings& settings) const { return settings.budget; }
  virtual int64_t target(const PolicySettings& settings) const { return settings.budget; }
  // Ranks the rows of `live` (a set a KV head): ranks[g * live.stride + i], higher is better. Returns the bytes read.
  virtual int64_t rank(Context& context, const PolicySettings& settings, const DecodeStep& step, const RowSets& live,
                       float* ranks) = 0;
  // These rows (ascending) of one KV head are dropped.
  virtual void dropped(const PolicySettings& /*settings*/, const DecodeStep& /*step*/, int64_t /*kv_head*/,
                       std::span<const int32_t> /*rows*/) {}
  // After attention over live rows; `lse` [num_q_heads] may be changed with step.out. Adds what it reads to `report`.
  virtual void finish(Context& /*context*/, const DecodeStep& /*step*/, float* /*lse*/, DecodeReport& /*report*/) {}
  // Whether what was dropped can still be left out; if not, everything starts over.
  virtual bool holds(const DecodeStep& /*step*/) const { return true; }
  // A row that had been taken in was overwritten.
  virtual void overwritten(int64_t /*row*/) {}
  virtual void restart();

  // [num_rows] sums of the attention weights of the group's heads.
  float* mass(int64_t kv_head) { return mass_.data() + kv_head * shape_.num_rows; }
  // ranks = mass, to which the window's attention was added if rows came in whose queries nobody accumulated (a prompt).
  int64_t rank_by_mass(Context& context, const DecodeStep& step, const RowSets& live, float* ranks);
  QueryWindow& window() { return window_; }
  const LiveShape& shape() const { return shape_; }

 private:
  void take_in(const DecodeStep& step);
  RowSets visible(Context& context, const DecodeStep& step) const;
  int64_t evict(Context& context, const PolicySettings& settings, const DecodeStep& step, const RowSets& live);
  void keep(const PolicySettings& settings, const DecodeStep& step, int64_t kv_head, std::span<const int32_t> live,
            std::span<const int32_t> kept);
  void accumulate(const RowSets& live, const float* logits, const float* lse);

  LiveShape shape_;
  QueryWindow window_;
  std::vector<std::vector<int32_t>> lists_;  // [num_kv_heads] ascending
  std::vector<uint8_t> known_;               // [num_rows] taken in: live, or dropped
  int64_t known_prefix_ = 0;
  bool unweighed_ = false;       // rows came in together
  std::vector<float> mass_;      // [num_kv_heads][num_rows]
  std::vector<int32_t> lost_;    // rows that one eviction drops
  std::vector<int32_t> forced_;  // positions of forced rows in a list
};

}  // namespace fasa
