#include "src/ops/paged/paged_step.cuh"

namespace fasa::ops::paged {

StepKernel step_kernel_int8(int head_dim, int dims, int heads, int sets, int ring, int key_bytes) {
  constexpr auto kType = PagedIndexType::kI8;
  if (dims == 16) return pick_step_kernel<kType, 16>(head_dim, heads, sets, ring, key_bytes);
  if (dims == 32) return pick_step_kernel<kType, 32>(head_dim, heads, sets, ring, key_bytes);
  return nullptr;
}

}  // namespace fasa::ops::paged
