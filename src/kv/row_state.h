// What a policy keeps of one stream of a layer besides the index (summaries of pages, marks of dropped rows, recent
// queries). LayerIndex, which sees every write, tells it what happens to the rows.
#pragma once

#include <cstdint>

#include "fasa/tensor.h"

namespace fasa {

class RowState {
 public:
  RowState() = default;
  RowState(const RowState&) = delete;
  RowState& operator=(const RowState&) = delete;
  virtual ~RowState() = default;

  // Rows first..first+count-1 hold other tokens from now on (written, loaded, copied or cleared).
  virtual void replaced(int64_t first, int64_t count) = 0;
  // Their keys were changed in place and stand for the same tokens (K-shift).
  virtual void shifted(int64_t first, int64_t count) = 0;
  // A query that attended to everything; `row` holds its own token. Prefill queries come oldest first.
  virtual void observe(const HeadsView& /*q*/, int64_t /*row*/) {}
  // How much of it does not follow from the cache: 0, unless there is a bug.
  virtual int64_t count_stale(const CacheView& /*k*/) const { return 0; }
  virtual int64_t memory_bytes() const = 0;
};

}  // namespace fasa
