// Scores of a warp's rounds of index rows, on the tensor cores (paged_codec.cuh), and where they lie in its lanes.
//
// Fragments (lane = 4 * g + c): a row of 16, 32 or 64 bytes is 1, 2 or 4 pieces, so the four lanes of a quad hold kRows = 4, 2 or 1
// rows, and a product is of the pieces of the 8 quads, whatever row these are of. A query is for one of the quad's rows: zeros for
// the lanes of the others.
//   Codes first: where pieces are widened in any case, and the query is one part, those of two loads are the 16 rows of a product and
//     queries its columns. A lane then has the sums of heads for a row that is its own.
//   Queries first: pieces are the columns, as they are; row m < 8 is one head for one of the quad's rows, row m + 8 the low part of the
//     same query, or another one where there is no low part. A lane then has the sums of one head, as sets of tokens want them.
#pragma once

#include "src/ops/paged/paged_codec.cuh"
#include "src/ops/paged/paged_prune.cuh"

namespace fasa::ops::paged {

// How a round of a warp lies in its lanes; kRowBytes: 16, 32 or 64.
template <int kRowBytes, int kSets, bool kCodesFirst>
struct Round {
  static constexpr int kPieces = kRowBytes / 16;
  static constexpr int kRows = 4 / kPieces;         // rows in a quad of lanes
  static constexpr int kLoads = kRoundLoads;        // pieces a lane
  static constexpr int kLoadTokens = 32 / kPieces;  // tokens of one load of the warp
  static constexpr int kTokens = kLoads * kLoadTokens;
  static constexpr int kTokensLog2 = kPieces == 1 ? 7 : kPieces == 2 ? 6 : 5;
  static_assert(kTokens == 1 << kTokensLog2);
  static constexpr int kKeys = kSets * kTokens / 32;  // of a lane
  static_assert(kTokens == score_round_tokens(kRowBytes) && kKeys == score_round_keys(kRowBytes, kSets));

  // Queries that 8 rows or columns of a product are, for `heads` heads at most.
  static constexpr int frags(int heads) { return kSets != 1 ? (kRows == 4 ? 2 : 1) : (heads * kRows + 7) / 8; }
  // Row of the quad and head that query g of `frag` is for.
  static __device__ __forceinline__ int query_row(int g, int frag) {
    if constexpr (kSets == 1) return g / (8 / kRows);
    return kRows == 1 ? 0 : 2 * frag + (g >> 2);
  }
  static __device__ __forceinline__ int query_head(int g, int frag) {
    if constexpr (kSets == 1) return frag * (8 / kRows) + g % (8 / kRows);
    return g & 3;
  }
  // The token of the round that key i of this lane is of.
  static __device__ __forceinline__ int token_of(int i) { return token_of(i, static_cast<int>(threadIdx.x & 31)); }
  static __device__ __forceinline__ int token_of(int i, int lane) {
    const int g = lane >> 2;
    const int c = lane & 3;
    if constexpr (kCodesFirst) {
      // One of its own rows; each halving gave a lane one half of them.
      int load = i;
      if (kPieces >= 2) load += (c & 1) * (kLoads / 2);
      if (kPieces == 4) load += (c >> 1) * (kLoads / 4);
      return load * kLoadTokens + lane / kPieces;
    } else if constexpr (kSets == 1) {
      // The quads are 2 * c and 2 * c + 1 of each load.
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

// A CTA's queries (kTeam = kThreads), or those of a warp alone (kTeam = 32), to shared memory in parts of [kHeads][kDims],
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
    const float inverse = divide(Codec::limit(), fmaxf(most, 1e-30F));
    Codec::store_query(mine[i] * inverse, at % kDims, head, head + kQueries * Codec::kPartBytes);
  }
  sync();
}

// Scores rounds of a warp against the queries that share_queries left.
// kShortKeys: for keys of 16 bits.
template <class Codec, int kDims, int kHeads, int kSets, bool kShortKeys = false>
struct Scorer {
  using Score = typename Codec::Score;
  static constexpr bool kCodesFirst = kSets == 1 && Codec::kParts == 1;
  using R = Round<kDims / Codec::kPieceDims * 16, kSets, kCodesFirst>;
  static constexpr int kFrags = R::frags(kHeads);
  // Products of a slab and operand of codes, and words of a lane for one of them.
  static constexpr bool kPairs = !kCodesFirst && Codec::kParts == 1;  // two frags in one product
  static constexpr int kProducts = kPairs ? (kFrags + 1) / 2 : kFrags;
  static constexpr int kWords = kCodesFirst ? 2 : 4;
  static constexpr bool kHoldsQuery = kProducts * Codec::kSlabs * kWords <= 32;  // in registers, where these suffice
  // Of each frag, two of each load: of two heads for this lane's row, or of this lane's head and row of the quad for quads 2 * c and
  // 2 * c + 1.
  using Sums = Score[kFrags][2 * R::kLoads];

  const char* queries;
  u32 query[kProducts][Codec::kSlabs][kWords];

  __device__ __forceinline__ explicit Scorer(const char* shared) : queries(shared) {
    if constexpr (kHoldsQuery) {
#pragma unroll
      for (int f = 0; f < kProducts; ++f) {
#pragma unroll
        for (int slab = 0; slab < Codec::kSlabs; ++slab) {
          words(f, slab, query[f][slab]);
#pragma unroll
          for (u32& q : query[f][slab]) asm("" : "+r"(q));  // computed here and not in the loop
        }
      }
    }
  }
  __device__ __forceinline__ void multiply(const uint4 (&v)[R::kLoads], Sums& all) {
#pragma unroll
    for (int f = 0; f < kProducts; ++f) {
      Score d[R::kLoads][4] = {};
#pragma unroll
      for (int slab = 0; slab < Codec::kSlabs; ++slab) {
        if constexpr (!kHoldsQuery) words(f, slab, query[f][slab]);
        const u32(&q)[kWords] = query[f][slab];
        if constexpr (kCodesFirst) {
#pragma unroll
          for (int j = 0; j < R::kLoads; j += 2) {
            const uint2 x = Codec::operand(v[j], slab);
            const uint2 y = Codec::operand(v[j + 1], slab);
            Codec::multiply(d[j], {x.x, y.x, x.y, y.y}, q[0], q[1]);
          }
        } else {
#pragma unroll
          for (int j = 0; j < R::kLoads; ++j) {
            const uint2 x = Codec::operand(v[j], slab);
            Codec::multiply(d[j], q, x.x, x.y);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < R::kLoads; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if constexpr (kCodesFirst) {
            all[f][2 * j + i] = d[j & ~1][2 * (j & 1) + i];
          } else if constexpr (kPairs) {
            all[2 * f][2 * j + i] = d[j][i];
            if (2 * f + 1 < kFrags) all[(2 * f + 1) % kFrags][2 * j + i] = d[j][2 + i];
          } else {
            all[f][2 * j + i] = Codec::join(d[j][i], d[j][2 + i]);
          }
        }
      }
    }
  }
  static __device__ __forceinline__ u32 key(Score s) {
    if constexpr (kShortKeys) {
      return Codec::short_key(s);
    } else {
      return key_of(s);
    }
  }
  // What a store of keys is given for a score: short ones are made two at a time.
  static constexpr u32 kNone = kShortKeys ? Codec::kNoShortScore : 0U;
  static __device__ __forceinline__ u32 stored(Score s) { return kShortKeys ? bits_of(s) : key_of(s); }
  // What is stored of the keys of this lane (Round::token_of).
  static __device__ __forceinline__ void reduce(Sums& all, u32 (&keys)[R::kKeys]) {
    const int g = (threadIdx.x & 31) >> 2;
    const int c = threadIdx.x & 3;
    if constexpr (kSets == 1) {
      Score(&best)[2 * R::kLoads] = all[0];
#pragma unroll
      for (int f = 1; f < kFrags; ++f) {
#pragma unroll
        for (int i = 0; i < 2 * R::kLoads; ++i) best[i] = max(best[i], all[f][i]);
      }
      // Best over the lanes of a row's heads; each keeps a part of the values (token_of).
      if constexpr (kCodesFirst) {
#pragma unroll
        for (int j = 0; j < R::kLoads; ++j) best[j] = max(best[2 * j], best[2 * j + 1]);
        if constexpr (R::kPieces >= 2) halve<R::kLoads / 2>(best, (c & 1) != 0, 1);
        if constexpr (R::kPieces == 4) halve<R::kLoads / 4>(best, (c & 2) != 0, 2);
      } else {
        halve<R::kLoads>(best, (g & 1) != 0, 4);
        if constexpr (R::kRows <= 2) halve<R::kLoads / 2>(best, (g & 2) != 0, 8);
        if constexpr (R::kRows <= 1) halve<R::kLoads / 4>(best, (g & 4) != 0, 16);
      }
#pragma unroll
      for (int i = 0; i < R::kKeys; ++i) keys[i] = stored(best[i]);
    } else {
#pragma unroll
      for (int i = 0; i < R::kKeys; ++i) {
        keys[i] = stored(R::kRows != 1   ? all[i / (2 * R::kLoads)][i % (2 * R::kLoads)]
                         : (g >> 2) != 0 ? all[0][R::kLoads + i]
                                         : all[0][i]);
      }
    }
  }

 private:
  // Of the query that is number g of a frag, what this lane's piece is multiplied with in a slab, at `part` bytes from the first part.
  __device__ __forceinline__ uint2 words_of(int frag, int slab, int part) const {
    const int g = (threadIdx.x & 31) >> 2;
    const int c = threadIdx.x & 3;
    const int head = min(R::query_head(g, frag), kHeads - 1);
    const char* at =
        queries + (head * kDims + c % R::kPieces * Codec::kPieceDims) * Codec::kPartBytes + slab * 8 + part;
    const uint2 both = *reinterpret_cast<const uint2*>(at);
    return R::query_row(g, frag) == c / R::kPieces ? both : make_uint2(0, 0);
  }
  __device__ __forceinline__ void words(int f, int slab, u32 (&q)[kWords]) const {
    const uint2 first = words_of(kPairs ? 2 * f : f, slab, 0);
    if constexpr (kCodesFirst) {
      q[0] = first.x;
      q[1] = first.y;
    } else {
      uint2 second = make_uint2(0, 0);
      if constexpr (!kPairs) {
        second = words_of(f, slab, kHeads * kDims * Codec::kPartBytes);
      } else if (2 * f + 1 < kFrags) {
        second = words_of(2 * f + 1, slab, 0);
      }
      q[0] = first.x;
      q[1] = second.x;
      q[2] = first.y;
      q[3] = second.y;
    }
  }
};

}  // namespace fasa::ops::paged
