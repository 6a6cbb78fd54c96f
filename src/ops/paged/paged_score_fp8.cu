#include "src/ops/paged/paged_score.cuh"

namespace fasa::ops::paged {

ScoreKernel score_kernel_fp8(int dims, int frags, int sets) {
  constexpr auto kType = PagedIndexType::kF8E4M3;
  if (dims == 16) return pick_score_kernel<Codec<kType, 16>>(frags, sets);
  if (dims == 32) return pick_score_kernel<Codec<kType, 32>>(frags, sets);
  if (dims == 64) return pick_score_kernel<Codec<kType, 64>>(frags, sets);
  return nullptr;
}

}  // namespace fasa::ops::paged
