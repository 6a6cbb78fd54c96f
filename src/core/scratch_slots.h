// Who uses which scratch buffer of a Context.
#pragma once

namespace fasa {

enum ScratchSlot : int {
  kSlotScores = 0,  // policy: f32 [num_q_heads, num_rows]
  kSlotRows,        // policy: i32 [num_q_heads, budget]
  kSlotPolicy,      // policy: what one policy needs of its own
  kSlotObserve,     // policy: logits of observed queries
  kSlotScore,       // ops/score
  kSlotSelect,      // ops/select
  kSlotAttend,      // ops/attend: partial results
  kSlotAttendWork,  // ops/attend: one worker's tiles
  kNumScratchSlots,
};

}  // namespace fasa
