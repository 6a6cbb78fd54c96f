// select: scores -> the rows to keep (FASA, section 3: top N_fac), exactly.
//
//   kept = forced rows, then the best others by (score descending, row ascending), until `budget`
//   rows.
//
// Rows of score -inf or NaN are never kept unless forced; fewer than `budget` rows are kept where
// fewer are left. Linear in num_rows. The output is in ascending order of rows (the order of
// memory).
#pragma once

#include <span>

#include "src/ops/implementation.h"

namespace fasa::ops {

struct SelectArgs {
  const float* scores = nullptr;    // [num_sets, scores_stride]
  int64_t scores_stride = 0;        // floats
  int64_t num_sets = 0;             // query heads, or KV heads where the group shares its choice
  int64_t num_rows = 0;             // < 2^31
  int64_t budget = 0;               // >= 1, counts the forced rows
  std::span<const int32_t> forced;  // sinks and recent rows: ascending, distinct, at most `budget`
  int32_t* rows = nullptr;          // out [num_sets, budget]
  int64_t* num_kept = nullptr;      // out [num_sets]
};

void check(const SelectArgs& args);
int64_t bytes(const SelectArgs& args);
std::span<const Implementation<SelectArgs>> select_implementations();
void select(Context& context, const SelectArgs& args);

}  // namespace fasa::ops
