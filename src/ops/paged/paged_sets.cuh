// Several selections at once by the threads of a CTA: every warp works for all of them.
#pragma once

#include "src/ops/paged/paged_device.cuh"
#include "src/ops/paged/paged_layout.h"

namespace fasa::ops::paged {

inline constexpr u32 kFullWarp = 0xFFFFFFFFU;

// kSets (1 or 4) selections at once: of 16 neighbouring threads each 4 work for a set.
template <int kSets>
__device__ __forceinline__ int set_of_thread() {
  return static_cast<int>(threadIdx.x) >> 2 & (kSets - 1);
}
// Which of its set's threads this one is.
template <int kSets>
__device__ __forceinline__ int member_of_set() {
  const int tid = threadIdx.x;
  return kSets == 1 ? tid : (tid >> 4) * 4 + (tid & 3);
}
// Lanes of a warp that work for a set, and which of them this one is.
template <int kSets>
inline constexpr int kSetLanes = 32 / kSets;
template <int kSets>
__device__ __forceinline__ int set_lane() {
  return member_of_set<kSets>() & (kSetLanes<kSets> - 1);
}
// The bit in which the numbers of lanes of a set differ that are `o` apart in it, o being a power of two.
template <int kSets>
__device__ __forceinline__ int set_bit(int o) {
  return kSets == 1 || o < 4 ? o : 4 * o;
}
// The value that all lanes of `set` have, by whole warps.
template <int kSets, class T>
__device__ __forceinline__ T of_set(T value, int set) {
  return kSets == 1 ? value : __shfl_sync(kFullWarp, value, 4 * set);
}

// Whether it is so of any set, by whole warps.
template <int kSets>
__device__ __forceinline__ bool any_set(bool x) {
  return kSets == 1 ? x : __any_sync(kFullWarp, x) != 0;
}
// op over the lanes of a warp that work for the thread's set; and the largest, and the sum.
template <int kSets, class Op>
__device__ __forceinline__ u32 over_set(u32 v, const Op& op) {
#pragma unroll
  for (int o = 1; o < kSetLanes<kSets>; o <<= 1) v = op(v, __shfl_xor_sync(kFullWarp, v, set_bit<kSets>(o)));
  return v;
}
template <int kSets>
__device__ __forceinline__ u32 sets_max(u32 v) {
  if constexpr (kSets == 1) return __reduce_max_sync(kFullWarp, v);
  return over_set<kSets>(v, [](u32 a, u32 b) { return max(a, b); });
}
template <int kSets>
__device__ __forceinline__ u32 sets_sum(u32 v) {
  if constexpr (kSets == 1) return __reduce_add_sync(kFullWarp, v);
  return over_set<kSets>(v, [](u32 a, u32 b) { return a + b; });
}
// The lanes of a warp that work for this thread's set.
template <int kSets>
__device__ __forceinline__ u32 lanes_of_set() {
  return kSets == 1 ? kFullWarp : 0x000F000FU << 4 * set_of_thread<kSets>();
}

// The sum of x over this lane and those below it, in segments of kLanes.
template <int kLanes = 32>
__device__ __forceinline__ u32 sum_below(u32 x) {
#pragma unroll
  for (int o = 1; o < kLanes; o <<= 1) {
    asm volatile("{.reg .pred p; .reg .u32 y; shfl.sync.up.b32 y|p, %0, %1, %2, 0xFFFFFFFF; @p add.u32 %0, %0, y;}"
                 : "+r"(x)
                 : "r"(o), "n"((32 - kLanes) << 8));
  }
  return x;
}
// The sum of x over this lane and those of its set before it; and that of the set's last lane.
template <int kSets>
__device__ __forceinline__ u32 sum_in_set(u32 x) {
  if constexpr (kSets == 1) {
    return sum_below(x);
  } else {
    const int lane = threadIdx.x & 31;
    const int member = set_lane<kSets>();
#pragma unroll
    for (int o = 1; o < kSetLanes<kSets>; o <<= 1) {
      // The lane `o` members before.
      const u32 y = __shfl_sync(kFullWarp, x, (lane & 12) | ((member - o) & 4) << 2 | ((member - o) & 3));
      if (member >= o) x += y;
    }
    return x;
  }
}
template <int kSets>
__device__ __forceinline__ u32 last_of_set(u32 x) {
  return __shfl_sync(kFullWarp, x, kSets == 1 ? 31 : (threadIdx.x & 12) | 19);
}

}  // namespace fasa::ops::paged
