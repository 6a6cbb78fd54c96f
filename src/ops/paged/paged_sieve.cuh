// Room for the keys of a long row: what a thread cannot keep all of (paged_layout.h, kChunkKeys) it looks through each time that its
// memory is full, and what can still be among the `quota` best of the CTA is left. These are the keys from a cut on that `quota` of
// the first chunk's reach, and that rises, exactly, where a warp has no room for more. What is lost nevertheless, equal keys as
// a rule, the CTA's bounds say.
//
// What is left of a set lies in the first kLeftKeys keys of the warp's threads that work for it, in the order in which it came.
#pragma once

#include "src/ops/paged/paged_prune.cuh"

namespace fasa::ops::paged {

// What a thread knows of the chunks before.
struct Sieved {
  u32 left = 0;  // keys that are left to its warp and set
  u32 cut = 0;   // of its set; 0: nothing is forgotten yet
  u32 lost = 0;  // the best key for which there was no room
};

template <int kSets, bool kFloatKeys, int kVector>
struct Sieve {
  using Store = KeyStore<kVector>;
  static constexpr int kLanes = kSetLanes<kSets>;
  static constexpr u32 kRoom = kLeftKeys * kLanes;
  PruneShared<kSets>& s;
  unsigned short* ids;  // shared, [kLeftKeys][kThreads]: number * kLanes + lane of the set, of the keys that are left
  u32 quota;
  int base;       // kLeftKeys, which are before those of the chunk; 0: all keys fit
  int first = 0;  // number of the chunk's first key
  Sieved known;

  __device__ __forceinline__ void begin(Store& store) const {
    const u32 none[kVector] = {};
#pragma unroll 1
    while (store.n < base) store.put(none);
  }
  // What this thread's key i is: f(number, lane).
  template <class F>
  __device__ __forceinline__ auto identify(int i, const F& f) const {
    int number = first + i - base;
    int lane = threadIdx.x & 31;
    if (i < base) {
      const int id = ids[i * kThreads + threadIdx.x];
      number = id / kLanes;
      lane = lane_of(id % kLanes);
    }
    return f(number, lane);
  }
  // The best key that is there no more, of all threads of the set; ends with a barrier.
  __device__ __forceinline__ u32 forgotten() const {
    if (base == 0) return 0;
    u32& lost = s.lost[set_of_thread<kSets>()];
    if (known.lost != 0) atomicMax(&lost, known.lost);
    __syncthreads();
    return max(lost, max(known.cut, 1U) - 1U);
  }
  // A chunk is full, for all threads of the CTA.
  __device__ __forceinline__ void next_chunk(Store& store) {
    known = look_through(s, ids, store, quota, first, known);
    first += kChunkKeys;
    store.n = base;
  }

 private:
  static __device__ __forceinline__ int lane_of(int member) {
    return kSets == 1 ? member : (member & 3) | set_of_thread<kSets>() * 4 | (member >> 2) * 16;
  }
  // Place of the set's keys that are left: which thread's, and its i-th.
  static __device__ __forceinline__ void put(unsigned short* ids, const Store& store, u32 place, u32 key, u32 id) {
    const int i = static_cast<int>(place) / kLanes;
    const int thread = static_cast<int>(threadIdx.x & ~31U) + lane_of(static_cast<int>(place) % kLanes);
    store.keys[(i / kVector * kThreads + thread) * kVector + i % kVector] = key;
    ids[i * kThreads + thread] = static_cast<unsigned short>(id);
  }
  static __device__ __forceinline__ u32* own(const Store& store, int i) {
    return store.at(i & ~(kVector - 1)) + (i & (kVector - 1));
  }
  // Which keys of the chunk reach the cut, and how many.
  static __device__ __forceinline__ u32 look(const Store& store, u32 cut, u32 (&hits)[kChunkKeys / 32]) {
    int count = 0;
#pragma unroll
    for (int part = 0; part < kChunkKeys / 32; ++part) {
      hits[part] = 0;
#pragma unroll
      for (int i = 0; i < 32; i += kVector) {
        u32 k[kVector];
        store.get(kLeftKeys + part * 32 + i, k);
#pragma unroll
        for (int j = 0; j < kVector; ++j) hits[part] |= k[j] >= cut ? 1U << (i + j) : 0U;
      }
      count += __popc(hits[part]);
    }
    return static_cast<u32>(count);
  }
  // Of what is left what reaches the cut. Returns how many.
  static __device__ __forceinline__ u32 sift(unsigned short* ids, const Store& store, u32 left, u32 cut) {
    const u32 rows = (kSets == 1 ? left : __reduce_max_sync(kFullWarp, left)) + kLanes - 1;
    const u32 before = (1U << (threadIdx.x & 31)) - 1U;
    u32 kept = 0;
#pragma unroll 1
    for (int i = 0; i < static_cast<int>(rows) / kLanes; ++i) {
      u32& mine = *own(store, i);
      const u32 key = mine;
      const u32 id = ids[i * kThreads + threadIdx.x];
      const bool stays = key >= cut && i * kLanes + set_lane<kSets>() < static_cast<int>(left);
      const u32 mask = __ballot_sync(kFullWarp, stays) & lanes_of_set<kSets>();
      mine = 0;
      __syncwarp();
      if (stays) put(ids, store, kept + static_cast<u32>(__popc(mask & before)), key, id);
      __syncwarp();
      kept += static_cast<u32>(__popc(mask));
    }
    return kept;
  }
  // Not a call, which would wait for the rows on their way.
  static __device__ __forceinline__ Sieved look_through(PruneShared<kSets>& s, unsigned short* ids, Store store,
                                                        u32 quota, int first, Sieved known) {
    if (known.cut == 0) known.cut = first_cut<kSets, kFloatKeys>(s, store, kLeftKeys, quota, false);
    u32 hits[kChunkKeys / 32];
    u32 mine = look(store, known.cut, hits);
    u32 through = sum_in_set<kSets>(mine);
    u32 all = last_of_set<kSets>(through);
    if (__syncthreads_or(known.left + all > kRoom ? 1 : 0) != 0) {
      const u32 highest = sets_max<kSets>(store.best);
      if (set_lane<kSets>() == 0) atomicMax(&s.highest[set_of_thread<kSets>()], highest);
      __syncthreads();
      Cut cut{known.cut, 0xFFFFFFFFU, false};
      narrow_cut<kSets>(s, store, quota, quota + quota / 4 + 8, cut);
      known.cut = cut.threshold;
      known.left = sift(ids, store, known.left, known.cut);
      mine = look(store, known.cut, hits);
      through = sum_in_set<kSets>(mine);
      all = last_of_set<kSets>(through);
    }
    u32 place = known.left + through - mine;
#pragma unroll 1
    for (int part = 0; part < kChunkKeys / 32; ++part) {
#pragma unroll 1
      for (u32 h = part == 0 ? hits[0] : hits[1]; h != 0; h &= h - 1U, ++place) {
        const int i = part * 32 + __ffs(static_cast<int>(h)) - 1;
        const u32 key = *own(store, kLeftKeys + i);
        if (place < kRoom) {
          put(ids, store, place, key, static_cast<u32>((first + i) * kLanes + set_lane<kSets>()));
        } else {
          known.lost = max(known.lost, key);
        }
      }
    }
    known.left = min(known.left + all, kRoom);
    __syncwarp();
    return known;
  }
};

}  // namespace fasa::ops::paged
