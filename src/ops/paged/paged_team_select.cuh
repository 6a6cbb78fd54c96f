// The choice of a team (paged_team.cuh): the keys that may be kept, the range of the threshold, the list of a CTA, the ties.
#pragma once

#include "src/ops/paged/paged_team.cuh"

namespace fasa::ops::paged {

// The keys of a warp that may be kept: at first all of a lane's, or the few that are good enough, those of a set by the set's lanes.
template <class Store, int kSets, int kHeld>
struct TeamKeys {
  static constexpr int kVector = Store::kWidth;
  static constexpr int kLanes = kSetLanes<kSets>;
  // Keys held that are looked at without a branch between them: one where a lane rarely has more (with a ring).
  static constexpr int kTogether = kHeld <= 8 ? 1 : 2;
  const Store& store;
  unsigned short* ids;  // shared, [kSets][kHeld * kLanes] of this warp: number * 32 + lane of each key held
  u32 held[kHeld];
  int rounds;   // of those held
  bool direct;  // held[i] is this lane's key i
  bool fits;    // else all keys are looked at every time

  // memory: score_warp_bytes of this warp.
  __device__ __forceinline__ TeamKeys(const Store& keys, char* memory)
      : store(keys), ids(reinterpret_cast<unsigned short*>(memory) + set_of_thread<kSets>() * kHeld * kLanes) {}

  // Those from `least` (of the lane's set) on; few: they may be found by find_few. Several calls, by whole warps.
  __device__ __forceinline__ void hold(u32 least, bool few) {
    direct = store.n <= kDirectKeys;
    fits = true;
    if (direct) {
      rounds = store.n;
#pragma unroll
      for (int i = 0; i < kDirectKeys; i += kVector) {
        u32 k[kVector] = {};
        if (i < store.n) store.get(i, k);
#pragma unroll
        for (int j = 0; j < kVector; ++j) held[i + j] = k[j];
      }
      return;
    }
    u32 count;
    if constexpr (kSets == 1 && sizeof(typename Store::Key) == 2) {
      count = few ? find_few(max(least, 1U)) : find(least);
    } else {
      count = find(least);
    }
    const u32 most = kSets == 1 ? count : __reduce_max_sync(kFullWarp, count);
    fits = most <= kHeld * kLanes;
    rounds = static_cast<int>(most + kLanes - 1) / kLanes;
    __syncwarp();
    const u32 member = set_lane<kSets>();
#pragma unroll
    for (int j = 0; j < kHeld; j += kTogether) {
      if (j >= rounds) break;
#pragma unroll
      for (int i = j; i < j + kTogether; ++i) {
        const bool is_one = i * kLanes + member < count;
        const u32 key = *at(is_one ? ids[i * kLanes + member] : 0);
        held[i] = is_one ? key : 0;
      }
    }
  }
  // Lists the numbers of those from `least` on, and returns how many there are: more than have room where some are not on the list.
  __device__ __forceinline__ u32 find(u32 least) const {
    const u32 lane = threadIdx.x & 31;
    u32 count = 0;
    // 64 keys of a lane at a time, by loads of 16 that no branch parts; the last ones are those up to the end, and count where they were
    // not seen yet (where there are fewer than 16, those past the end do not).
#pragma unroll 1
    for (int from = 0; from < store.n; from += 64) {
      u32 hits[2] = {0, 0};
#pragma unroll
      for (int quarter = 0; quarter < 64; quarter += 16) {
        const int begin = from + quarter;
        if (begin >= store.n) break;
        const int first = max(0, min(begin, store.n - 16));
        const auto* at = store.at(first);
        u32 some = 0;
#pragma unroll
        for (int i = 0; i < 16; i += kVector) {
          store.reaching(at + i * kThreads, least, i, some);
        }
        some = (some & 0xFFFFU >> max(0, 16 - store.n)) >> (begin - first);
        hits[quarter / 32] |= some << quarter % 32;
      }
      const u32 mine = static_cast<u32>(__popc(hits[0]) + __popc(hits[1]));
      const u32 through = sum_in_set<kSets>(mine);
      u32 at = count + through - mine;
#pragma unroll 1
      for (; (hits[0] | hits[1]) != 0; ++at) {
        const bool low = hits[0] != 0;
        const u32 left = low ? hits[0] : hits[1];
        const int i = from + (low ? 0 : 32) + __ffs(static_cast<int>(left)) - 1;
        if (at < kHeld * kLanes) ids[at] = static_cast<unsigned short>(i * 32 + static_cast<int>(lane));
        hits[0] = low ? left & left - 1U : 0;
        if (!low) hits[1] = left & left - 1U;
      }
      count += last_of_set<kSets>(through);
    }
    return count;
  }
  // The same for one set and keys of 16 bits, where they are few of many: eight keys, of neighbouring lanes, are compared by the largest
  // of them. In another order, but always the same.
  __device__ __forceinline__ u32 find_few(u32 least) const {
    constexpr int kOf = 8;                   // keys of 16 bytes
    constexpr int kOfLanes = kOf / kVector;  // lanes that these are of
    constexpr int kAcross = 32 / kOfLanes;   // lanes that look at one vector of all lanes
    const int lane = static_cast<int>(threadIdx.x & 31);
    const int first_lane = lane % kAcross * kOfLanes;
    const int vectors = store.n / kVector;
    const auto vector_of = [&](int step) { return step * kOfLanes + lane / kAcross; };
    const auto place = [&](int vector) {
      return store.keys + (vector * kThreads + static_cast<int>(threadIdx.x & ~31U) + first_lane) * kVector;
    };
    const int steps = (vectors + kOfLanes - 1) / kOfLanes;
    u32 count = 0;
#pragma unroll 1
    for (int from = 0; from < steps; from += 32) {
      u32 hits = 0;  // of 32 steps
#pragma unroll 1
      for (int s = 0; s < min(32, steps - from); s += 4) {
        uint4 k[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          k[j] = *reinterpret_cast<const uint4*>(place(min(vector_of(from + s + j), vectors - 1)));
        u32 four = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) four |= Store::any_reaches(k[j], least) ? 1U << j : 0U;
        hits |= four << s;
      }
      // What is past them was seen before.
      const int own_steps = (vectors - lane / kAcross + kOfLanes - 1) / kOfLanes - from;
      if (own_steps < 32) hits &= (1U << max(own_steps, 0)) - 1U;
      u32 bits = 0;  // of the keys of one step
      int vector = 0;
#pragma unroll 1
      while (true) {
        if (bits == 0 && hits != 0) {
          vector = vector_of(from + __ffs(static_cast<int>(hits)) - 1);
          hits &= hits - 1U;
#pragma unroll
          for (int i = 0; i < kOf; i += kVector) Store::reaching(place(vector) + i, least, i, bits);
        }
        const u32 have = __ballot_sync(kFullWarp, bits != 0);
        if (have == 0) break;
        const u32 at = count + static_cast<u32>(__popc(have & ((1U << lane) - 1U)));
        if (bits != 0 && at < kHeld * kLanes) {
          const int i = __ffs(static_cast<int>(bits)) - 1;
          ids[at] = static_cast<unsigned short>((vector * kVector + i % kVector) * 32 + first_lane + i / kVector);
        }
        bits &= bits - 1U;
        count += static_cast<u32>(__popc(have));
      }
    }
    return count;
  }
  __device__ __forceinline__ const auto* at(int id) const {
    const int i = id >> 5;
    return store.keys + (i / kVector * kThreads + static_cast<int>(threadIdx.x & ~31U) + (id & 31)) * kVector +
           i % kVector;
  }
  // f(key, j) by whole warps; id_of(j) is the key's number * 32 + lane, and its warp from bit 13 on.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    if (fits) {
#pragma unroll
      for (int j = 0; j < kHeld; j += kTogether) {
        if (j >= rounds) break;
#pragma unroll
        for (int i = j; i < j + kTogether; ++i) f(held[i], i);
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
    const int warp = static_cast<int>(threadIdx.x >> 5);
    return (direct || !fits ? j * 32 + lane : ids[j * kLanes + set_lane<kSets>()]) | warp << 13;
  }
};

// Where the need-th best key is sought: keys first..last, in bins from `first` on, the last one open; `above` keys are above.
template <int kSets>
struct TeamSearch {
  static constexpr int kBins = team_bins(kSets);
  static constexpr int kBits = kSets == 1 ? 9 : 7;
  static_assert(kBins == 1 << kBits);

  u32 first;
  u32 last;
  u32 above;
  int shift;
  BinFound f;
  u32 before;  // keys of its bin in the CTAs before this one
  bool done;
  bool divides;          // a key is to be divided, as several scores share it
  bool divided = false;  // first and last are among the rests of one

  // After another histogram: done where the bin is as narrow as need be, or there is nothing to look for. cuts: several scores share a key.
  __device__ __forceinline__ void see(const BinFound& found, u32 total, u32 need, bool cuts) {
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
      if (f.bin != kBins - 1) last = min(last, start + ((1U << shift) - 1U));
      first = start;
      divides = cuts && !divided && first == last;
      if (f.through - f.before <= team_ties(kSets) || f.through == need || (first == last && !divides)) return;
      above = f.before;
    }
    shift = bin_shift(last - first, kBits);
    done = false;
  }
  // From here on keys are the rests of those equal to `first`, 0 where they were below and 2^16 - 1, above `last`, where above.
  __device__ __forceinline__ u32 divide(u32 key, u32 rest) const {
    return key == first ? rest : key > first ? 0xFFFFU : 0U;
  }
  __device__ __forceinline__ void see_divided() {
    first = 1;
    last = 0xFFFEU;
    shift = bin_shift(last - first, kBits);
    divides = false;
    divided = true;
  }
};

// Where every score has a key of its own (else paged_rescore.cuh).
struct NoRescore {
  static constexpr bool kCuts = false;
};

// One histogram of each set, of keys(f), which calls f for each key; of those that are done with it nothing changes.
template <bool kCuts, int kSets, class Keys>
__device__ __forceinline__ void search_team(const TeamLink<kSets>& link, TeamSearch<kSets>& search, u32 need,
                                            u32 parity, const Keys& keys) {
  const int set = set_of_thread<kSets>();
  u32* none = link.s.none + (threadIdx.x & 31);
  u32* bins = link.s.hist + set * link.kBins;
  const bool seeks = kSets == 1 || !search.done;
  keys([&](u32 k) {
    u32* bin = bins + min((k - search.first) >> search.shift, static_cast<u32>(link.kBins - 1));
    atomicAdd(seeks && k >= search.first && k <= search.last ? bin : none, 1U);
  });
  __syncthreads();
  link.send_histograms();
  u32 total;
  const BinFound found = link.find(search.above, need, parity, total);
  // A lane for each CTA.
  static_assert(team_ctas(kSets) <= kSetLanes<kSets>);
  const int from = set_lane<kSets>();
  const u32 before = sets_sum<kSets>(from < link.rank && found.bin >= 0 ? link.count_of(from, set, found.bin) : 0U);
  if (!seeks) return;
  search.see(found, total, need, kCuts);
  search.before = before;
}

// More histograms, of all keys: rare, and a call, so that nothing of it is prepared for otherwise.
template <class Store, int kSets, class Again>
__device__ __noinline__ TeamSearch<kSets> search_on(TeamLink<kSets> link, Store store, TeamSearch<kSets> search,
                                                    u32 need, Again again) {
  u32 parity = 0;
  do {
    if constexpr (Again::kCuts) {
      if (any_set<kSets>(search.divides)) {
        const int lane = static_cast<int>(threadIdx.x & 31);
        for (int i = 0; search.divides && i < store.n; ++i) {
          auto* key = store.at(i & ~(Store::kWidth - 1)) + (i & (Store::kWidth - 1));
          const u32 rest = *key == search.first ? again.template rest<kSets>(i * 32 + lane, *key) : 0U;
          *key = static_cast<typename Store::Key>(search.divide(*key, rest));
        }
        if (search.divides) search.see_divided();
      }
    }
    parity ^= 1U;
    link.again();
    search_team<Again::kCuts>(link, search, need, parity, [&](const auto& f) {
      constexpr int kVector = Store::kWidth;
      for (int i = 0; i < store.n; ++i) f(*(store.at(i & ~(kVector - 1)) + (i & (kVector - 1))));
    });
  } while (any_set<kSets>(!search.done));
  return search;
}

// The range of the `need`-th best of all keys of the team, of each thread's set. range: what the bins are to cover, the same for all
// threads of a set. keys: holds those from `first` on afterwards. again: scores of single tokens, where several share a key.
template <int kSets, class Keys, class Again>
__device__ __forceinline__ TeamRange find_team_range(const TeamLink<kSets>& link, Keys& keys, const uint2& range,
                                                     u32 need, const Again& again) {
  constexpr int kBits = TeamSearch<kSets>::kBits;
  TeamSearch<kSets> search{range.x, 0xFFFFFFFFU, 0, bin_shift(range.y - range.x, kBits), {-1, 0, 0}, 0, false, false};
  // Where a lane has one or two of those that are held, which are about twice as many as are wanted.
  const bool few = keys.store.n >= 128 && 2 * need <= static_cast<u32>(keys.store.n * link.size);
  keys.hold(search.first, few);
  search_team<Again::kCuts>(link, search, need, 0, [&](const auto& f) { keys.for_each([&](u32 k, int) { f(k); }); });
  if (any_set<kSets>(!search.done)) {
    search = search_on(link, keys.store, search, need, again);
    keys.hold(search.first, few);
  }
  const BinFound& f = search.f;
  TeamRange r{search.first, search.last, need - f.before, f.through - f.before, search.before, need};
  if (f.bin < 0) {
    r = {1, 0xFFFFFFFFU, 0, 0, 0, search.above};
  } else if (f.through == need) {
    r = {search.first, search.last, 0, 0, 0, need};
  }
  if constexpr (Again::kCuts) r.cut = search.divided ? 0U : 1U;
  if (link.size > 1) {
    // Ties of all sets come to one barrier.
    const u32 ties = r.among != 0 && !r.one_value() ? r.inside : 0U;
    u32 all = ties;
    if constexpr (kSets != 1)
      all = of_set<kSets>(ties, 0) + of_set<kSets>(ties, 1) + of_set<kSets>(ties, 2) + of_set<kSets>(ties, 3);
    if (threadIdx.x == 0 && all != 0) expect_stores(link.barriers + link.kTies, static_cast<int>(all) * 4);
  }
  return r;
}

// Puts this CTA's keys from r.first on to the list of their set: put(place, TeamKeys::id_of, tie), places 0, 1... in a fixed order. Where
// the range is one value, of which there may be any number, only those that are kept, the first ones: nothing is left to choose then.
// Ties go to where those of all CTAs will be, in any order: their keys, or their ids where several scores share a key; tie: which of the
// CTA's it is, from 1 on, or 0. Returns how many are on the list of the lane's set, at most all that are kept and team_ties. Barriers
// within, none at the end.
template <int kSets, class Keys, class Put>
__device__ __forceinline__ int list_team_keys(const TeamLink<kSets>& link, const Keys& keys, TeamRange& r,
                                              const Put& put) {
  const int set = set_of_thread<kSets>();
  const u32 lane = 1U << (threadIdx.x & 31);
  const bool one_value = r.one_value();
  u32 below = one_value ? r.last : r.first - 1U;
  u32 most = 0xFFFFFFFFU;
  u32 listed = 0;
  u32 end = 0xFFFFFFFFU;
  bool second = false;
  u32* own_ties = link.s.ties + set * team_ties(kSets) + r.before;
  bool has_ties = r.among != 0 && !one_value;
  // A second turn, for equal keys, is rare.
#pragma unroll 1
  while (true) {
    const auto inside = [&](u32 k) { return k > below && k <= most; };
    u32 count = 0;
    keys.for_each([&](u32 k, int) {
      count += static_cast<u32>(__popc(__ballot_sync(kFullWarp, inside(k)) & lanes_of_set<kSets>()));
    });
    link.s.warps[set * link.kWarps + static_cast<int>(threadIdx.x >> 5)] = count;  // the same of all lanes of the set
    __syncthreads();
    u32 place;
    u32 total;
    sum_warps(link.s.warps + set * link.kWarps, place, total);
    place += listed;
    keys.for_each([&](u32 k, int j) {
      const u32 mask = __ballot_sync(kFullWarp, inside(k)) & lanes_of_set<kSets>();
      const u32 at = place + static_cast<u32>(__popc(mask & (lane - 1U)));
      if ((mask & lane) != 0 && at < end) {
        u32 tie = 0;
        if (has_ties && k <= r.last) {
          tie = atomicAdd(link.s.own_ties + set, 1U) + 1U;
          own_ties[tie - 1U] = r.cut != 0 ? static_cast<u32>(keys.id_of(j)) : k;
        }
        put(static_cast<int>(at), keys.id_of(j), tie);
      }
      place += static_cast<u32>(__popc(mask));
    });
    listed = min(listed + total, end);
    has_ties = false;
    if (second || !any_set<kSets>(one_value)) break;
    second = true;
    __syncthreads();
    below = one_value ? r.first - 1U : 0xFFFFFFFFU;
    most = r.first;
    if (one_value) end = listed + r.among - min(r.among, r.before);
  }
  if (one_value) r.among = 0;
  return static_cast<int>(listed);
}

// Which entries of a CTA's list are kept: those that are no ties, ties above `key`, and those equal to it before the cut-th.
struct TeamChoice {
  const u32* ties;  // shared, of this CTA
  u32 key;
  int cut;

  // The key of a tie, 0 of an entry that is none.
  static __device__ __forceinline__ u32 tie_of(const u32* ties, int entry) {
    return entry >> 16 > 0 ? ties[(entry >> 16) - 1] : 0U;
  }
  // entry: the i-th of the list.
  __device__ __forceinline__ bool kept(int entry, int i) const {
    const u32 tie = tie_of(ties, entry);
    return tie == 0 || tie > key || (tie == key && i < cut);
  }
};

// Among the first `inside` (1 to team_ties) ties the want-th best, by every warp for itself: its key, and how many equal to it
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
    return make_uint3(__shfl_sync(kFullWarp, mine, it), want - __shfl_sync(kFullWarp, greater, it),
                      __shfl_sync(kFullWarp, same, it));
  }
  return make_uint3(0, 0, 0);
}

// Waits for the ties and chooses; every warp for itself. r, list: of `set`.
template <int kSets>
__device__ __forceinline__ TeamChoice choose(const TeamLink<kSets>& link, int set, const TeamRange& r,
                                             const int* list) {
  const u32* ties = link.s.ties + set * team_ties(kSets);
  const u32* own = ties + r.before;
  if (r.among == 0) return {own, 0, 0};
  if (link.size > 1) wait_stores(link.barriers + link.kTies);
  const uint3 found = rank_team_ties(ties, r.inside, r.among);
  const u32 key = found.x;
  if (found.y == found.z) return {own, key - 1U, 0};
  // Some of the keys equal to it: those of the first CTAs, and in one of these the first of the list.
  const u32 lane = threadIdx.x & 31;
  u32 before = 0;
#pragma unroll 1
  for (u32 i = 0; i < r.before; ++i) before += ties[i] == key ? 1U : 0U;
  u32 left = found.y - min(found.y, before);
  int cut = 0;
#pragma unroll 1
  for (int at = 0; at < r.listed && left != 0; at += 32) {
    const u32 mask = __ballot_sync(
        kFullWarp, at + static_cast<int>(lane) < r.listed && TeamChoice::tie_of(own, list[at + lane]) == key);
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
  return {own, key, cut};
}

}  // namespace fasa::ops::paged
