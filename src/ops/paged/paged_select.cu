#include "src/ops/paged/paged_select.cuh"

#include "src/ops/paged/paged_attend.cuh"

namespace fasa::ops::paged {
namespace {

__global__ void __launch_bounds__(kThreads) prune_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ __align__(16) u32 shared[];
  auto& s = *reinterpret_cast<PruneShared<1>*>(shared);
  u32* keys = shared + kPruneSharedBytes1 / 4;
  constexpr int nt = kThreads;
  const int tid = threadIdx.x;
  const int lane = tid & 31;
  const int warp = tid >> 5;
  const int tokens = p.a.num_tokens;
  const float* row = p.a.scores + static_cast<int64_t>(blockIdx.y) * p.a.row_stride;
  // First token of this thread's j-th four of a round.
  const auto token_at = [&](int round, int j) {
    const int k = ((round * (nt >> 5) + warp) * 4 + j) * 8 + (lane >> 2);
    return spread_unit(k, blockIdx.x, gridDim.x) * 16 + (lane & 3) * 4;
  };
  const auto load = [&](int round, uint4(&v)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int t = token_at(round, j);
      if (t < tokens) v[j] = load_stream<uint4>(row + t);
    }
  };
  s.clear();
  grid_wait();
  grid_launch_dependents();
  uint4 now[4];
  load(0, now);
  __syncthreads();
  KeyStore<4> store{keys};
  for (int round = 0; round < p.plan.score_iterations; ++round) {
    uint4 next[4];
    load(round + 1, next);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int t = token_at(round, j);
      const u32 bits[4] = {now[j].x, now[j].y, now[j].z, now[j].w};
      u32 key[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) key[e] = t + e < tokens ? key_of(__uint_as_float(bits[e])) : 0U;
      store.put(key);
      now[j] = next[j];
    }
  }
  const int64_t where = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  prune<1, true>(s, store, p.plan.quota, p.plan.slots, p.slots + where * p.plan.slots, p.bounds + where,
                 [&](int i) { return token_at(i / 16, i / 4 % 4) + i % 4; });
}

__global__ void __launch_bounds__(kThreads) pick_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ __align__(16) char memory[];
  auto& s = *reinterpret_cast<SelectShared*>(memory);
  uint2* slots = reinterpret_cast<uint2*>(memory + kSelectSharedBytes);
  const int count = p.plan.score_ctas * p.plan.slots;
  const int tid = threadIdx.x;
  constexpr int nt = kThreads;
  int32_t* kept = p.a.kept + static_cast<int64_t>(blockIdx.x) * p.a.budget;
  s.clear();
  grid_wait();
  grid_launch_dependents();
  Lists lists{slots, count, {}};
  lists.copy(p.slots + static_cast<int64_t>(blockIdx.x) * count);
  const uint4 bounds = join_bounds(p.bounds + static_cast<int64_t>(blockIdx.x) * p.plan.score_ctas, p.plan.score_ctas);
  __syncthreads();  // for s.clear()
  copy_async_wait();
  lists.hold();
  const Threshold t = find_threshold(s, lists, p.a.budget, bounds);
  u32 n = t.kept;
  if (t.exact) {
    emit_kept(
        s, lists, t, [](u32) { return true; }, [&](int token, u32 i) { kept[i] = token; });
  } else {
    const float* row = p.a.scores + static_cast<int64_t>(blockIdx.x) * p.a.row_stride;
    __syncthreads();
    exact_select<false>(
        *reinterpret_cast<ExactShared*>(memory), 0, p.a.num_tokens, p.a.budget,
        [&](int token) { return key_of(__ldg(row + token)); },
        [&](int token, u32, u32 position) { kept[position] = token; }, &n);
  }
  for (u32 i = n + tid; i < static_cast<u32>(p.a.budget); i += nt) kept[i] = -1;
}

}  // namespace

SelectKernel select_prune_kernel() { return prune_kernel; }
SelectKernel select_pick_kernel() { return pick_kernel; }

}  // namespace fasa::ops::paged
