// Exact pruning inside one CTA: of the keys that its threads hold, publish at least the `quota` best
// and at most `slots`, and their bounds: (no key kept back is above x, the best key is y, few or none published are
// below z, w are published). A reader that finds the wanted threshold at or above every CTA's x has seen enough.
//
// The first cut looks at few samples, each the best of some keys: the quota-th best of these is at or below
// the quota-th best key, and little is above it. Ranges narrow by 2^9 a round where more than `slots`
// keys pass; only equal keys can still overflow, and of these it does not matter which are kept back.
//
// Everything is placed by counting in a fixed order, so the same keys give the same bytes.
#pragma once

#include "src/ops/paged/paged_device.cuh"
#include "src/ops/paged/paged_sets.cuh"

namespace fasa::ops::paged {

// The k-th unit of tokens of CTA `rank` of `ctas` (below 2^16): neighbouring units lie in different CTAs, and so do units at
// any regular distance.
__device__ __forceinline__ int spread_unit(int k, int rank, int ctas) {
  const u32 hash = static_cast<u32>(k) * 0x9E3779B1U >> 16;
  const int place = rank + static_cast<int>(hash * static_cast<u32>(ctas) >> 16);
  return k * ctas + (place < ctas ? place : place - ctas);
}

// Where bin b is counted: find_bin's lanes then read 16-byte words of all banks.
__device__ __forceinline__ u32 bin_place(u32 b) { return b ^ (b >> 3 & 12U); }

struct BinFound {
  int bin;      // -1: the counts never reach the target
  u32 before;   // above the bin
  u32 through;  // with the bin
};

// From the top bin down, where `above` plus the counts reaches `target`. Called by whole warps: lane l sums 16 bins, then 16
// lanes take one each of the 16 in which it is.
__device__ __forceinline__ BinFound find_bin(const u32* counts, u32 above, u32 target) {
  constexpr int kEach = kPruneBins / 32;
  static_assert(kEach == 16);
  const int lane = threadIdx.x & 31;
  u32 sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; i += 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(counts + bin_place(static_cast<u32>((31 - lane) * kEach + i)));
    sum += v.x + v.y + v.z + v.w;
  }
  const u32 x = sum_below(sum);
  const u32 hit = __ballot_sync(kFullWarp, above + x >= target);
  if (hit == 0) return {-1, 0, 0};
  const int first = __ffs(static_cast<int>(hit)) - 1;
  const int top = (31 - first) * kEach + kEach - 1;
  const u32 one = counts[bin_place(static_cast<u32>(top - (lane & (kEach - 1))))];
  u32 through = sum_below<kEach>(one);
  through += __shfl_sync(kFullWarp, above + x - sum, first);
  const int in = __ffs(static_cast<int>(__ballot_sync(kFullWarp, lane < kEach && through >= target))) - 1;
  return {top - in, __shfl_sync(kFullWarp, through - one, in), __shfl_sync(kFullWarp, through, in)};
}

// Bits to drop from a difference so that it counts below 2^bits.
__device__ __forceinline__ int bin_shift(u32 range, int bits) {
  const int used = 32 - __clz(static_cast<int>(range));
  return used > bits ? used - bits : 0;
}

template <int kSets>
struct PruneShared {
  u32 hist[kSets * kPruneBins];
  u32 warps[kSets * (kThreads / 32)];
  BinFound found[kSets];
  u32 highest[kSets];
  u32 lowest[kSets];
  u32 lost[kSets];  // paged_sieve.cuh

  __device__ void clear_histograms() {
    for (int i = threadIdx.x; i < kSets * kPruneBins; i += kThreads) hist[i] = 0;
  }
  // Followed by a barrier before the first prune.
  __device__ void clear() {
    clear_histograms();
    if (threadIdx.x < kSets) {
      highest[threadIdx.x] = 0;
      lowest[threadIdx.x] = 0xFFFFFFFFU;
      lost[threadIdx.x] = 0;
    }
  }
  // All threads of the CTA, after a barrier; several sets share the work, one warp a set.
  __device__ BinFound find(int set, u32 above, u32 target) {
    if constexpr (kSets == 1) {
      return find_bin(hist, above, target);
    } else {
      const int warp = threadIdx.x >> 5;
      if (warp < kSets) {
        const BinFound f = find_bin(hist + warp * kPruneBins, __shfl_sync(kFullWarp, above, 4 * warp),
                                    __shfl_sync(kFullWarp, target, 4 * warp));
        if ((threadIdx.x & 31) == 0) found[warp] = f;
      }
      __syncthreads();
      return found[set];
    }
  }
};

static_assert(sizeof(PruneShared<1>) <= kPruneSharedBytes1);
static_assert(sizeof(PruneShared<4>) <= kPruneSharedBytes4);

// Of eight counts, one a warp and 16-byte aligned: the sum of those of the warps before this one, and of all.
__device__ __forceinline__ void sum_warps(const u32* counts, u32& before, u32& total) {
  static_assert(kThreads / 32 == 8);
  const uint4 a = *reinterpret_cast<const uint4*>(counts);
  const uint4 b = *reinterpret_cast<const uint4*>(counts + 4);
  const int warp = static_cast<int>(threadIdx.x >> 5);
  before = 0;
  total = 0;
  int w = 0;
  for (const u32 n : {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}) {
    before += w < warp ? n : 0U;
    total += n;
    ++w;
  }
}

// Items of this thread's set in the warps before this one, and in all, where this one has `mine`. Ends without a barrier: `warps`
// may be written again after the next one.
template <int kSets>
__device__ __forceinline__ void place_warps(PruneShared<kSets>& s, int set, u32 mine, u32& place, u32& total) {
  const int warp = threadIdx.x >> 5;
  s.warps[set * 8 + warp] = mine;  // all lanes of the set write the same
  __syncthreads();
  sum_warps(s.warps + set * 8, place, total);
}
// Places of `mine` items a thread, counted in thread order within a set.
template <int kSets>
__device__ __forceinline__ void place_items(PruneShared<kSets>& s, int set, u32 mine, u32& place, u32& total) {
  const u32 x = sum_in_set<kSets>(mine);
  place_warps<kSets>(s, set, last_of_set<kSets>(x), place, total);
  place += x - mine;
}

// The keys of each thread in shared memory, kVector at a time beside each other: key i of thread t at
// (i / kVector * kThreads + t) * kVector + i % kVector. Key: u32, or 16 bits (ShortKeyStore).
template <int kVector>
struct KeyStore {
  using Key = u32;
  static constexpr int kWidth = kVector;
  u32* keys;
  int n = 0;
  u32 best = 0;

  __device__ __forceinline__ u32* at(int i) const { return keys + (i / kVector * kThreads + threadIdx.x) * kVector; }
  __device__ __forceinline__ void put(const u32* k) {
    u32* to = at(n);
    if constexpr (kVector == 1) {
      *to = k[0];
    } else if constexpr (kVector == 2) {
      *reinterpret_cast<uint2*>(to) = make_uint2(k[0], k[1]);
    } else {
      *reinterpret_cast<uint4*>(to) = make_uint4(k[0], k[1], k[2], k[3]);
    }
    n += kVector;
#pragma unroll
    for (int i = 0; i < kVector; ++i) best = max(best, k[i]);
  }
  __device__ __forceinline__ u32 best_key() const { return best; }
  __device__ __forceinline__ void get(int i, u32 (&k)[kVector]) const { load(at(i), k); }
  static __device__ __forceinline__ void load(const u32* from, u32 (&k)[kVector]) {
    if constexpr (kVector == 1) {
      k[0] = *from;
    } else if constexpr (kVector == 2) {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      k[0] = v.x;
      k[1] = v.y;
    } else {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      k[0] = v.x;
      k[1] = v.y;
      k[2] = v.z;
      k[3] = v.w;
    }
  }
  // Sets the bits, from `bit` on, of the keys from there on that reach `least`.
  static __device__ __forceinline__ void reaching(const u32* from, u32 least, int bit, u32& some) {
    u32 k[kVector];
    load(from, k);
#pragma unroll
    for (int j = 0; j < kVector; ++j) some |= k[j] >= least ? 1U << (bit + j) : 0U;
  }
  // f(number, key) for the keys from..to-1 of this thread.
  template <class F>
  __device__ __forceinline__ void for_keys(int from, int to, const F& f) const {
#pragma unroll 4
    for (int i = from; i < to; i += kVector) {
      u32 k[kVector];
      get(i, k);
#pragma unroll
      for (int j = 0; j < kVector; ++j) f(i + j, k[j]);
    }
  }
};

// The same of keys of 16 bits, which are put as the bits of the scores that they are of.
template <class Codec, int kVector>
struct ShortKeyStore {
  using Key = unsigned short;
  static constexpr int kWidth = kVector;
  static_assert(kVector == 2 || kVector == 4);
  unsigned short* keys;
  int n = 0;
  u32 best = 0;  // of every other key in each half

  __device__ __forceinline__ unsigned short* at(int i) const {
    return keys + (i / kWidth * kThreads + threadIdx.x) * kWidth;
  }
  __device__ __forceinline__ void put(const u32* score) {
    const u32 low = Codec::short_keys(score[0], score[1]);
    if constexpr (kVector == 2) {
      *reinterpret_cast<u32*>(at(n)) = low;
      best = __vmaxu2(best, low);
    } else {
      const u32 high = Codec::short_keys(score[2], score[3]);
      *reinterpret_cast<uint2*>(at(n)) = make_uint2(low, high);
      best = __vmaxu2(best, __vmaxu2(low, high));
    }
    n += kWidth;
  }
  __device__ __forceinline__ u32 best_key() const { return max(best & 0xFFFFU, best >> 16); }
  __device__ __forceinline__ void get(int i, u32 (&k)[kWidth]) const { load(at(i), k); }
  // The words of keys from there on.
  static __device__ __forceinline__ void words(const unsigned short* from, u32 (&w)[kWidth / 2]) {
    if constexpr (kVector == 2) {
      w[0] = *reinterpret_cast<const u32*>(from);
    } else {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      w[0] = v.x;
      w[1] = v.y;
    }
  }
  static __device__ __forceinline__ void load(const unsigned short* from, u32 (&k)[kWidth]) {
    u32 w[kWidth / 2];
    words(from, w);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) k[j] = (j & 1) != 0 ? w[j / 2] >> 16 : w[j / 2] & 0xFFFFU;
  }
  static __device__ __forceinline__ void reaching(const unsigned short* from, u32 least, int bit, u32& some) {
    u32 w[kWidth / 2];
    words(from, w);
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) {
      some |= (w[j / 2] & 0xFFFFU) >= least ? 1U << (bit + j) : 0U;
      some |= w[j / 2] >= least << 16 ? 2U << (bit + j) : 0U;
    }
  }
  // Whether one of eight keys does; least: not 0.
  static __device__ __forceinline__ bool any_reaches(const uint4& k, u32 least) {
    const u32 below = (least - 1U) * 0x10001U;
    return __vmaxu2(__vmaxu2(__vmaxu2(k.x, k.y), k.z), __vmaxu2(k.w, below)) != below;
  }
};

template <int kVector>
__device__ __forceinline__ u32 largest_of(const u32 (&k)[kVector]) {
  u32 largest = k[0];
#pragma unroll
  for (int i = 1; i < kVector; ++i) largest = max(largest, k[i]);
  return largest;
}

// A key that at least `quota` of the set's keys reach, and few more, by all threads of the CTA. base: keys of a thread that are
// counted one by one, whatever the quota; again: not the first time.
template <int kSets, bool kFloatKeys, int kVector>
__device__ __forceinline__ u32 first_cut(PruneShared<kSets>& s, const KeyStore<kVector>& store, int base, u32 quota,
                                         bool again) {
  constexpr int nt = kThreads;
  const int set = set_of_thread<kSets>();
  const int n = store.n;
  if (again) {
    __syncthreads();
    s.clear_histograms();
  }
  {
    const u32 h = sets_max<kSets>(store.best);
    const u32 l = ~sets_max<kSets>(store.best != 0 ? ~store.best : 0U);
    if (set_lane<kSets>() == 0) {
      atomicMax(&s.highest[set], h);
      atomicMin(&s.lowest[set], l);
    }
  }
  __syncthreads();
  const u32 highest = s.highest[set];
  u32 low = min(s.lowest[set], highest);
  if (kFloatKeys && highest > 0x80000000U) {
    // Keys of floats are spaced by their logarithm; do not spend the bins on those around zero.
    low = max(low, key_of(__uint_as_float(highest ^ 0x80000000U) * 0.03125F));
  }
  const int shift = bin_shift(highest - low, 9);
  u32* hist = s.hist + set * kPruneBins;
  const auto count = [&](u32 k) { atomicAdd(&hist[bin_place(k < low ? 0U : (k - low) >> shift)], 1U); };
  // Samples, the best of every `group` keys (a power of two): at least four for each key wanted, where there are that many.
  const int extra = __clz(static_cast<int>(4 * quota - 1)) - 1 - __clz(max(1, (n - base) * (nt / kSets)));
  const int group = 1 << max(0, extra);
  if (group >= n) {
    if (store.best != 0) count(store.best);
  } else {
    const int step = max(group, kVector);
#pragma unroll 1
    for (int i = 0; i < n; i += i < base ? kVector : step) {
      u32 k[kVector];
      store.get(i, k);
      if (i < base || group < kVector) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          if (k[j] != 0) count(k[j]);
        }
        continue;
      }
      u32 sample = largest_of(k);
#pragma unroll 2
      for (int j = i + kVector; j < min(n, i + group); j += kVector) {
        store.get(j, k);
        sample = max(sample, largest_of(k));
      }
      if (sample != 0) count(sample);
    }
  }
  __syncthreads();
  const BinFound first = s.find(set, 0, quota);
  return first.bin <= 0 ? 1U : low + (static_cast<u32>(first.bin) << shift);
}

struct Cut {
  u32 threshold;  // `total` keys of the set reach it, the `quota` best among them
  u32 total;
  bool stuck;  // those equal to it are too many
};
// Raises a cut until at most `most` (quota and more) keys reach it, or only equal ones are left to part. Whether it did anything.
template <int kSets, int kVector>
__device__ __forceinline__ bool narrow_cut(PruneShared<kSets>& s, const KeyStore<kVector>& store, u32 quota, u32 most,
                                           Cut& c) {
  const int set = set_of_thread<kSets>();
  u32* hist = s.hist + set * kPruneBins;
  u32 above = 0;
  u32 from = c.threshold;
  u32 to = s.highest[set];
  bool refined = false;
  // With one set all threads have the same.
  while (kSets == 1 ? c.total > most && !c.stuck : __syncthreads_or(c.total > most && !c.stuck) != 0) {
    refined = true;
    const bool active = c.total > most && !c.stuck;
    __syncthreads();
    s.clear_histograms();
    __syncthreads();
    const int shift = bin_shift(to - from, 9);
    if (active) {
      store.for_keys(0, store.n, [&](int, u32 k) {
        if (k >= from && k <= to) atomicAdd(&hist[bin_place((k - from) >> shift)], 1U);
      });
    }
    __syncthreads();
    const BinFound f = s.find(set, above, quota);
    if (active && f.bin < 0) {
      c.stuck = true;  // the keys that are there reach no quota
    } else if (active) {
      c.threshold = from + (static_cast<u32>(f.bin) << shift);
      c.total = f.through;
      c.stuck = shift == 0;
      above = f.before;
      to = min(to, c.threshold + ((1U << shift) - 1U));
      from = c.threshold;
    }
  }
  return refined;
}

// token(i): the position of this thread's key i. out: the slots of its set (set_of_thread), or null. bounds: of that set. base, again: as
// in first_cut; forgotten: the best key that is there no more.
template <int kSets, bool kFloatKeys, int kVector, class TokenOf>
__device__ __forceinline__ void prune(PruneShared<kSets>& s, const KeyStore<kVector>& store, u32 quota, u32 slots,
                                      uint2* out, uint4* bounds, const TokenOf& token, int base = 0, bool again = false,
                                      u32 forgotten = 0) {
  constexpr int nt = kThreads;
  const int tid = threadIdx.x;
  const int set = set_of_thread<kSets>();
  const int member = member_of_set<kSets>();
  const int n = store.n;
  u32 threshold = first_cut<kSets, kFloatKeys>(s, store, base, quota, again);
  const u32 highest = s.highest[set];

  // Few keys a thread: whose are to be published is seen at once. They are placed in the order of their numbers, then of lanes.
  constexpr int kFew = 8;
  const bool few = n <= kFew;
  u32 masks[kFew];
  u32 place;
  u32 total;
  // `hits`: in which of up to 32 pieces of this thread's keys those to be published are.
  int piece = __ffs(kVector) - 1;
  u32 hits = 0;
  if (few) {
    u32 mine = 0;
#pragma unroll
    for (int i = 0; i < kFew; i += kVector) {
      if (i >= n) break;
      u32 k[kVector];
      store.get(i, k);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        masks[i + j] = __ballot_sync(kFullWarp, k[j] >= threshold) & lanes_of_set<kSets>();
        mine += static_cast<u32>(__popc(masks[i + j]));
      }
    }
    place_warps<kSets>(s, set, mine, place, total);
  } else {
    while ((n - 1) >> piece > 31) ++piece;
    u32 mine = 0;
#pragma unroll 4
    for (int i = 0; i < n; i += kVector) {
      u32 k[kVector];
      store.get(i, k);
      u32 here = 0;
#pragma unroll
      for (int j = 0; j < kVector; ++j) here += k[j] >= threshold ? 1U : 0U;
      mine += here;
      hits |= (here != 0 ? 1U : 0U) << (i >> piece);
    }
    place_items<kSets>(s, set, mine, place, total);
  }

  Cut cut{threshold, total, false};
  const bool refined = narrow_cut<kSets>(s, store, quota, slots, cut);
  threshold = cut.threshold;
  total = cut.total;
  const bool stuck = cut.stuck;
  u32 equal_place = 0;  // where equal keys alone overflow the slots
  if (refined) {
    u32 mine = 0;
    u32 equal = 0;
    __syncthreads();
    store.for_keys(0, n, [&](int, u32 k) {
      mine += k > threshold || (k == threshold && !stuck) ? 1U : 0U;
      equal += k == threshold && stuck ? 1U : 0U;
    });
    u32 greater;
    u32 equals;
    place_items<kSets>(s, set, mine, place, greater);
    __syncthreads();
    place_items<kSets>(s, set, equal, equal_place, equals);
    equal_place += greater;
    total = greater + equals;
  }
  if (out == nullptr) return;
  if (few && !refined) {
    const u32 before = (1U << (tid & 31)) - 1U;
#pragma unroll
    for (int i = 0; i < kFew; i += kVector) {
      if (i >= n) break;
      u32 k[kVector];
      store.get(i, k);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const u32 to = place + static_cast<u32>(__popc(masks[i + j] & before));
        if (k[j] >= threshold && to < slots) out[to] = make_uint2(k[j], static_cast<u32>(token(i + j)));
        place += static_cast<u32>(__popc(masks[i + j]));
      }
    }
  } else {
    if (few) hits = kFullWarp;  // not looked at above
    for (; hits != 0; hits &= hits - 1U) {
      const int at = __ffs(static_cast<int>(hits)) - 1;
#pragma unroll 1
      for (int i = at << piece; i < min(n, (at + 1) << piece); i += kVector) {
        u32 k[kVector];
        store.get(i, k);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          if (k[j] < threshold) continue;
          const bool is_equal = stuck && k[j] == threshold;
          const u32 to = is_equal ? equal_place : place;  // no reference, which would put both in memory
          equal_place += is_equal ? 1U : 0U;
          place += is_equal ? 0U : 1U;
          if (to < slots) out[to] = make_uint2(k[j], static_cast<u32>(token(i + j)));
        }
      }
    }
  }
  for (u32 i = total + member; i < slots; i += nt / kSets) out[i] = make_uint2(0, 0);
  if (member == 0) {
    const u32 lowest = threshold > 1U ? threshold : max(s.lowest[set], 1U);
    *bounds =
        make_uint4(max(forgotten, total > slots ? threshold : threshold - 1U), highest, lowest, min(total, slots));
  }
}

}  // namespace fasa::ops::paged
