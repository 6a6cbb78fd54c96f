// Launch 2 of the fused step: threshold over the pruned lists, attention over the kept rows, combine.
//
//   a = cap(scale * q.k), out = sum exp(a) v / (sum exp(a) + exp(sink)), lse = log of that
//
// Mapping: a cluster a row, a row being (sequence, query token, up to 8 query heads that keep the same
//   tokens). Every CTA finds the threshold for itself (it saves an exchange) and takes every
//   cluster-th kept token; a warp takes 16 of them at a time: their rows of K and V are copied to shared memory whole, as memory gives
//   whole rows faster; q.k^T (heads in rows 0-7) and v^T.p^T (dims in rows) as m16n8k16 on the tensor cores, so that p needs no
//   shuffle. The CTAs' partial sums meet in distributed shared memory.
// Memory: 2 * 2 * head_dim bytes a kept token and row, and the pruned lists (L2) once a CTA.
// Numerics: f32 softmax with a running maximum; p is rounded to the type of V.
// Ordering: the kept list is placed by counting, sums are in a fixed order: bit-identical.
// Tried and dropped (docs/gpu-measurements.md): K and V as pieces of 16 bytes straight to registers; attention at 64 registers (spills); combining
//   over cluster barriers (their release is a fence of all memory; stores that count bytes on the receiver's own barrier need none);
//   loops over a runtime number of threads (a division each).
#pragma once

#include "src/ops/paged/paged_codec.cuh"
#include "src/ops/paged/paged_exact.cuh"
#include "src/ops/paged/paged_layout.h"

namespace fasa::ops::paged {

inline constexpr int kSelectTies = 128;

// Keys of the lists that a thread holds in registers; the others stay in shared memory.
inline constexpr int kHeldKeys = 8;

struct SelectShared {
  u32 hist[kPruneBins];
  u32 none[32];  // where a lane counts what is not to be counted, which takes no branch
  alignas(16) u32 warps[kThreads / 32];
  alignas(16) u32 ties[kSelectTies];  // 0 past the last one
  u32 num_ties;
  u32 tie_key;
  u32 tie_equal;

  // Followed by a barrier.
  __device__ void clear() {
    for (int i = threadIdx.x; i < kPruneBins; i += kThreads) hist[i] = 0;
    if (threadIdx.x < kSelectTies) ties[threadIdx.x] = 0;
    if (threadIdx.x == 0) num_ties = 0;
  }
};

struct Threshold {
  u32 key;     // kept: keys above it,
  u32 equal;   // and this many equal to it, the first ones
  u32 kept;    // in all
  bool exact;  // no CTA kept back a key above the last one kept (one equal to it is as good)
};

// What the bounds of all CTAs of launch 1 say together; every warp reads them for itself.
__device__ __forceinline__ uint4 join_bounds(const uint4* bounds, int ctas) {
  uint4 all = make_uint4(0, 0, 0xFFFFFFFFU, 0);
#pragma unroll 1
  for (int i = threadIdx.x & 31; i < ctas; i += 32) {
    const uint4 b = load_stream<uint4>(bounds + i);
    all = make_uint4(max(all.x, b.x), max(all.y, b.y), min(all.z, b.z), all.w + b.w);
  }
  return make_uint4(__reduce_max_sync(kFullWarp, all.x), __reduce_max_sync(kFullWarp, all.y),
                    __reduce_min_sync(kFullWarp, all.z), __reduce_add_sync(kFullWarp, all.w));
}

// The lists of a set, `count` (even) entries in shared memory, of which each thread copies and looks at every kThreads-th pair.
struct Lists {
  uint2* slots;
  int count;
  u32 held[kHeldKeys];

  // Entry e of this thread's j-th pair.
  static __device__ __forceinline__ int entry(int j, int e) {
    return 2 * (j * kThreads + static_cast<int>(threadIdx.x)) + e;
  }
  __device__ __forceinline__ void copy(const uint2* from) {
#pragma unroll 1
    for (int i = entry(0, 0); i < count; i += 2 * kThreads) copy_async16(shared_address(slots + i), from + i);
  }
  // After the copies, which need no barrier.
  __device__ __forceinline__ void hold() {
#pragma unroll
    for (int j = 0; j < kHeldKeys; j += 2) {
      const int i = entry(j / 2, 0);
      uint4 pair = make_uint4(0, 0, 0, 0);
      if (i < count) pair = *reinterpret_cast<const uint4*>(slots + i);
      held[j] = pair.x;
      held[j + 1] = pair.z;
    }
  }
  // f(key) for each entry of this thread; key 0: none.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    for_held([&](u32 k, int) { f(k); });
    for_others([&](const uint4& pair) {
      f(pair.x);
      f(pair.z);
    });
  }
  // f(key, j) for those held, the j-th.
  template <class F>
  __device__ __forceinline__ void for_held(const F& f) const {
#pragma unroll
    for (int j = 0; j < kHeldKeys; j += 4) {
      if (j * kThreads >= count) break;
#pragma unroll
      for (int i = j; i < j + 4; ++i) f(held[i], i);
    }
  }
  // f(pair of entries) for the others, by whole warps.
  template <class F>
  __device__ __forceinline__ void for_others(const F& f) const {
#pragma unroll 2
    for (int j = kHeldKeys / 2; 2 * j * kThreads < count; ++j) {
      uint4 pair = make_uint4(0, 0, 0, 0);
      if (entry(j, 0) < count) pair = *reinterpret_cast<const uint4*>(slots + entry(j, 0));
      f(pair);
    }
  }
};

// How `key` stands among the first `inside` of `ties`.
__device__ __forceinline__ void rank_tie(const u32* ties, u32 inside, u32 key, u32& greater, u32& same) {
  greater = same = 0;
#pragma unroll 1
  for (u32 j = 0; j < inside; j += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(ties + j);
    for (const u32 k : {four.x, four.y, four.z, four.w}) {
      greater += k > key ? 1U : 0U;
      same += k == key ? 1U : 0U;
    }
  }
}

// Among the first `inside` (1..kSelectTies) of the ties: the want-th best, and how many equal to it are wanted.
__device__ __forceinline__ void rank_ties(SelectShared& s, u32 inside, u32 want, u32& key, u32& equal) {
  u32 greater;
  u32 same;
  // Where all keys equal to it are wanted, they count as above the key below it.
  const auto settle = [&](u32 k, u32 above, u32 among) {
    const bool all = above + among == want;
    key = all ? k - 1U : k;
    equal = all ? 0U : want - above;
  };
  if (inside <= 32) {
    // Every warp for itself, which saves a barrier.
    const u32 lane = threadIdx.x & 31;
    const u32 mine = s.ties[lane];
    rank_tie(s.ties, inside, mine, greater, same);
    const bool is_it = lane < inside && greater < want && greater + same >= want;
    const int it = __ffs(static_cast<int>(__ballot_sync(kFullWarp, is_it))) - 1;
    settle(__shfl_sync(kFullWarp, mine, it), __shfl_sync(kFullWarp, greater, it), __shfl_sync(kFullWarp, same, it));
    return;
  }
  if (threadIdx.x < inside) {
    const u32 mine = s.ties[threadIdx.x];
    rank_tie(s.ties, inside, mine, greater, same);
    if (greater < want && greater + same >= want) {
      settle(mine, greater, same);
      s.tie_key = key;  // equal keys all write the same
      s.tie_equal = equal;
    }
  }
  __syncthreads();
  key = s.tie_key;
  equal = s.tie_equal;
}

// Keys first..last of the lists, of which the want-th best is wanted, want being `need` less those above them.
struct KeyRange {
  u32 first;
  u32 last;
  u32 above;    // keys above `last`
  u32 through;  // and with those in the range

  __device__ __forceinline__ u32 inside() const { return through - above; }
};
// The bin, one of kPruneBins from `from` to `to`, that holds the need-th best key; the first bin begins at `least`.
__device__ __forceinline__ KeyRange range_of_bin(const u32* hist, u32 above, u32 need, u32 least, u32 from, u32 to,
                                                 int shift) {
  const BinFound f = find_bin(hist, above, need);
  const u32 start = from + (static_cast<u32>(f.bin) << shift);
  return {f.bin == 0 ? least : start, min(to, start + ((1U << shift) - 1U)), f.before, f.through};
}
// Narrows until few keys are inside, or only equal ones, or all of them are wanted and above `least`. Rare: a call.
__device__ __noinline__ inline KeyRange narrow(u32* hist, const uint2* slots, int count, u32 need, KeyRange r,
                                               u32 least) {
  do {
    __syncthreads();
    for (int i = threadIdx.x; i < kPruneBins; i += kThreads) hist[i] = 0;
    __syncthreads();
    const int shift = bin_shift(r.last - r.first, 9);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const u32 k = slots[i].x;
      if (k >= r.first && k <= r.last) atomicAdd(&hist[bin_place((k - r.first) >> shift)], 1U);
    }
    __syncthreads();
    r = range_of_bin(hist, r.above, need, r.first, r.first, r.last, shift);
  } while (r.inside() > kSelectTies && r.first != r.last && (r.through != need || r.first <= least));
  return r;
}

// The `need` best of the lists, whose bounds are known.
__device__ __forceinline__ Threshold find_threshold(SelectShared& s, const Lists& lists, u32 need,
                                                    const uint4& bounds) {
  if (bounds.w < need) return {0, 0, bounds.w, bounds.x == 0};
  const u32 from = min(bounds.z, bounds.y);  // few keys are below it: they count as it
  const int shift = bin_shift(bounds.y - from, 9);
  u32* none = s.none + (threadIdx.x & 31);
  lists.for_each([&](u32 k) {
    u32* bin = s.hist + bin_place((max(k, from) - from) >> shift);
    atomicAdd(k != 0 ? bin : none, 1U);
  });
  __syncthreads();
  KeyRange r = range_of_bin(s.hist, 0, need, 1, from, bounds.y, shift);
  if (r.inside() > kSelectTies && r.first != r.last && (r.through != need || r.first <= bounds.x)) {
    r = narrow(s.hist, lists.slots, lists.count, need, r, bounds.x);
  }
  Threshold t = {r.first, need - r.above, need, false};
  if (r.through == need && r.first > bounds.x) {
    t = {r.first - 1U, 0, need, false};
  } else if (r.first != r.last) {
    const auto put = [&](u32 k) {
      if (k >= r.first && k <= r.last) s.ties[atomicAdd(&s.num_ties, 1U)] = k;
    };
    u32 ties = 0;  // of the keys held: few threads have any, and hardly one has two
    u32 tie = 0;
    lists.for_held([&](u32 k, int) {
      const bool inside = k >= r.first && k <= r.last;
      ties += inside ? 1U : 0U;
      tie = inside ? k : tie;
    });
    if (ties == 1) {
      put(tie);
    } else if (ties > 1) {
      lists.for_held([&](u32 k, int) { put(k); });
    }
    lists.for_others([&](const uint4& pair) {
      put(pair.x);
      put(pair.z);
    });
    __syncthreads();
    rank_ties(s, r.inside(), need - r.above, t.key, t.equal);
  }
  t.exact = bounds.x <= (t.equal != 0 ? t.key : t.key + 1U);
  return t;
}

// Calls emit(token, place) for every kept entry whose place is wanted; places 0..kept-1 in a fixed order: those above the threshold,
// then the first of those equal to it; warp by warp, by the number of a lane's entry, by lanes.
template <class Wanted, class Emit>
__device__ __forceinline__ void emit_kept(SelectShared& s, const Lists& lists, const Threshold& t, const Wanted& wanted,
                                          const Emit& emit) {
  const u32 before = (1U << (threadIdx.x & 31)) - 1U;
  u32 least = t.key + 1U;
  u32 most = 0xFFFFFFFFU;
  u32 place = 0;
  u32 end = t.kept - t.equal;
  // A second turn, for equal keys, is rare.
#pragma unroll 1
  while (true) {
    const auto kept_by = [&](u32 k) { return __ballot_sync(kFullWarp, k >= least && k <= most); };
    u32 masks[kHeldKeys];
    u32 total = 0;
    lists.for_held([&](u32 k, int j) {
      masks[j] = kept_by(k);
      total += static_cast<u32>(__popc(masks[j]));
    });
    lists.for_others(
        [&](const uint4& pair) { total += static_cast<u32>(__popc(kept_by(pair.x)) + __popc(kept_by(pair.z))); });
    s.warps[threadIdx.x >> 5] = total;  // the same of all lanes
    __syncthreads();
    u32 of_warps;
    u32 of_all;
    sum_warps(s.warps, of_warps, of_all);
    place += of_warps;
    const auto put = [&](u32 mask, const u32* token) {
      const u32 at = place + static_cast<u32>(__popc(mask & before));
      if ((mask & (before + 1U)) != 0 && at < end && wanted(at)) emit(static_cast<int>(*token), at);
      place += static_cast<u32>(__popc(mask));
    };
    lists.for_held([&](u32, int j) { put(masks[j], &lists.slots[Lists::entry(j / 2, j & 1)].y); });
    lists.for_others([&](const uint4& pair) {
      put(kept_by(pair.x), &pair.y);
      put(kept_by(pair.z), &pair.w);
    });
    if (end == t.kept) return;
    __syncthreads();
    place = end;
    end = t.kept;
    least = most = t.key;
  }
}

template <bool kF16>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  if constexpr (kF16) {
    mma_f16(d, a0, a1, a2, a3, b0, b1);
  } else {
    mma_bf16(d, a0, a1, a2, a3, b0, b1);
  }
}
template <bool kF16>
__device__ __forceinline__ u32 pack_pair(float x, float y) {
  if constexpr (kF16) {
    return static_cast<u32>(__half_as_ushort(__float2half_rn(x))) |
           static_cast<u32>(__half_as_ushort(__float2half_rn(y))) << 16;
  } else {
    return static_cast<u32>(__bfloat16_as_ushort(__float2bfloat16_rn(x))) |
           static_cast<u32>(__bfloat16_as_ushort(__float2bfloat16_rn(y))) << 16;
  }
}
template <bool kF16>
__device__ __forceinline__ unsigned short to_half(float x) {
  return kF16 ? __half_as_ushort(__float2half_rn(x)) : __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

static_assert(sizeof(SelectShared) <= kSelectSharedBytes);
static_assert(sizeof(ExactShared) <= kSelectSharedBytes);

}  // namespace fasa::ops::paged
