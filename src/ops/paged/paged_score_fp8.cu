#include "src/ops/paged/paged_score.cuh"

namespace fasa::ops::paged {

ScoreKernel score_kernel_fp8(int dims, int heads, int sets) {
  constexpr auto kType = PagedIndexType::kF8E4M3;
  if (dims == 16) return pick_score_kernel<kType, 16>(heads, sets);
  if (dims == 32) return pick_score_kernel<kType, 32>(heads, sets);
  if (dims == 64) return pick_score_kernel<kType, 64>(heads, sets);
  return nullptr;
}

}  // namespace fasa::ops::paged
