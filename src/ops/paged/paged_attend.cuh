// Launch 2 of the fused step: threshold over the pruned lists, attention over the kept rows, combine.
//
//   a = cap(scale * q.k), out = sum exp(a) v / (sum exp(a) + exp(sink)), lse = log of that
//
// Mapping: a cluster a row, a row being (sequence, query token, up to 8 query heads that keep the same
//   tokens). Every CTA finds the threshold for itself (it saves an exchange) and takes every
//   cluster-th kept token; a warp takes 16 of them at a time: q.k^T (heads in rows 0-7) and v^T.p^T (dims in
//   rows) as m16n8k16 on the tensor cores, so that p needs no shuffle; K and V rows are loaded once as 16-byte
//   pieces, never staged. The CTAs' partial sums meet in distributed shared memory.
// Memory: 2 * 2 * head_dim bytes a kept token and row, and the pruned lists (L2) once a CTA.
// Numerics: f32 softmax with a running maximum; p is rounded to the type of V.
// Ordering: the kept list is placed by counting, sums are in a fixed order: bit-identical.
// Tried and dropped (docs/gpu.md): attention at 64 registers (spills); combining over cluster barriers (their release is
//   a fence of all memory; stores that count bytes on the receiver's own barrier need none); loops over a runtime number
//   of threads (a division each).
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
  u32 warps[32];
  u32 ties[kSelectTies];
  u32 num_ties;
  u32 tie_key;
  u32 tie_equal;

  // Followed by a barrier.
  __device__ void clear() {
    for (int i = threadIdx.x; i < kPruneBins; i += kThreads) hist[i] = 0;
    if (threadIdx.x == 0) num_ties = 0;
  }
};

struct Threshold {
  u32 key;     // kept: keys above it,
  u32 equal;   // and this many equal to it, the first ones
  u32 kept;    // in all
  bool exact;  // no CTA kept back a key above `key` (one equal to it is as good as those kept)
};

// What the bounds of all CTAs of launch 1 say together; every warp reads them for itself.
__device__ __forceinline__ uint4 join_bounds(const uint4* bounds, int ctas) {
  uint4 all = make_uint4(0, 0, 0xFFFFFFFFU, 0);
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
  // f(key, j) for each entry of this thread, the j-th; key 0: none.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
#pragma unroll
    for (int j = 0; j < kHeldKeys; ++j) f(held[j], j);
#pragma unroll 4
    for (int j = kHeldKeys; entry(j / 2, 0) < count; j += 2) {
      const uint4 pair = *reinterpret_cast<const uint4*>(slots + entry(j / 2, 0));
      f(pair.x, j);
      f(pair.z, j + 1);
    }
  }
};

// How `key` stands among the first `inside` of `ties`.
__device__ __forceinline__ void rank_tie(const u32* ties, u32 inside, u32 key, u32& greater, u32& same) {
  greater = same = 0;
#pragma unroll 4
  for (u32 j = 0; j < inside; ++j) {
    const u32 k = ties[j];
    greater += k > key ? 1U : 0U;
    same += k == key ? 1U : 0U;
  }
}

// Among the first `inside` (1..kSelectTies) of the ties: the want-th best, and how many equal to it are wanted.
__device__ __forceinline__ void rank_ties(SelectShared& s, u32 inside, u32 want, u32& key, u32& equal) {
  u32 greater;
  u32 same;
  if (inside <= 32) {
    // Every warp for itself, which saves a barrier.
    const u32 lane = threadIdx.x & 31;
    const u32 mine = s.ties[lane];
    rank_tie(s.ties, inside, mine, greater, same);
    const bool is_it = lane < inside && greater < want && greater + same >= want;
    const int it = __ffs(static_cast<int>(__ballot_sync(kFullWarp, is_it))) - 1;
    key = __shfl_sync(kFullWarp, mine, it);
    equal = want - __shfl_sync(kFullWarp, greater, it);
    return;
  }
  if (threadIdx.x < inside) {
    const u32 mine = s.ties[threadIdx.x];
    rank_tie(s.ties, inside, mine, greater, same);
    if (greater < want && greater + same >= want) {
      // Equal keys all write the same.
      s.tie_key = mine;
      s.tie_equal = want - greater;
    }
  }
  __syncthreads();
  key = s.tie_key;
  equal = s.tie_equal;
}

// The `need` best of the lists, whose bounds are known.
__device__ __forceinline__ Threshold find_threshold(SelectShared& s, const Lists& lists, u32 need, const uint4& bounds) {
  if (bounds.w < need) return {0, 0, bounds.w, bounds.x == 0};
  u32 from = min(bounds.z, bounds.y);  // few keys are below it, at first: they count as it
  u32 to = bounds.y;
  u32 least = 1;
  u32 above = 0;
  Threshold t = {0, 0, need, false};
  while (true) {
    const int shift = bin_shift(to - from, 9);
    lists.for_each([&](u32 k, int) {
      if (k >= least && k <= to) atomicAdd(&s.hist[bin_place((max(k, from) - from) >> shift)], 1U);
    });
    __syncthreads();
    const BinFound f = find_bin(s.hist, above, need);
    const u32 last = min(to, from + (static_cast<u32>(f.bin) << shift) + ((1U << shift) - 1U));
    const u32 first = f.bin == 0 ? least : from + (static_cast<u32>(f.bin) << shift);
    const u32 inside = f.through - f.before;
    if (f.through == need && first > bounds.x) {
      t.key = first - 1U;
      break;
    }
    if (first == last) {
      t.key = first;
      t.equal = need - f.before;
      break;
    }
    if (inside <= kSelectTies) {
      lists.for_each([&](u32 k, int) {
        if (k >= first && k <= last) s.ties[atomicAdd(&s.num_ties, 1U)] = k;
      });
      __syncthreads();
      rank_ties(s, inside, need - f.before, t.key, t.equal);
      break;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kPruneBins; i += kThreads) s.hist[i] = 0;
    above = f.before;
    from = least = first;
    to = last;
    __syncthreads();
  }
  t.exact = bounds.x <= t.key;
  return t;
}

// Calls emit(token, place) for every kept entry; places 0..kept-1 in a fixed order.
template <class Emit>
__device__ __forceinline__ void emit_kept(u32* warps, const Lists& lists, const Threshold& t, const Emit& emit) {
  // Both counts in one word: above in the low half, equal in the high one (count < 2^16).
  u32 mine = 0;
  u32 held = 0;  // kept, of the keys held
  lists.for_each([&](u32 k, int j) {
    const u32 count = k > t.key ? 1U : (k == t.key && t.equal != 0) ? 0x10000U : 0U;
    mine += count;
    if (j < kHeldKeys) held |= (count != 0 ? 1U : 0U) << j;
  });
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  u32 x = mine;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const u32 y = __shfl_up_sync(kFullWarp, x, o);
    if (lane >= o) x += y;
  }
  if (lane == 31) warps[warp] = x;
  __syncthreads();
  if (mine == 0) return;
  u32 place = x - mine;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) place += w < warp ? warps[w] : 0U;
  const u32 above = t.kept - t.equal;
  const auto emit_entry = [&](u32 key, u32 token) {
    if (key > t.key) {
      emit(static_cast<int>(token), place & 0xFFFFU);
      place += 1U;
    } else if (key == t.key && t.equal != 0) {
      if ((place >> 16) < t.equal) emit(static_cast<int>(token), above + (place >> 16));
      place += 0x10000U;
    }
  };
  for (; held != 0; held &= held - 1U) {
    const int j = __ffs(static_cast<int>(held)) - 1;
    const uint2 e = lists.slots[Lists::entry(j / 2, j & 1)];
    emit_entry(e.x, e.y);
  }
#pragma unroll 2
  for (int j = kHeldKeys; Lists::entry(j / 2, 0) < lists.count; j += 2) {
    const uint4 pair = *reinterpret_cast<const uint4*>(lists.slots + Lists::entry(j / 2, 0));
    emit_entry(pair.x, pair.y);
    emit_entry(pair.z, pair.w);
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
