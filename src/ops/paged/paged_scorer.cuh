// Scores of a warp's rounds of index rows, on the tensor cores (paged_codec.cuh), and where they lie in its lanes.
#pragma once

#include "src/ops/paged/paged_codec.cuh"
#include "src/ops/paged/paged_prune.cuh"

namespace fasa::ops::paged {

// How a round of a warp lies in its lanes (lane = 4 * g + c); kRowBytes: 16, 32 or 64.
template <int kRowBytes, int kSets>
struct Round {
  static constexpr int kPieces = kRowBytes / 16;
  static constexpr int kRows = 4 / kPieces;         // rows in a quad of lanes
  static constexpr int kLoads = kRoundLoads;        // pieces a lane
  static constexpr int kLoadTokens = 32 / kPieces;  // tokens of one load of the warp
  static constexpr int kTokens = kLoads * kLoadTokens;
  static constexpr int kUnits = kTokens / 16;
  static constexpr int kBatch = 32 / kUnits;          // rounds whose units are looked up together
  static constexpr int kKeys = kSets * kTokens / 32;  // of a lane
  static_assert(kBatch % kBuffers == 0);
  static_assert(kTokens == score_round_tokens(kRowBytes) && kKeys == score_round_keys(kRowBytes, kSets));

  // Products for `heads` heads at most.
  static constexpr int frags(int heads) {
    return kSets != 1 ? (kRows == 4 ? 2 : 1) : heads * kRows <= 8 ? 1 : heads * kRows / 8;
  }
  // Row of the quad and head that row g of product `frag` is for.
  static __device__ __forceinline__ int query_row(int g, int frag) {
    if constexpr (kSets == 1) return g / (8 / kRows);
    return kRows == 1 ? 0 : 2 * frag + (g >> 2);
  }
  static __device__ __forceinline__ int query_head(int g, int frag) {
    if constexpr (kSets == 1) return frag * (8 / kRows) + g % (8 / kRows);
    return g & 3;
  }
  // The token of the round that key i of this lane is of: the quads are 2 * c and 2 * c + 1 of each load.
  static __device__ __forceinline__ int token_of(int i) { return token_of(i, static_cast<int>(threadIdx.x & 31)); }
  static __device__ __forceinline__ int token_of(int i, int lane) {
    const int g = lane >> 2;
    const int c = lane & 3;
    if constexpr (kSets == 1) {
      // Each halving gave a lane one half of the values.
      int value = i;
      value += (g & 1) * kLoads;
      if (kRows <= 2) value += (g >> 1 & 1) * (kLoads / 2);
      if (kRows <= 1) value += (g >> 2 & 1) * (kLoads / 4);
      return (value >> 1) * kLoadTokens + (2 * c + (value & 1)) * kRows + g / (8 / kRows);
    } else if constexpr (kRows == 1) {
      return ((g >> 2) * (kLoads / 2) + (i >> 1)) * kLoadTokens + 2 * c + (i & 1);
    } else {
      const int value = i % (2 * kLoads);
      return (value >> 1) * kLoadTokens + (2 * c + (value & 1)) * kRows + i / (2 * kLoads) * 2 + (g >> 2);
    }
  }
};

// v[i] = the larger of this lane's value and that of the lane that differs in `bit`, for the first kHalf values in one of them
// and for the next kHalf in the other, the `upper` one.
template <int kHalf, class T, int kSize>
__device__ __forceinline__ void halve(T (&v)[kSize], bool upper, int bit) {
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const T low = v[i];
    const T high = v[i + kHalf];
    v[i] = max(upper ? high : low, __shfl_xor_sync(kFullWarp, upper ? low : high, bit));
  }
}

// A CTA's queries (kTeam = kThreads), or those of a warp alone (kTeam = 32), to shared memory in two parts of [kHeads][kDims],
// relative to the largest of those scored together: thread t of the team has values t, t + kTeam... Ends with a barrier.
template <class Codec, int kDims, int kHeads, int kSets, int kTeam, int kMine>
__device__ __forceinline__ void share_queries(const float (&mine)[kMine], float* largests, char* queries) {
  constexpr int kQueries = kHeads * kDims;
  static_assert(kMine == (kQueries + kTeam - 1) / kTeam);
  const int tid = threadIdx.x & (kTeam - 1);
  const auto sync = [] {
    if constexpr (kTeam == 32) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  };
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    float most = fabsf(mine[i]);  // of 16 dims
#pragma unroll
    for (int o = 1; o < 16; o <<= 1) most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, o));
    if (tid + i * kTeam < kQueries && (tid & 15) == 0) largests[(tid + i * kTeam) / 16] = most;
  }
  sync();
  float together = 0;
  if constexpr (kSets == 1) {
    for (int i = tid & 31; i < kQueries / 16; i += 32) together = fmaxf(together, largests[i]);
    together = __uint_as_float(__reduce_max_sync(kFullWarp, __float_as_uint(together)));
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int at = tid + i * kTeam;
    if (at >= kQueries) continue;
    float most = together;
    if constexpr (kSets != 1) {
#pragma unroll
      for (int j = 0; j < kDims / 16; ++j) most = fmaxf(most, largests[at / kDims * (kDims / 16) + j]);
    }
    char* head = queries + at / kDims * kDims * Codec::kPartBytes;
    const float inverse = Codec::limit() / fmaxf(most, 1e-30F);
    Codec::store_query(mine[i] * inverse, at % kDims, head, head + kQueries * Codec::kPartBytes);
  }
  sync();
}

// Scores rounds of a warp against the queries that share_queries left.
template <class Codec, int kDims, int kHeads, int kSets>
struct Scorer {
  using Score = typename Codec::Score;
  using R = Round<kDims / Codec::kPieceDims * 16, kSets>;
  static constexpr int kFrags = R::frags(kHeads);
  static constexpr bool kHoldsQuery = kFrags * Codec::kSlabs <= 8;  // in registers, where these suffice

  const char* queries;
  u32 query[kFrags][Codec::kSlabs][4];

  __device__ __forceinline__ explicit Scorer(const char* shared) : queries(shared) {
    if constexpr (kHoldsQuery) {
#pragma unroll
      for (int f = 0; f < kFrags; ++f) {
#pragma unroll
        for (int slab = 0; slab < Codec::kSlabs; ++slab) {
          words(f, slab, query[f][slab]);
#pragma unroll
          for (u32& q : query[f][slab]) asm("" : "+r"(q));  // computed here and not in the loop
        }
      }
    }
  }
  // This lane's words of product f of a slab.
  __device__ __forceinline__ void words(int f, int slab, u32 (&q)[4]) const {
    const int g = (threadIdx.x & 31) >> 2;
    const int c = threadIdx.x & 3;
    const int head = min(R::query_head(g, f), kHeads - 1);
    const char* at = queries + (head * kDims + c % R::kPieces * Codec::kPieceDims) * Codec::kPartBytes + slab * 8;
    const uint2 high = *reinterpret_cast<const uint2*>(at);
    const uint2 low = *reinterpret_cast<const uint2*>(at + kHeads * kDims * Codec::kPartBytes);
    const bool mine = R::query_row(g, f) == c / R::kPieces;
    q[0] = mine ? high.x : 0U;
    q[1] = mine ? low.x : 0U;
    q[2] = mine ? high.y : 0U;
    q[3] = mine ? low.y : 0U;
  }
  // Scores of this lane's head (each of kFrags) and row of the quad, for quads 2 * c and 2 * c + 1 of every load.
  __device__ __forceinline__ void multiply(const uint4 (&v)[R::kLoads], Score (&all)[kFrags][2 * R::kLoads]) {
#pragma unroll
    for (int f = 0; f < kFrags; ++f) {
      Score d[R::kLoads][4] = {};
#pragma unroll
      for (int slab = 0; slab < Codec::kSlabs; ++slab) {
        if constexpr (!kHoldsQuery) words(f, slab, query[f][slab]);
#pragma unroll
        for (int j = 0; j < R::kLoads; ++j) {
          Codec::multiply(d[j], query[f][slab], Codec::operand(v[j], slab));
        }
      }
#pragma unroll
      for (int j = 0; j < R::kLoads; ++j) {
        all[f][2 * j] = Codec::join(d[j][0], d[j][2]);
        all[f][2 * j + 1] = Codec::join(d[j][1], d[j][3]);
      }
    }
  }
  // The keys of this lane (Round::token_of).
  static __device__ __forceinline__ void reduce(Score (&all)[kFrags][2 * R::kLoads], u32 (&keys)[R::kKeys]) {
    const int g = (threadIdx.x & 31) >> 2;
    if constexpr (kSets == 1) {
      Score(&best)[2 * R::kLoads] = all[0];
#pragma unroll
      for (int f = 1; f < kFrags; ++f) {
#pragma unroll
        for (int i = 0; i < 2 * R::kLoads; ++i) best[i] = max(best[i], all[f][i]);
      }
      // Best over the lanes of a row's heads; each keeps a part of the values (token_of).
      halve<R::kLoads>(best, (g & 1) != 0, 4);
      if constexpr (R::kRows <= 2) halve<R::kLoads / 2>(best, (g & 2) != 0, 8);
      if constexpr (R::kRows <= 1) halve<R::kLoads / 4>(best, (g & 4) != 0, 16);
#pragma unroll
      for (int i = 0; i < R::kKeys; ++i) keys[i] = key_of(best[i]);
    } else {
#pragma unroll
      for (int i = 0; i < R::kKeys; ++i) {
        keys[i] = key_of(R::kRows != 1 ? all[i / (2 * R::kLoads)][i % (2 * R::kLoads)]
                         : (g >> 2) != 0 ? all[0][R::kLoads + i]
                                         : all[0][i]);
      }
    }
  }
};

}  // namespace fasa::ops::paged
