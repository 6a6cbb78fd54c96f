// One decode step of one query token in one layer, under a policy.
#pragma once

#include <cstdint>
#include <span>

#include "fasa/context.h"
#include "fasa/index.h"
#include "fasa/policy.h"
#include "fasa/tensor.h"

namespace fasa {

struct DecodeStep {
  HeadsView q;      // [num_q_heads, head_dim]
  CacheView k;      // [num_rows, num_kv_heads, head_dim]
  CacheView v;      // [num_rows, num_kv_heads, head_dim_v]
  IndexView index;  // of k; used by kFasa only
  float scale = 1.0F;
  float softcap = 0.0F;
  const float* sink_logits = nullptr;  // [num_q_heads] or null

  int64_t num_visible = 0;          // of rows 0..k.num_rows-1
  const float* bias = nullptr;      // [k.num_rows], 0 or -inf (dense: any); null: all rows are visible
  std::span<const int32_t> forced;  // sinks and recent rows, ascending, fewer than settings.budget

  HeadsView out;  // [num_q_heads, head_dim_v]
};

struct DecodeReport {
  bool sparse = false;
  int64_t kv_bytes = 0;  // of K and V that were read
  int64_t index_bytes = 0;
};

// One row a policy.
struct Policy {
  PolicyKind kind;
  const char* name;
  bool needs_index;
  DecodeReport (*decode)(Context& context, const PolicySettings& settings, const DecodeStep& step);
};
std::span<const Policy> policies();
const Policy& find_policy(PolicyKind kind);

// Whether `settings` leaves out any of `num_visible` rows. If not, decode_step is full attention.
inline bool is_sparse(const PolicySettings& settings, int64_t num_visible) {
  return settings.kind != PolicyKind::kFull && num_visible > settings.budget;
}

DecodeReport decode_step(Context& context, const PolicySettings& settings, const DecodeStep& step);

// What the policies are made of.
DecodeReport decode_full(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_fasa(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_oracle(Context& context, const PolicySettings& settings, const DecodeStep& step);

// f32 [num_sets, padded rows] in the context's scratch; `stride` is set to the floats of a row.
float* score_scratch(Context& context, int64_t num_sets, int64_t num_rows, int64_t* stride);
int64_t num_selections(const PolicySettings& settings, const DecodeStep& step);
// Selects by `scores` and attends to what was selected.
DecodeReport attend_selected(Context& context, const PolicySettings& settings, const DecodeStep& step,
                             const float* scores, int64_t stride);

}  // namespace fasa
