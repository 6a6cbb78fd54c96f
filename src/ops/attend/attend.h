// attend: exact softmax attention of one query token over kept rows (FASA's FAC) or over all rows
// (dense).
//
//   a[h, t] = cap(scale * q[h] . k[t, g]) + bias[t]      g = KV head of h, cap(x) = softcap *
//   tanh(x / softcap) out[h]  = sum_t exp(a[h, t]) v[t, g] / (sum_t exp(a[h, t]) +
//   exp(sink_logits[h])) lse[h]  = log of that denominator
//
// No row at all (or all at -inf): out = 0, lse = -inf (or the sink's logit).
#pragma once

#include <span>

#include "fasa/tensor.h"
#include "src/ops/implementation.h"

namespace fasa::ops {

struct AttendArgs {
  HeadsView q;  // [num_q_heads, head_dim] f32
  CacheView k;  // [num_rows, num_kv_heads, head_dim] f32, f16, bf16
  CacheView v;  // [num_rows, num_kv_heads, head_dim_v] f32, f16, bf16, q8_0
  float scale = 1.0F;
  float softcap = 0.0F;                // 0: none
  const float* sink_logits = nullptr;  // [num_q_heads] or null

  // Sparse: set s keeps rows[s * rows_stride ..+ num_kept[s]]; num_sets is num_q_heads or
  // num_kv_heads.
  const int32_t* rows = nullptr;  // null: dense, rows 0..num_rows-1
  int64_t rows_stride = 0;
  const int64_t* num_kept = nullptr;
  int64_t num_sets = 0;

  int64_t num_rows = 0;         // dense: how many rows
  const float* bias = nullptr;  // dense: [num_rows] added, or null

  HeadsView out;         // [num_q_heads, head_dim_v] f32
  float* lse = nullptr;  // [num_q_heads] or null
  float* logits =
      nullptr;  // sparse: a[h, t] of the kept rows, [num_q_heads, rows_stride], or null; exp(a - lse) weighs
};

void check(const AttendArgs& args);
int64_t bytes(const AttendArgs& args);
std::span<const Implementation<AttendArgs>> attend_implementations();
void attend(Context& context, const AttendArgs& args);

}  // namespace fasa::ops
