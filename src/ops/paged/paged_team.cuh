// Exact selection among keys that the CTAs of a cluster hold in their shared memory, each those of its own tokens.
//
// The CTAs send each other histograms of 512 bins and find the bin of the need-th best key in their sum, each for itself; then the
// keys of this bin, few as a rule, which they rank. Where many keys are in the bin, it is divided again. So the choice is exact
// for every input, and what a CTA keeps it has the token of already.
//
// The bins cover what samples say that it takes: groups of keys from the first rounds of all warps, of which the best key
// of the worst group is the lowest that is counted, and the best of all is where the last bin begins to be open. Where samples would come
// late, what the caller guesses. Both only decide how many histograms it takes.
//
// Everything is placed by counting in a fixed order, so the same keys give the same choice.
#pragma once

#include "src/ops/paged/paged_exact.cuh"

namespace fasa::ops::paged {

struct TeamShared {
  u32 hist[kPruneBins];  // of this CTA
  u32 none[32];          // where a lane counts what is not to be counted, which takes no branch
  alignas(16) uint2 ranges[kTeamCtas * (kThreads / 32)];  // (lowest counted, best) of each warp's samples; 0: none
  alignas(16) u32 ties[kTeamTies];
  alignas(16) u32 warps[kThreads / 32];
  BinFound found;

  // Followed by a barrier.
  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < kPruneBins; i += kThreads) hist[i] = 0;
    if (threadIdx.x < kTeamTies) ties[threadIdx.x] = 0;
    if (threadIdx.x == 0) found.bin = -1;
  }
};
static_assert(sizeof(TeamShared) <= kSelectSharedBytes);

// One CTA's end of the exchange. inbox: u16 [size][kPruneBins], the histograms of all CTAs; the keys of one fit its memory, so there are
// fewer than 2^16.
struct TeamLink {
  TeamShared& s;
  char* inbox;
  u32 barriers;  // one of 8 bytes for each kind of what arrives: its place below
  int size;
  int rank;

  static constexpr int kWarps = kThreads / 32;
  static constexpr u32 kSamples = 0;
  static constexpr u32 kHistograms = 8;
  static constexpr u32 kTies = 16;

  // One thread, before the cluster synchronises.
  __device__ __forceinline__ void expect() const {
    init_barrier(barriers + kSamples);
    init_barrier(barriers + kHistograms);
    init_barrier(barriers + kTies);
    share_barriers();
    expect_stores(barriers + kSamples, size * kWarps * 8);
    expect_stores(barriers + kHistograms, size * kPruneBins * 2);
  }
  // A warp's samples to all CTAs, the best key of some of each lane. lanes: of a group of samples, a power of two.
  __device__ __forceinline__ void sample(u32 best, int lanes) const {
    u32 worst = best;
    const u32 highest = __reduce_max_sync(kFullWarp, best);
    if (lanes == 32) {
      worst = highest;
    } else {
#pragma unroll 1
      for (int o = 1; o < lanes; o <<= 1) worst = max(worst, __shfl_xor_sync(kFullWarp, worst, o));
      worst = ~__reduce_max_sync(kFullWarp, worst != 0 ? ~worst : 0U);  // groups without a key do not count
      if (highest == 0) worst = 0;
    }
    const int lane = threadIdx.x & 31;
    uint2* to = s.ranges + rank * kWarps + static_cast<int>(threadIdx.x >> 5);
    if (size == 1) {
      if (lane == 0) *to = make_uint2(worst, highest);
    } else if (lane < size) {
      store_peer(peer_address(shared_address(to), lane), peer_address(barriers + kSamples, lane), make_uint2(worst, highest));
    }
  }
  // (lowest counted, best) of all samples; (1, 1) where there are none.
  __device__ __forceinline__ uint2 range() const {
    if (size == 1) {
      __syncthreads();
    } else {
      wait_stores(barriers + kSamples);
    }
    u32 lowest = 0xFFFFFFFFU;
    u32 highest = 1;
#pragma unroll 1
    for (int i = threadIdx.x & 31; i < size * kWarps; i += 32) {
      const uint2 r = s.ranges[i];
      lowest = r.y != 0 ? min(lowest, r.x) : lowest;
      highest = max(highest, r.y);
    }
    highest = __reduce_max_sync(kFullWarp, highest);
    return make_uint2(min(__reduce_min_sync(kFullWarp, lowest), highest), highest);
  }
  // This CTA's histogram to all: a warp for each.
  __device__ __forceinline__ void send_histogram() const {
    if (size == 1) return;
    const int lane = threadIdx.x & 31;
#pragma unroll 1
    for (int peer = static_cast<int>(threadIdx.x >> 5); peer < size; peer += kWarps) {
#pragma unroll
      for (int i = 0; i < kPruneBins / 256; ++i) {
        const int bin = (i * 32 + lane) * 8;
        const uint4 a = *reinterpret_cast<const uint4*>(s.hist + bin);
        const uint4 b = *reinterpret_cast<const uint4*>(s.hist + bin + 4);
        const uint4 packed = make_uint4(a.x | a.y << 16, a.z | a.w << 16, b.x | b.y << 16, b.z | b.w << 16);
        store_peer(peer_address(shared_address(inbox + (rank * kPruneBins + bin) * 2), peer), peer_address(barriers + kHistograms, peer), packed);
      }
    }
  }
  // Keys of CTA `from` in a bin.
  __device__ __forceinline__ u32 count_of(int from, int bin) const {
    return size == 1 ? s.hist[bin] : reinterpret_cast<const unsigned short*>(inbox)[from * kPruneBins + bin];
  }
  // From the top bin down, where `above` plus the counts of all CTAs reaches `target`; total: above plus all. Ends with a barrier.
  __device__ __forceinline__ BinFound find(u32 above, u32 target, u32 parity, u32& total) const {
    static_assert(kPruneBins == 2 * kThreads);
    const int word = kThreads - 1 - static_cast<int>(threadIdx.x);  // bins 2 * word and 2 * word + 1
    u32 high = 0;
    u32 low = 0;
    if (size == 1) {
      const uint2 two = *reinterpret_cast<const uint2*>(s.hist + 2 * word);
      low = two.x;
      high = two.y;
    } else {
      wait_stores(barriers + kHistograms, parity);
#pragma unroll 4
      for (int i = 0; i < size; ++i) {
        const u32 two = reinterpret_cast<const u32*>(inbox)[i * (kPruneBins / 2) + word];
        low += two & 0xFFFFU;
        high += two >> 16;
      }
    }
    const u32 mine = low + high;
    const u32 x = sum_below(mine);
    if ((threadIdx.x & 31) == 31) s.warps[threadIdx.x >> 5] = x;
    __syncthreads();
    u32 before;
    sum_warps(s.warps, before, total);
    before += above + x - mine;
    total += above;
    if (before < target && before + mine >= target) {
      const bool in_high = before + high >= target;
      s.found = in_high ? BinFound{2 * word + 1, before, before + high} : BinFound{2 * word, before + high, before + mine};
    }
    __syncthreads();
    return s.found;
  }
  // Before another histogram: all CTAs have read the last one.
  __device__ __forceinline__ void again() const {
    __syncthreads();
    for (int i = threadIdx.x; i < kPruneBins; i += kThreads) s.hist[i] = 0;
    if (threadIdx.x == 0) {
      s.found.bin = -1;
      if (size > 1) expect_stores(barriers + kHistograms, size * kPruneBins * 2);
    }
    Team<true>::sync();
  }
};

// The keys of a warp that may be kept: at first all of a lane's, or of the warp's the few that are good enough, 32 at a time.
template <int kVector>
struct TeamKeys {
  static constexpr int kHeld = kTeamHeld;
  const KeyStore<kVector>& store;
  unsigned short* ids;  // shared, [kHeld * 32] of this warp: number * 32 + lane of each key held
  u32 held[kHeld];
  int rounds;    // of those held
  bool direct;   // held[i] is this lane's key i
  bool fits;     // else all keys are looked at every time

  __device__ __forceinline__ TeamKeys(const KeyStore<kVector>& keys, unsigned short* memory)
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

// Kept for sure: keys above `last`; perhaps, `among` of them: those from `first` to `last`, of which there are `inside`.
struct TeamRange {
  u32 first;
  u32 last;
  u32 among;   // 0: all from `first` on are kept
  u32 inside;
  u32 before;  // of those inside, in the CTAs before this one
  u32 kept;    // in all
};

// Where the need-th best key is sought: keys first..last, in bins from `first` on, the last one open; `above` keys are above.
struct TeamSearch {
  u32 first;
  u32 last;
  u32 above;
  int shift;
  BinFound f;
  bool done;

  // After another histogram: true where the bin is as narrow as need be, or there is nothing to look for.
  __device__ __forceinline__ void see(const BinFound& found, u32 total, u32 need) {
    f = found;
    done = true;
    if (f.bin < 0) {
      // Too few so far.
      above = total;
      last = first - 1;
      if (first <= 1) return;
      first = 1;
    } else {
      const u32 start = first + (static_cast<u32>(f.bin) << shift);
      if (f.bin != kPruneBins - 1) last = min(last, start + ((1U << shift) - 1U));
      first = start;
      if (f.through - f.before <= kTeamTies || f.through == need || first == last) return;
      above = f.before;
    }
    shift = bin_shift(last - first, 9);
    done = false;
  }
};

// One histogram, of keys(f), which calls f for each key.
template <class Keys>
__device__ __forceinline__ void search_team(const TeamLink& link, TeamSearch& search, u32 need, u32 parity, const Keys& keys) {
  u32* none = link.s.none + (threadIdx.x & 31);
  keys([&](u32 k) {
    u32* bin = link.s.hist + min((k - search.first) >> search.shift, static_cast<u32>(kPruneBins - 1));
    atomicAdd(k >= search.first && k <= search.last ? bin : none, 1U);
  });
  __syncthreads();
  link.send_histogram();
  u32 total;
  const BinFound found = link.find(search.above, need, parity, total);
  search.see(found, total, need);
}

// More histograms, of all keys: rare, and a call, so that nothing of it is prepared for otherwise.
template <int kVector>
__device__ __noinline__ TeamSearch search_on(TeamLink link, KeyStore<kVector> store, TeamSearch search, u32 need) {
  u32 parity = 0;
  do {
    parity ^= 1U;
    link.again();
    search_team(link, search, need, parity, [&](const auto& f) {
      for (int i = 0; i < store.n; ++i) f(*(store.at(i & ~(kVector - 1)) + (i & (kVector - 1))));
    });
  } while (!search.done);
  return search;
}

// The range of the `need`-th best of all keys of the team. range: what the bins are to cover, the same for all. keys: holds those
// from `first` on afterwards.
template <int kVector>
__device__ __forceinline__ TeamRange find_team_range(const TeamLink& link, TeamKeys<kVector>& keys, const uint2& range, u32 need) {
  TeamSearch search{range.x, 0xFFFFFFFFU, 0, bin_shift(range.y - range.x, 9), {-1, 0, 0}, false};
  keys.hold(search.first);
  search_team(link, search, need, 0, [&](const auto& f) { keys.for_each([&](u32 k, int) { f(k); }); });
  if (!search.done) {
    search = search_on(link, keys.store, search, need);
    keys.hold(search.first);
  }
  const BinFound& f = search.f;
  if (f.bin < 0) return {1, 0xFFFFFFFFU, 0, 0, 0, search.above};
  if (f.through == need) return {search.first, search.last, 0, 0, 0, need};
  const int lane = static_cast<int>(threadIdx.x & 31);
  const u32 before = __reduce_add_sync(kFullWarp, lane < link.rank ? link.count_of(lane, f.bin) : 0U);
  const u32 inside = f.through - f.before;
  if (search.first != search.last && threadIdx.x == 0 && link.size > 1) {
    expect_stores(link.barriers + TeamLink::kTies, static_cast<int>(inside) * 4);
  }
  return {search.first, search.last, need - f.before, inside, before, need};
}

// This CTA's ties, which are among the keys of its list, to all, by the warps from first_warp on. After a barrier; every warp calls it.
__device__ __forceinline__ void send_ties(const TeamLink& link, const TeamRange& r, const u32* keys, int n, int first_warp) {
  if (r.among == 0) return;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int warp = static_cast<int>(threadIdx.x >> 5);
#pragma unroll 1
  for (int peer = warp >= first_warp ? warp - first_warp : link.size; peer < link.size; peer += kThreads / 32 - first_warp) {
    u32 place = r.before;
#pragma unroll 1
    for (int i = lane; i - lane < n; i += 32) {
      const u32 k = i < n ? keys[i] : 0U;
      const bool is_tie = k >= r.first && k <= r.last;
      const u32 mask = __ballot_sync(kFullWarp, is_tie);
      u32* to = link.s.ties + place + __popc(mask & ((1U << lane) - 1U));
      if (is_tie) {
        if (link.size == 1) {
          *to = k;
        } else {
          store_peer(peer_address(shared_address(to), peer), peer_address(link.barriers + TeamLink::kTies, peer), k);
        }
      }
      place += static_cast<u32>(__popc(mask));
    }
  }
  if (link.size == 1) __syncthreads();
}

// Puts this CTA's keys from r.first on to a list: put(place, id of TeamKeys, key), places 0, 1... in a fixed order. Where the range is one
// value, of which there may be any number, only those that are kept, the first ones: nothing is left to choose then. Returns how
// many are on the list, at most all that are kept and kTeamTies. Barriers within, none at the end.
template <int kVector, class Put>
__device__ __forceinline__ int list_team_keys(const TeamLink& link, const TeamKeys<kVector>& keys, TeamRange& r, const Put& put) {
  const u32 lane = 1U << (threadIdx.x & 31);
  const bool one_value = r.among != 0 && r.first == r.last;
  u32 below = one_value ? r.last : r.first - 1U;
  u32 most = 0xFFFFFFFFU;
  u32 listed = 0;
  u32 end = 0xFFFFFFFFU;
  // A second turn, for equal keys, is rare.
#pragma unroll 1
  while (true) {
    const auto inside = [&](u32 k) { return k > below && k <= most; };
    u32 count = 0;
    keys.for_each([&](u32 k, int) { count += static_cast<u32>(__popc(__ballot_sync(kFullWarp, inside(k)))); });
    link.s.warps[threadIdx.x >> 5] = count;  // the same of all lanes
    __syncthreads();
    u32 place;
    u32 total;
    sum_warps(link.s.warps, place, total);
    place += listed;
    keys.for_each([&](u32 k, int j) {
      const u32 mask = __ballot_sync(kFullWarp, inside(k));
      const u32 at = place + static_cast<u32>(__popc(mask & (lane - 1U)));
      if ((mask & lane) != 0 && at < end) put(static_cast<int>(at), keys.id_of(j), k);
      place += static_cast<u32>(__popc(mask));
    });
    listed = min(listed + total, end);
    if (!one_value || end != 0xFFFFFFFFU) break;
    __syncthreads();
    below = r.first - 1U;
    most = r.first;
    end = listed + r.among - min(r.among, r.before);
  }
  if (one_value) r.among = 0;
  return static_cast<int>(listed);
}

// Which entries of a CTA's list are kept: those with keys above `key`, and those equal to it before the cut-th.
struct TeamChoice {
  const u32* keys;  // shared, of the list
  u32 key;
  int cut;

  __device__ __forceinline__ bool kept(int i) const { return keys[i] > key || (keys[i] == key && i < cut); }
};

// Among the first `inside` (1 to kTeamTies) ties the want-th best, by every warp for itself: its key, and how many equal to it
// are wanted and there are.
__device__ __forceinline__ uint3 rank_team_ties(const u32* ties, u32 inside, u32 want) {
  const u32 lane = threadIdx.x & 31;
#pragma unroll 1
  for (u32 at = 0; at < inside; at += 32) {
    const u32 mine = ties[at + lane];
    u32 above[4] = {0, 0, 0, 0};
    u32 from[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (u32 j = 0; j < inside; j += 16) {  // zeros past the end count for none
      uint4 four[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) four[i] = *reinterpret_cast<const uint4*>(ties + j + 4 * i);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        for (const u32 k : {four[i].x, four[i].y, four[i].z, four[i].w}) {
          above[i] += k > mine ? 1U : 0U;
          from[i] += k >= mine ? 1U : 0U;
        }
      }
    }
    const u32 greater = above[0] + above[1] + above[2] + above[3];
    const u32 same = from[0] + from[1] + from[2] + from[3] - greater;
    const u32 hit = __ballot_sync(kFullWarp, at + lane < inside && greater < want && greater + same >= want);
    if (hit == 0) continue;
    const int it = __ffs(static_cast<int>(hit)) - 1;
    return make_uint3(__shfl_sync(kFullWarp, mine, it), want - __shfl_sync(kFullWarp, greater, it), __shfl_sync(kFullWarp, same, it));
  }
  return make_uint3(0, 0, 0);
}

// Waits for the ties and chooses; every warp for itself. n: entries of the list, their keys at `keys`.
__device__ __forceinline__ TeamChoice choose(const TeamLink& link, const TeamRange& r, const u32* keys, int n) {
  if (r.among == 0) return {keys, 0, 0};
  if (link.size > 1) wait_stores(link.barriers + TeamLink::kTies);
  const uint3 found = rank_team_ties(link.s.ties, r.inside, r.among);
  const u32 key = found.x;
  if (found.y == found.z) return {keys, key - 1U, 0};
  // Some of the keys equal to it: those of the first CTAs, and in one of these the first of the list.
  const u32 lane = threadIdx.x & 31;
  u32 before = 0;
#pragma unroll 1
  for (u32 i = 0; i < r.before; ++i) before += link.s.ties[i] == key ? 1U : 0U;
  u32 left = found.y - min(found.y, before);
  int cut = 0;
#pragma unroll 1
  for (int at = 0; at < n && left != 0; at += 32) {
    const u32 mask = __ballot_sync(kFullWarp, at + static_cast<int>(lane) < n && keys[at + lane] == key);
    const u32 here = static_cast<u32>(__popc(mask));
    if (here < left) {
      left -= here;
      cut = at + 32;
      continue;
    }
    // The left-th of this mask.
    const u32 mine = mask & (1U << lane);
    const bool it = mine != 0 && static_cast<u32>(__popc(mask & (mine - 1U))) + 1U == left;
    cut = at + __ffs(static_cast<int>(__ballot_sync(kFullWarp, it)));
    left = 0;
  }
  return {keys, key, cut};
}

}  // namespace fasa::ops::paged
