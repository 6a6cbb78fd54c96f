// Exact selection among keys that the CTAs of a cluster hold in their shared memory, each those of its own tokens: what they exchange
// for it (how it goes on: paged_team_select.cuh). For one set of tokens, or for four at once (paged_sets.cuh).
//
// The CTAs send each other histograms of 512 bins and find the bin of the need-th best key in their sum, each for itself; then the
// keys of this bin, few as a rule, which they rank. Where many keys are in the bin, it is divided again. So the choice is exact
// for every input, and what a CTA keeps it has the token of already.
//
// The bins cover what samples say that it takes: groups of keys from the first rounds of all warps, of which the best key
// of the worst group is the lowest that is counted, and the best of all is where the last bin begins to be open. Where samples would come
// late, what the caller guesses. Both only decide how many histograms it takes.
//
// What is kept is placed by counting in a fixed order, and ties are ranked whatever their order, so the same keys give the same result.
#pragma once

#include "src/ops/paged/paged_exact.cuh"

namespace fasa::ops::paged {

// Of a set, kept for sure: keys above `last`; perhaps, `among` of them: those from `first` to `last`, of which there are `inside`.
struct alignas(16) TeamRange {
  u32 first;
  u32 last;
  u32 among;  // 0: all from `first` on are kept
  u32 inside;
  u32 before;      // of those inside, in the CTAs before this one
  u32 kept;        // in all
  int listed = 0;  // entries of this CTA's list
  u32 cut = 0;     // 1: several scores share a key, so those inside are scored again (paged_rescore.cuh)

  // Whether what is perhaps kept is one key, of which there may be any number.
  __device__ __forceinline__ bool one_value() const { return among != 0 && first == last && cut == 0; }
};

template <int kSets>
struct TeamShared {
  static constexpr int kBins = team_bins(kSets);
  static constexpr int kRanges = team_ctas(kSets) * (kThreads / 32);  // of a set

  u32 hist[kSets * kBins];                    // of this CTA
  u32 none[32];                               // where a lane counts what is not to be counted, which takes no branch
  alignas(16) uint2 ranges[kSets * kRanges];  // (lowest counted, best) of each warp's samples; 0: none
  alignas(16) u32 ties[kSets * team_ties(kSets)];
  u32 own_ties[kSets];  // how many of these are of this CTA
  alignas(16) u32 warps[kSets * (kThreads / 32)];
  BinFound found[kSets];
  TeamRange chosen[kSets];

  __device__ __forceinline__ void clear_histograms() {
    static_assert(kSets * kBins % kThreads == 0);
#pragma unroll
    for (int i = 0; i < kSets * kBins; i += kThreads) hist[i + threadIdx.x] = 0;
    if (threadIdx.x < kSets) found[threadIdx.x].bin = -1;
  }
  // Followed by a barrier.
  __device__ __forceinline__ void clear() {
    clear_histograms();
    static_assert(kSets * team_ties(kSets) <= kThreads);
    if (threadIdx.x < kSets * team_ties(kSets)) ties[threadIdx.x] = 0;
    if (threadIdx.x < kSets) own_ties[threadIdx.x] = 0;
  }
};
static_assert(sizeof(TeamShared<1>) <= team_shared_bytes(1));
static_assert(sizeof(TeamShared<4>) <= team_shared_bytes(4));

// One CTA's end of the exchange. inbox: u16 [size][kSets][kBins], the histograms of all CTAs; the keys of one fit its memory, so
// there are fewer than 2^16.
template <int kSets>
struct TeamLink {
  TeamShared<kSets>& s;
  char* inbox;
  u32 barriers;  // one of 8 bytes for each kind of what arrives: its place below
  int size;
  int rank;

  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBins = team_bins(kSets);
  static constexpr int kAllBins = kSets * kBins;
  static constexpr u32 kSamples = 0;
  static constexpr u32 kHistograms = 8;
  static constexpr u32 kTies = 16;

  // One thread, before the cluster synchronises.
  __device__ __forceinline__ void expect() const {
    init_barrier(barriers + kSamples);
    init_barrier(barriers + kHistograms);
    init_barrier(barriers + kTies);
    share_barriers();
    expect_stores(barriers + kSamples, kSets * size * kWarps * 8);
    expect_stores(barriers + kHistograms, size * kAllBins * 2);
  }
  // A warp's samples to all CTAs, the best key of some of each lane. lanes: of a group of samples, a power of two.
  __device__ __forceinline__ void sample(u32 best, int lanes) const {
    u32 worst = best;
    u32 highest = sets_max<kSets>(best);
    if (lanes == kSetLanes<kSets>) {
      worst = highest;
    } else {
#pragma unroll 1
      for (int o = 1; o < lanes; o <<= 1) worst = max(worst, __shfl_xor_sync(kFullWarp, worst, set_bit<kSets>(o)));
      worst = ~sets_max<kSets>(worst != 0 ? ~worst : 0U);  // groups without a key do not count
      if (highest == 0) worst = 0;
    }
    // A lane for each set and CTA.
    static_assert(kSets * team_ctas(kSets) <= 32);
    const int lane = threadIdx.x & 31;
    const int set = lane & (kSets - 1);
    const int peer = lane / kSets;
    worst = of_set<kSets>(worst, set);
    highest = of_set<kSets>(highest, set);
    uint2* to = s.ranges + set * s.kRanges + rank * kWarps + static_cast<int>(threadIdx.x >> 5);
    if (size == 1) {
      if (peer == 0) *to = make_uint2(worst, highest);
    } else if (peer < size) {
      store_peer(peer_address(shared_address(to), peer), peer_address(barriers + kSamples, peer),
                 make_uint2(worst, highest));
    }
  }
  // (lowest counted, best) of all samples of this thread's set; (1, 1) where there are none.
  __device__ __forceinline__ uint2 range() const {
    if (size == 1) {
      __syncthreads();
    } else {
      wait_stores(barriers + kSamples);
    }
    u32 lowest = 0xFFFFFFFFU;
    u32 highest = 1;
    // Four reads together: they are waited for.
    constexpr int kTogether = 4;
    const int count = size * kWarps;
#pragma unroll 1
    for (int first = set_lane<kSets>(); first < count; first += kTogether * kSetLanes<kSets>) {
      uint2 r[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int i = first + j * kSetLanes<kSets>;
        r[j] = s.ranges[set_of_thread<kSets>() * s.kRanges + min(i, count - 1)];
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        lowest = r[j].y != 0 ? min(lowest, r[j].x) : lowest;
        highest = max(highest, r[j].y);
      }
    }
    highest = sets_max<kSets>(highest);
    return make_uint2(min(~sets_max<kSets>(~lowest), highest), highest);
  }
  // This CTA's histograms to all: a warp for each.
  __device__ __forceinline__ void send_histograms() const {
    if (size == 1) return;
    const int lane = threadIdx.x & 31;
#pragma unroll 1
    for (int peer = static_cast<int>(threadIdx.x >> 5); peer < size; peer += kWarps) {
#pragma unroll
      for (int i = 0; i < kAllBins / 256; ++i) {
        const int bin = (i * 32 + lane) * 8;
        const uint4 a = *reinterpret_cast<const uint4*>(s.hist + bin);
        const uint4 b = *reinterpret_cast<const uint4*>(s.hist + bin + 4);
        const uint4 packed = make_uint4(a.x | a.y << 16, a.z | a.w << 16, b.x | b.y << 16, b.z | b.w << 16);
        const u32 to = shared_address(inbox + (rank * kAllBins + bin) * 2);
        store_peer(peer_address(to, peer), peer_address(barriers + kHistograms, peer), packed);
      }
    }
  }
  // Keys of CTA `from` in a bin of a set.
  __device__ __forceinline__ u32 count_of(int from, int set, int bin) const {
    return size == 1 ? s.hist[set * kBins + bin]
                     : reinterpret_cast<const unsigned short*>(inbox)[from * kAllBins + set * kBins + bin];
  }
  // From the top bin down, where `above` (of this thread's set) plus the counts of all CTAs reaches `target`; total: above plus all.
  // Ends with a barrier.
  __device__ __forceinline__ BinFound find(u32 above, u32 target, u32 parity, u32& total) const {
    // The warps share the sets, a thread has two bins.
    static_assert(kAllBins == 2 * kThreads);
    const int warp = static_cast<int>(threadIdx.x >> 5);
    const int set = warp / (kWarps / kSets);
    const int word = kBins / 2 - 1 - static_cast<int>(threadIdx.x) % (kBins / 2);  // bins 2 * word and 2 * word + 1
    u32 high = 0;
    u32 low = 0;
    if (size == 1) {
      const uint2 two = *reinterpret_cast<const uint2*>(s.hist + set * kBins + 2 * word);
      low = two.x;
      high = two.y;
    } else {
      wait_stores(barriers + kHistograms, parity);
#pragma unroll 1
      for (int first = 0; first < size; first += kCtasTogether) {
        u32 two[kCtasTogether];
#pragma unroll
        for (int i = 0; i < kCtasTogether; ++i) {
          two[i] = first + i < size
                       ? reinterpret_cast<const u32*>(inbox)[((first + i) * kAllBins + set * kBins) / 2 + word]
                       : 0U;
        }
#pragma unroll
        for (int i = 0; i < kCtasTogether; ++i) {
          low += two[i] & 0xFFFFU;
          high += two[i] >> 16;
        }
      }
    }
    const u32 mine = low + high;
    const u32 x = sum_below(mine);
    if ((threadIdx.x & 31) == 31) s.warps[warp] = x;
    __syncthreads();
    u32 before;
    if constexpr (kSets == 1) {
      sum_warps(s.warps, before, total);
    } else {
      static_assert(kWarps / kSets == 2);
      before = (warp & 1) != 0 ? s.warps[warp - 1] : 0U;
      const int own = set_of_thread<kSets>();
      total = s.warps[2 * own] + s.warps[2 * own + 1];
    }
    before += of_set<kSets>(above, set) + x - mine;
    total += above;
    if (before < target && before + mine >= target) {
      const bool in_high = before + high >= target;
      s.found[set] =
          in_high ? BinFound{2 * word + 1, before, before + high} : BinFound{2 * word, before + high, before + mine};
    }
    __syncthreads();
    return s.found[set_of_thread<kSets>()];
  }
  // The ties of a set that this CTA has to all, itself included. After a barrier; warps share the CTAs, where there are several sets those
  // of each set its own.
  __device__ __forceinline__ void send_ties(int set, u32 before) const {
    if (size == 1) return;
    constexpr u32 kOf = kWarps / kSets;
    const u32 lane = threadIdx.x & 31;
    u32* ties = s.ties + set * team_ties(kSets) + before;
#pragma unroll 1
    for (u32 i = lane; i < s.own_ties[set]; i += 32) {
      const u32 to = shared_address(ties + i);
      const u32 key = ties[i];
#pragma unroll 1
      for (int peer = static_cast<int>(threadIdx.x / 32 % kOf); peer < size; peer += kOf) {
        store_peer(peer_address(to, peer), peer_address(barriers + kTies, peer), key);
      }
    }
  }
  // The same where the ties are ids of keys that several scores share, which the full keys take the place of. Then a barrier. again: as in
  // find_team_range.
  template <class Again>
  __device__ __forceinline__ void send_scored(int set, u32 before, const Again& again) const {
    constexpr u32 kHeads = kSets == 1 ? Again::kHeads : 1;  // lanes of a tie, each for one head
    constexpr u32 kOf = kThreads / kSets / kHeads;          // ties at once
    const u32 thread = threadIdx.x % (kThreads / kSets);
    const u32 head = thread % kHeads;
    const u32 own = s.own_ties[set];
    u32* ties = s.ties + set * team_ties(kSets) + before;
#pragma unroll 1
    for (u32 i = thread / kHeads; i - (i & (32 / kHeads - 1)) < own; i += kOf) {  // by whole warps
      const u32 id = ties[min(i, own - 1)];
      __syncwarp();  // lanes past the end read an entry that another lane writes below
      u32 key = key_of(again.score(id, kSets == 1 ? static_cast<int>(head) : set));
#pragma unroll
      for (u32 o = 1; o < kHeads; o <<= 1) key = max(key, __shfl_xor_sync(kFullWarp, key, o));
      if (i >= own) continue;
      if (size == 1) {
        if (head == 0) ties[i] = key;
        continue;
      }
      const u32 to = shared_address(ties + i);
#pragma unroll 1
      for (int peer = static_cast<int>(head); peer < size; peer += static_cast<int>(kHeads)) {
        store_peer(peer_address(to, peer), peer_address(barriers + kTies, peer), key);
      }
    }
  }
  // Before more histograms: all CTAs have read the last ones.
  __device__ __forceinline__ void again() const {
    __syncthreads();
    s.clear_histograms();
    if (threadIdx.x == 0 && size > 1) expect_stores(barriers + kHistograms, size * kAllBins * 2);
    Team<true>::sync();
  }
};

}  // namespace fasa::ops::paged
