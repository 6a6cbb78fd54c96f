// streaming: the first rows and the newest ones (StreamingLLM, arXiv 2309.17453, section 3.2: attention sinks plus a
// rolling window). Simplified: kept rows stay at their original positions, where the paper renumbers them within the
// cache, so nothing changes below the budget. They are the same for all heads; what is left out is never read again.
#include <algorithm>

#include "src/core/scratch_slots.h"
#include "src/policy/decode_step.h"

namespace fasa {

DecodeReport decode_streaming(Context& context, const PolicySettings& /*settings*/, const DecodeStep& step) {
  const int64_t num_sets = step.k.num_heads;
  const auto count = static_cast<int64_t>(step.forced.size());
  const int64_t counts_bytes = num_sets * static_cast<int64_t>(sizeof(int64_t));
  const int64_t rows_bytes = num_sets * count * static_cast<int64_t>(sizeof(int32_t));
  auto* counts =
      static_cast<int64_t*>(context.shared_scratch(kSlotRows, static_cast<size_t>(counts_bytes + rows_bytes)));
  auto* rows = reinterpret_cast<int32_t*>(counts + num_sets);
  for (int64_t set = 0; set < num_sets; ++set) {
    counts[set] = count;
    std::ranges::copy(step.forced, rows + set * count);
  }
  return attend_rows(context, step, {rows, count, counts, num_sets});
}

}  // namespace fasa
