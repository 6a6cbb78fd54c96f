// Of the scores of a long row those that can still be among the `quota` best of a CTA, kept by warps for themselves as rounds of them
// arrive: no barrier, and no call where there is room, as a call would wait for loads on their way. A cut that `quota` scores of the CTA
// reach is known; where a warp has no room it forgets all but its own `quota` best, and raises its cut above the last of them. So no key
// that is lost is above cut - 1, which the CTA's bounds say (paged_prune.cuh).
//
// entries: shared, [kSelectRoom] of the warp, (bits of the score, id) in the order in which they came, so the same scores give the same
// list. quota: at most kSelectRoom - 32.
#pragma once

#include "src/ops/paged/paged_device.cuh"
#include "src/ops/paged/paged_sets.cuh"

namespace fasa::ops::paged {

inline constexpr int kRoundKeys = kSelectRoundKeys;

struct Scores {
  float v[kRoundKeys];
};

struct WarpList {
  u32 n = 0;
  u32 cut = 0;  // 1 or more; scores with a key below it are forgotten

  // The scores of each lane that reach the cut, NaN never; id: of the lane's first one, the next has 32 more.
  __device__ __forceinline__ void take(uint2* entries, const Scores& s, u32 id, u32 quota) {
    const float least = value_of(max(cut, key_of(-INFINITY)));
    u32 mine = 0;
#pragma unroll
    for (const float v : s.v) mine += v >= least ? 1U : 0U;
    const u32 before = (1U << (threadIdx.x & 31)) - 1U;
    u32 place = 0;
#pragma unroll
    for (int bit = 0; bit < 5; ++bit) {
      place += static_cast<u32>(__popc(__ballot_sync(kFullWarp, (mine >> bit & 1U) != 0) & before)) << bit;
    }
    const u32 total = __shfl_sync(kFullWarp, place + mine, 31);
    if (n + total > kSelectRoom) {
      *this = take_one_by_one(*this, entries, s, id, quota);
      return;
    }
    uint2* to = entries + n + place;
#pragma unroll
    for (int i = 0; i < kRoundKeys; ++i) {
      if (s.v[i] >= least) *to++ = make_uint2(__float_as_uint(s.v[i]), id + static_cast<u32>(i * 32));
    }
    n += total;
  }

 private:
  // Where there is no room for all.
  static __device__ __noinline__ WarpList take_one_by_one(WarpList list, uint2* entries, Scores s, u32 id, u32 quota) {
    const u32 before = (1U << (threadIdx.x & 31)) - 1U;
#pragma unroll
    for (int i = 0; i < kRoundKeys; ++i) {
      if (list.n + 32 > kSelectRoom) list = raise(list, entries, quota);
      const bool stays = key_of(s.v[i]) >= list.cut;
      const u32 mask = __ballot_sync(kFullWarp, stays);
      if (stays) {
        entries[list.n + static_cast<u32>(__popc(mask & before))] =
            make_uint2(__float_as_uint(s.v[i]), id + static_cast<u32>(i * 32));
      }
      list.n += static_cast<u32>(__popc(mask));
    }
    return list;
  }
  // Leaves the `quota` best: finds the last one of them bit by bit, then keeps those above it and so many that equal it.
  static __device__ __noinline__ WarpList raise(WarpList list, uint2* entries, u32 quota) {
    const u32 lane = threadIdx.x & 31;
    const u32 before = (1U << lane) - 1U;
    __syncwarp();
    const auto key_at = [&](u32 i) { return i < list.n ? key_of(__uint_as_float(entries[i].x)) : 0U; };
    const auto reach = [&](u32 cut) {
      u32 count = 0;
#pragma unroll 4
      for (u32 i = lane; i < list.n; i += 32) count += key_at(i) >= cut ? 1U : 0U;
      return __reduce_add_sync(kFullWarp, count);
    };
    u32 cut = 0;
#pragma unroll 1
    for (u32 bit = 0x80000000U; bit != 0; bit >>= 1) {
      if (reach(cut | bit) >= quota) cut |= bit;
    }
    u32 equal = quota - reach(cut + 1U);
    u32 kept = 0;
#pragma unroll 1
    for (u32 first = 0; first < list.n; first += 32) {
      const u32 i = first + lane;
      const u32 key = key_at(i);
      const uint2 entry = i < list.n ? entries[i] : make_uint2(0, 0);
      const u32 same = __ballot_sync(kFullWarp, i < list.n && key == cut);
      const bool stays = key > cut || ((same >> lane & 1U) != 0 && static_cast<u32>(__popc(same & before)) < equal);
      equal -= min(equal, static_cast<u32>(__popc(same)));
      const u32 mask = __ballot_sync(kFullWarp, stays);
      if (stays) entries[kept + static_cast<u32>(__popc(mask & before))] = entry;
      kept += static_cast<u32>(__popc(mask));
      __syncwarp();
    }
    return {kept, cut + 1U};
  }
};

}  // namespace fasa::ops::paged
