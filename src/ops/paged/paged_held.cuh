// The keys of a CTA that may be kept, few of many: what samples say that is, and those keys in registers.
//
// A sample is the best of a group of keys. The worst sample of all is below the wanted best keys, if groups are not too large: of G groups
// of g keys it has about ln(G) / g of all keys above it.
#pragma once

#include "src/ops/paged/paged_prune.cuh"

namespace fasa::ops::paged {

// A warp's (worst, best) sample. best: of some keys of each lane; lanes: of a group, a power of two, or 0: every key may be kept.
// (0, 0) where there is no key.
__device__ __forceinline__ uint2 sample_warp(u32 best, int lanes) {
  const u32 highest = __reduce_max_sync(kFullWarp, best);
  u32 worst = highest;
  if (lanes < 32) {
    worst = best;
#pragma unroll 1
    for (int o = 1; o < lanes; o <<= 1) worst = max(worst, __shfl_xor_sync(kFullWarp, worst, o));
    worst = ~__reduce_max_sync(kFullWarp, worst != 0 ? ~worst : 0U);  // groups without a key do not count
    if (highest == 0 || lanes == 0) worst = min(highest, 1U);
  }
  return make_uint2(worst, highest);
}
// (worst, best) of the samples of `count` warps; (1, 1) where there are none.
__device__ __forceinline__ uint2 join_samples(const uint2* samples, int count) {
  u32 lowest = 0xFFFFFFFFU;
  u32 highest = 1;
#pragma unroll 1
  for (int i = threadIdx.x & 31; i < count; i += 32) {
    const uint2 r = samples[i];
    lowest = r.y != 0 ? min(lowest, r.x) : lowest;
    highest = max(highest, r.y);
  }
  highest = __reduce_max_sync(kFullWarp, highest);
  return make_uint2(min(__reduce_min_sync(kFullWarp, lowest), highest), highest);
}

// The keys of a warp that may be kept: at first all of a lane's, or of the warp's the few that are good enough, 32 at a time.
template <int kVector>
struct HeldKeys {
  static constexpr int kHeld = kHeldKeysOfLane;
  const KeyStore<kVector>& store;
  unsigned short* ids;  // shared, [kHeld * 32] of this warp: number * 32 + lane of each key held
  u32 held[kHeld];
  int rounds;    // of those held
  bool direct;   // held[i] is this lane's key i
  bool fits;     // else all keys are looked at every time

  __device__ __forceinline__ HeldKeys(const KeyStore<kVector>& keys, unsigned short* memory)
      : store(keys), ids(memory + (threadIdx.x >> 5) * kHeld * 32) {}

  // Those from `least` on. Several calls, by whole warps.
  __device__ __forceinline__ void hold(u32 least) {
    direct = store.n <= kHeld;
    fits = true;
    if (direct) {
      rounds = store.n;
#pragma unroll
      for (int i = 0; i < kHeld; i += kVector) {
        u32 k[kVector] = {};
        if (i < store.n) store.get(i, k);
#pragma unroll
        for (int j = 0; j < kVector; ++j) held[i + j] = k[j];
      }
      return;
    }
    const u32 lane = threadIdx.x & 31;
    u32 count = 0;
#pragma unroll 1
    for (int from = 0; from < store.n; from += 32) {
      u32 hits = 0;
#pragma unroll
      for (int i = 0; i < 32; i += kVector) {
        if (from + i >= store.n) break;
        u32 k[kVector];
        store.get(from + i, k);
#pragma unroll
        for (int j = 0; j < kVector; ++j) hits |= k[j] >= least ? 1U << (i + j) : 0U;
      }
      const u32 mine = static_cast<u32>(__popc(hits));
      const u32 through = sum_below(mine);
      u32 at = count + through - mine;
#pragma unroll 1
      for (; hits != 0; hits &= hits - 1U, ++at) {
        const int i = from + __ffs(static_cast<int>(hits)) - 1;
        if (at < kHeld * 32) ids[at] = static_cast<unsigned short>(i * 32 + static_cast<int>(lane));
      }
      count += __shfl_sync(kFullWarp, through, 31);
    }
    fits = count <= kHeld * 32;
    rounds = static_cast<int>(count + 31) / 32;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      held[j] = 0;
      if (j < rounds && j * 32 + lane < count) held[j] = *at(ids[j * 32 + lane]);
    }
  }
  __device__ __forceinline__ const u32* at(int id) const {
    const int i = id >> 5;
    return store.keys + (i / kVector * kThreads + static_cast<int>(threadIdx.x & ~31U) + (id & 31)) * kVector + i % kVector;
  }
  // f(key, j) by whole warps; id_of(j) is the key's number * 32 + lane.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    if (fits) {
      // Four at a time, as a branch costs more than a key that is none.
#pragma unroll
      for (int j = 0; j < kHeld; j += 4) {
        if (j >= rounds) break;
#pragma unroll
        for (int i = j; i < j + 4; ++i) f(held[i], i);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < store.n; i += kVector) {
        u32 k[kVector];
        store.get(i, k);
#pragma unroll
        for (int j = 0; j < kVector; ++j) f(k[j], i + j);
      }
    }
  }
  __device__ __forceinline__ int id_of(int j) const {
    const int lane = static_cast<int>(threadIdx.x & 31);
    return direct || !fits ? j * 32 + lane : ids[j * 32 + lane];
  }
};

struct HeldShared {
  uint2 samples[kThreads / 32];
  u32 none[32];  // where a lane counts what is not to be counted
  unsigned short ids[kHeldKeysOfLane * kThreads];
};
static_assert(sizeof(HeldShared) <= kHeldSharedBytes);

// prune, where samples left too few keys or few samples too many.
template <bool kFloatKeys, int kVector, class TokenOf>
__device__ __noinline__ void prune_again(PruneShared<1>& s, KeyStore<kVector> store, u32 quota, u32 slots, uint2* out, uint4* bounds,
                                         TokenOf token) {
  __syncthreads();
  s.clear();
  __syncthreads();
  prune<1, kFloatKeys>(s, store, quota, slots, out, bounds, token);
}

// As prune for one set, but of all keys only those are looked at more than once that samples say may be published. token(number, lane).
template <bool kFloatKeys, int kVector, class TokenOf>
__device__ __forceinline__ void prune_held(PruneShared<1>& s, HeldShared& shared, const KeyStore<kVector>& store, u32 quota, u32 slots,
                                           uint2* out, uint4* bounds, const TokenOf& token) {
  const int tid = threadIdx.x;
  const u32 lane = 1U << (tid & 31);
  const u32 best = __reduce_max_sync(kFullWarp, store.best);
  if ((tid & 31) == 0) atomicMax(&s.highest[0], best);
  __syncthreads();
  const u32 highest = s.highest[0];
  const u32 low = join_samples(shared.samples, kThreads / 32).x;
  const int shift = bin_shift(highest - min(low, highest), 9);
  HeldKeys keys(store, shared.ids);
  keys.hold(low);
  u32* none = shared.none + (tid & 31);
  keys.for_each([&](u32 k, int) {
    u32* bin = s.hist + bin_place((max(k, low) - low) >> shift);
    atomicAdd(k >= low ? bin : none, 1U);
  });
  __syncthreads();
  const BinFound f = find_bin(s.hist, 0, quota);
  const bool all = f.bin < 0 && low <= 1;  // fewer than wanted: all of them
  if ((f.bin < 0 && !all) || f.through > slots) {
    prune_again<kFloatKeys>(s, store, quota, slots, out, bounds,
                            [=](int i) { return token(i, static_cast<int>(threadIdx.x & 31)); });
    return;
  }
  const u32 threshold = all ? 1U : low + (static_cast<u32>(f.bin) << shift);
  u32 count = 0;
  keys.for_each([&](u32 k, int) { count += static_cast<u32>(__popc(__ballot_sync(kFullWarp, k >= threshold))); });
  s.warps[tid >> 5] = count;  // the same of all lanes
  __syncthreads();
  u32 place;
  u32 total;
  sum_warps(s.warps, place, total);
  keys.for_each([&](u32 k, int j) {
    const u32 mask = __ballot_sync(kFullWarp, k >= threshold);
    if ((mask & lane) != 0) {
      const int id = keys.id_of(j);
      out[place + static_cast<u32>(__popc(mask & (lane - 1U)))] = make_uint2(k, static_cast<u32>(token(id >> 5, id & 31)));
    }
    place += static_cast<u32>(__popc(mask));
  });
  for (u32 i = total + static_cast<u32>(tid); i < slots; i += kThreads) out[i] = make_uint2(0, 0);
  if (tid == 0) *bounds = make_uint4(threshold - 1U, highest, threshold, total);
}

}  // namespace fasa::ops::paged
