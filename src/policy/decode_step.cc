#include "src/policy/decode_step.h"

#include <algorithm>
#include <cassert>

#include "src/core/math_util.h"
#include "src/core/scratch_slots.h"
#include "src/ops/attend/attend.h"
#include "src/ops/select/select.h"

namespace fasa {

const Policy& find_policy(PolicyKind kind) {
  const auto found = std::ranges::find(policies(), kind, [](const Policy& p) { return p.info.kind; });
  assert(found != policies().end());
  return *found;
}

DecodeReport decode_step(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  if (!is_sparse(settings, step.num_visible)) return decode_full(context, settings, step);
  return find_policy(settings.kind).decode(context, settings, step);
}

float* score_scratch(Context& context, int64_t num_sets, int64_t num_rows, int64_t* stride) {
  *stride = round_up(num_rows, kIndexBlock);
  return static_cast<float*>(
      context.shared_scratch(kSlotScores, static_cast<size_t>(num_sets * *stride) * sizeof(float)));
}

int64_t num_selections(const PolicySettings& settings, const DecodeStep& step) {
  return settings.share_tokens ? step.k.num_heads : step.q.num_heads;
}

RowSets select_rows(Context& context, const PolicySettings& settings, const DecodeStep& step, const float* scores,
                    int64_t stride) {
  const int64_t num_sets = num_selections(settings, step);
  const int64_t counts_bytes = num_sets * static_cast<int64_t>(sizeof(int64_t));
  const int64_t rows_bytes = num_sets * settings.budget * static_cast<int64_t>(sizeof(int32_t));
  auto* scratch =
      static_cast<std::byte*>(context.shared_scratch(kSlotRows, static_cast<size_t>(counts_bytes + rows_bytes)));
  auto* num_kept = reinterpret_cast<int64_t*>(scratch);
  auto* rows = reinterpret_cast<int32_t*>(scratch + counts_bytes);

  ops::select(context, {.scores = scores,
                        .scores_stride = stride,
                        .num_sets = num_sets,
                        .num_rows = step.k.num_rows,
                        .budget = settings.budget,
                        .forced = step.forced,
                        .rows = rows,
                        .num_kept = num_kept});
  return {rows, settings.budget, num_kept, num_sets};
}

DecodeReport attend_selected(Context& context, const PolicySettings& settings, const DecodeStep& step,
                             const float* scores, int64_t stride) {
  return attend_rows(context, step, select_rows(context, settings, step, scores, stride));
}

DecodeReport attend_rows(Context& context, const DecodeStep& step, const RowSets& sets, const AttendOutputs& outputs) {
  ops::AttendArgs attend;
  attend.q = step.q;
  attend.k = step.k;
  attend.v = step.v;
  attend.scale = step.scale;
  attend.softcap = step.softcap;
  attend.sink_logits = step.sink_logits;
  attend.rows = sets.rows;
  attend.rows_stride = sets.stride;
  attend.num_kept = sets.counts;
  attend.num_sets = sets.num_sets;
  attend.out = step.out;
  attend.lse = outputs.lse;
  attend.logits = outputs.logits;
  ops::attend(context, attend);
  if (step.kept != nullptr) *step.kept = sets;

  DecodeReport report{.sparse = true};
  for (int64_t set = 0; set < sets.num_sets; ++set) report.kv_bytes += sets.counts[set] * step.row_bytes();
  return report;
}

}  // namespace fasa
