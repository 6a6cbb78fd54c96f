// The implementations of append; use the table in append.h.
#pragma once

#include <string>

#include "src/ops/append/append.h"

namespace fasa::ops {

inline constexpr int64_t kMaxFcs = 2048;

std::string append_ref_supports(const AppendArgs& args);
void append_ref(Context& context, const AppendArgs& args);
std::string append_cpu_supports(const AppendArgs& args);
void append_cpu(Context& context, const AppendArgs& args);

// Makes the index of these rows from args.cache; scalar in every implementation (about 0.1 us a row and plane).
void index_rows(const AppendArgs& args, std::span<const int64_t> rows);

// The f16 scale of a row: the smallest f16 s with s * limit >= max_abs, and at least 2^-24 so that its inverse is
// finite. NaN counts as 0 and infinities as the largest f16.
uint16_t index_scale(float max_abs, float limit);

}  // namespace fasa::ops
