// One decode step of one query token in one layer, under a policy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>

#include "fasa/context.h"
#include "fasa/index.h"
#include "fasa/policy.h"
#include "fasa/profile.h"
#include "fasa/tensor.h"
#include "src/kv/layer_index.h"
#include "src/kv/row_state.h"

namespace fasa {

struct RowSets;

struct DecodeStep {
  HeadsView q;                // [num_q_heads, head_dim]
  CacheView k;                // [num_rows, num_kv_heads, head_dim]
  CacheView v;                // [num_rows, num_kv_heads, head_dim_v]
  IndexView index;            // of k, as Policy::index said
  RowState* state = nullptr;  // as Policy::make_state made it
  float scale = 1.0F;
  float softcap = 0.0F;
  const float* sink_logits = nullptr;  // [num_q_heads] or null

  int64_t num_visible = 0;          // of rows 0..k.num_rows-1
  const float* bias = nullptr;      // [k.num_rows], 0 or -inf (dense: any); null: all rows are visible
  std::span<const int32_t> forced;  // sinks and recent rows, ascending, at most settings.budget
  // For policies with a state.
  const uint32_t* ages = nullptr;  // [k.num_rows], greater is newer
  int64_t row = -1;                // the query's own row

  HeadsView out;  // [num_q_heads, head_dim_v]
  // Out, or null: the rows that were attended to, in scratch that lives until the next step.
  RowSets* kept = nullptr;

  bool sees(int64_t r) const { return r < k.num_rows && (bias == nullptr || bias[r] == 0.0F); }
  int64_t key_bytes() const { return dtype_bytes(k.dtype, k.head_dim); }
  int64_t row_bytes() const { return key_bytes() + dtype_bytes(v.dtype, v.head_dim); }
};

struct DecodeReport {
  bool sparse = false;
  int64_t kv_bytes = 0;     // of K and V that were read
  int64_t index_bytes = 0;  // of whatever the policy keeps besides
};

// One row a policy.
struct Policy {
  PolicyInfo info;
  // What the index of a layer holds (shape.num_rows is the caller's); null: there is none.
  IndexContent (*index)(const LayerProfile& layer, const PolicySettings& settings);
  // The state of one stream; null: there is none.
  std::unique_ptr<RowState> (*make_state)(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);
  DecodeReport (*decode)(Context& context, const PolicySettings& settings, const DecodeStep& step);
};
std::span<const Policy> policies();
const Policy& find_policy(PolicyKind kind);

// Whether `settings` leaves out any of `num_visible` rows. If not, decode_step is full attention.
inline bool is_sparse(const PolicySettings& settings, int64_t num_visible) {
  return settings.kind != PolicyKind::kFull && num_visible > std::max(settings.budget, settings.full_rows);
}

DecodeReport decode_step(Context& context, const PolicySettings& settings, const DecodeStep& step);

// The newest rows that are always kept: all that sinks leave of the budget if nothing else is kept.
int64_t forced_recent(const PolicySettings& settings);

// The rows of the table.
DecodeReport decode_full(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_fasa(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_oracle(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_random(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_streaming(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_sparq(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_quest(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_quickllama(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_actqkv(Context& context, const PolicySettings& settings, const DecodeStep& step);
DecodeReport decode_evicting(Context& context, const PolicySettings& settings, const DecodeStep& step);
IndexContent fasa_index(const LayerProfile& layer, const PolicySettings& settings);
IndexContent channels_index(const LayerProfile& layer, const PolicySettings& settings);
IndexContent loki_index(const LayerProfile& layer, const PolicySettings& settings);
IndexContent kvquant_index(const LayerProfile& layer, const PolicySettings& settings);
std::unique_ptr<RowState> sparq_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);
std::unique_ptr<RowState> quest_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);
std::unique_ptr<RowState> quickllama_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);
std::unique_ptr<RowState> actqkv_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);
std::unique_ptr<RowState> h2o_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);
std::unique_ptr<RowState> snapkv_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);
std::unique_ptr<RowState> graphkv_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);
std::unique_ptr<RowState> zeromerge_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings);

// What the policies are made of.

// f32 [num_sets, padded rows] in the context's scratch; `stride` is set to the floats of a row.
float* score_scratch(Context& context, int64_t num_sets, int64_t num_rows, int64_t* stride);
int64_t num_selections(const PolicySettings& settings, const DecodeStep& step);
// Rows rows[set * stride ..+ counts[set]] of each set; sets are query heads or KV heads. In the context's scratch.
struct RowSets {
  const int32_t* rows = nullptr;
  int64_t stride = 0;
  const int64_t* counts = nullptr;
  int64_t num_sets = 0;
};
// The `settings.budget` best rows of each of num_selections() rows of scores, the forced ones among them.
RowSets select_rows(Context& context, const PolicySettings& settings, const DecodeStep& step, const float* scores,
                    int64_t stride);
// What attention gives besides its output; as AttendArgs.
struct AttendOutputs {
  float* lse = nullptr;
  float* logits = nullptr;
};
DecodeReport attend_rows(Context& context, const DecodeStep& step, const RowSets& sets,
                         const AttendOutputs& outputs = {});
// Both.
DecodeReport attend_selected(Context& context, const PolicySettings& settings, const DecodeStep& step,
                             const float* scores, int64_t stride);

}  // namespace fasa
