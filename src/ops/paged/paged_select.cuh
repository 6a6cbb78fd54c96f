// Selection alone, for scores that are there already: the `budget` best of each row of f32.
//
// Mapping: as the fused step (paged_score.cuh, paged_attend.cuh): score_ctas CTAs a row turn their scores into keys
//   and publish their best; one CTA a row finds the threshold among those. 16 neighbouring scores lie in one CTA. A CTA with
//   more than kSelectKeys scores a thread takes its first cut from so many, and then holds what reaches it
//   (paged_warp_list.cuh); its scores come through a ring of rounds in shared memory.
// Memory: 4 bytes a score, read once.
// Numerics: exact, also for ties, infinities and denormals.
// Ordering: placed by counting, so bit-identical from run to run.
#pragma once

#include "src/ops/paged/paged_device.cuh"

namespace fasa::ops::paged {

struct SelectParams {
  PagedSelectArgs a;
  PagedSelectPlan plan;
  uint2* slots = nullptr;   // [rows][score_ctas][plan.slots]
  uint4* bounds = nullptr;  // [rows][score_ctas]
};

using SelectKernel = void (*)(const SelectParams);
SelectKernel select_prune_kernel();
SelectKernel select_pick_kernel();

}  // namespace fasa::ops::paged
