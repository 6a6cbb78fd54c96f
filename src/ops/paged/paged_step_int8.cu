#include "src/ops/paged/paged_step.cuh"

namespace fasa::ops::paged {

StepKernel step_kernel_int8(int head_dim, int dims, int heads, int sets, int ring) {
  constexpr auto kType = PagedIndexType::kI8;
  if (dims == 16) return pick_step_kernel<kType, 16>(head_dim, heads, sets, ring);
  if (dims == 32) return pick_step_kernel<kType, 32>(head_dim, heads, sets, ring);
  return nullptr;
}

}  // namespace fasa::ops::paged
