// Rows of the index of the tokens that a warp scores: which tokens these are, where their rows lie, and how they come.
//
// A row's tokens go round its CTAs a unit at a time (score_unit_log2), a CTA's units round its warps a round at a time (2 KB of index
// rows). Where units lie is looked up by a lane each, a batch of rounds together: the blocks of a batch are asked for while the one before
// it is scored, and become the addresses of its units when its first round is asked for.
#pragma once

#include "src/ops/paged/paged_kernels.cuh"
#include "src/ops/paged/paged_prune.cuh"
#include "src/ops/paged/paged_score_row.cuh"

namespace fasa::ops::paged {

// Which token the keys of a CTA are of: key i of a lane is of round i / kKeys of its warp.
template <class R, bool kNewToken, int kRing>
struct RowTokens {
  static constexpr int kUnitLog2 = score_unit_log2(kRing);
  // A warp has a multiple of so many rounds, perhaps of no tokens at all.
  static constexpr int kTogether = score_rounds_together(kRing);
  static constexpr int kUnits = R::kTokens >> kUnitLog2;  // of a round
  static_assert(kUnits << kUnitLog2 == R::kTokens);

  int turns;  // units of tokens of this CTA
  int rank;
  int ctas;
  int first_new;

  // Unit of tokens number `slot` of a warp's round.
  static __device__ __forceinline__ int turn_of(int round, int slot, int warp) {
    return (round * (kThreads / 32) + warp) * kUnits + slot;
  }
  __device__ __forceinline__ int rounds_of(int warp) const {
    constexpr int kAll = kThreads / 32 * kUnits;
    return (max(0, turns - turn_of(0, 0, warp) + kAll - 1) / kAll + kTogether - 1) / kTogether * kTogether;
  }
  __device__ __forceinline__ int token_at(int round, int i, int lane, int warp) const {
    const int x = R::token_of(i, lane);
    return (spread_unit(turn_of(round, x >> kUnitLog2, warp), rank, ctas) << kUnitLog2) + (x & ((1 << kUnitLog2) - 1));
  }
  // A new token's keys are after those of the rounds.
  __device__ __forceinline__ int operator()(int i, int lane, int warp) const {
    if (kNewToken && i >= rounds_of(warp) * R::kKeys) return first_new;
    return token_at(i / R::kKeys, i % R::kKeys, lane, warp);
  }
};

// A lane's loads of a row are pieces of 16 bytes: piece lane % kPieces of token lane / kPieces of each load.
template <class R, bool kNewToken, int kRing>
struct IndexRows {
  static constexpr int kPieces = R::kPieces;
  using Tokens = RowTokens<R, kNewToken, kRing>;
  static constexpr int kUnitLog2 = Tokens::kUnitLog2;
  static constexpr u32 kUnits = Tokens::kUnits;
  static constexpr bool kLong = kUnitLog2 != 4;

  const StepParams& p;
  int rank;
  int ctas;
  // Shared, of this warp: addresses of the 32 pieces of tokens (below) that were looked up last, and the blocks of the next ones.
  unsigned long long* unit_rows;
  int* unit_blocks;
  const int32_t* table;
  const char* index;  // of the row's plane
  int lane = static_cast<int>(threadIdx.x & 31U);
  int warp = static_cast<int>(threadIdx.x) >> 5;
  // A lane looks up a piece of a batch of rounds, for which no length is needed: 16 tokens, or a longer unit whose rows are contiguous.
  bool is_long = kLong && (p.a.shape.page_size & ((1 << kUnitLog2) - 1)) == 0 && p.a.index.token_stride == 16 * kPieces;
  int piece_log2 = is_long ? kUnitLog2 : 4;
  int batch_log2 = 5 - R::kTokensLog2 + piece_log2;  // of its rounds
  int batch_rounds = 1 << batch_log2;
  int last_token = static_cast<int>(p.a.shape.max_length - 1);
  int piece_offset = (lane & 3) % kPieces * 16;
  int64_t lane_offset =
      static_cast<int64_t>(lane / kPieces & ((1 << piece_log2) - 1)) * p.a.index.token_stride + piece_offset;
  bool whole_units = kNewToken || (p.a.shape.page_size & 15) == 0;  // in one launch always
  // With the length:
  int turns = 0;   // units of tokens of this CTA
  int hi_old = 0;  // tokens of the cache from here on are not scored

  __device__ __forceinline__ Tokens see(const Span& span) {
    hi_old = min(span.hi, span.first_new);
    const int units = hi_old > span.lo ? (hi_old + (1 << kUnitLog2) - 1) >> kUnitLog2 : 0;
    turns = static_cast<int>(__umulhi(static_cast<u32>(units), p.cta_factor));  // units / ctas, or one less
    turns += (turns + 1) * ctas <= units ? 1 : 0;
    turns += spread_unit(turns, rank, ctas) < units ? 1 : 0;
    return {turns, rank, ctas, span.first_new};
  }
  // The first token of this lane's piece of a batch.
  __device__ __forceinline__ int lane_token(int batch) const {
    const bool is_part = kLong && !is_long;
    constexpr u32 kParts = 1U << (kUnitLog2 - 4);
    const u32 piece = static_cast<u32>(batch * 32 + lane);
    const u32 i = is_part ? piece / kParts : piece;
    const int turn = Tokens::turn_of(static_cast<int>(i / kUnits), static_cast<int>(i % kUnits), warp);
    const int first = min(spread_unit(turn, rank, ctas), last_token >> kUnitLog2) << kUnitLog2;
    return is_part ? min(first + static_cast<int>(piece % kParts) * 16, last_token & ~15) : first;
  }
  // Blocks go to shared memory by cp.async, as no register should wait for them.
  __device__ __forceinline__ void ask_block(const int32_t* entry) const {
    copy_async4(shared_address(unit_blocks + lane), entry);
  }
  __device__ __forceinline__ const int32_t* entry_of(int batch) const {
    return table + place_of(p, lane_token(batch)).page;
  }
  __device__ __forceinline__ void ask_batch(int batch) const { ask_block(entry_of(batch)); }
  // kWaits: for the blocks, which in the ring came with an earlier round.
  template <bool kWaits>
  __device__ __forceinline__ void next_batch(int batch) const {
    // Pieces past the end are read as the batch's first one; rows past the end are memory of the cache.
    const int token = lane_token(batch);
    const bool inside = token < hi_old;
    const int offset = inside ? place_of(p, token).offset : 0;
    if constexpr (kWaits) copy_async_wait();
    __syncwarp();
    const int block = unit_blocks[inside ? lane : 0];
    const char* rows = index + block * p.a.index.block_stride + offset * p.a.index.token_stride;
    unit_rows[lane] = static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(rows));
    __syncwarp();
  }
  static __device__ __forceinline__ const char* pointer(unsigned long long at) {
    return reinterpret_cast<const char*>(static_cast<uintptr_t>(at));
  }
  __device__ __forceinline__ void find_round(int round, const char* (&from)[R::kLoads]) const {
    if (whole_units) {
      const unsigned long long* base = unit_rows + (round * (R::kTokens / 16) & 31);
#pragma unroll
      for (int j = 0; j < R::kLoads; ++j) {
        unsigned long long at;
        if constexpr (kPieces == 1) {
          at = base[2 * j + (lane >> 4)];
        } else {
          const int slot = j * R::kLoadTokens / 16;
          const ulonglong2 two = *reinterpret_cast<const ulonglong2*>(base + (slot & ~1));
          at = (slot & 1) == 0 ? two.x : two.y;
        }
        from[j] = pointer(at);
      }
#pragma unroll
      for (int j = 0; j < R::kLoads; ++j) {
        from[j] += kPieces == 4 && (j & 1) != 0 ? lane_offset + 8 * p.a.index.token_stride : lane_offset;
      }
    } else {
#pragma unroll
      for (int j = 0; j < R::kLoads; ++j) {
        const int x = j * R::kLoadTokens + lane / kPieces;
        const int unit = spread_unit(min(Tokens::turn_of(round, x >> 4, warp), turns - 1), rank, ctas);
        const Place place = place_of(p, min(unit * 16 + (x & 15), hi_old - 1));
        from[j] =
            index + table[place.page] * p.a.index.block_stride + place.offset * p.a.index.token_stride + piece_offset;
      }
    }
  }
  __device__ __forceinline__ void load_round(int round, uint4 (&v)[R::kLoads]) const {
    const char* from[R::kLoads];
    find_round(round, from);
#pragma unroll
    for (int j = 0; j < R::kLoads; ++j) v[j] = load_row(from[j]);
  }
  // A round and the next one to shared memory, from which the lane that asked reads: load j of this lane at to + j * 512.
  __device__ __forceinline__ void copy_rounds(int round, u32 to) const {
    if (is_long) {
      const auto* two_units = reinterpret_cast<const ulonglong2*>(unit_rows + (static_cast<u32>(round) * kUnits & 31U));
      constexpr int kUnitBytes = (16 * kPieces) << kUnitLog2;
#pragma unroll
      for (int i = 0; i < 2 * kRoundBytes; i += 2 * kUnitBytes) {
        const ulonglong2 two = two_units[i / (2 * kUnitBytes)];
#pragma unroll
        for (int j = 0; j < 2 * kUnitBytes; j += 512) {
          copy_async16(to + i + j, pointer(j < kUnitBytes ? two.x : two.y) + lane_offset + j % kUnitBytes);
        }
      }
    } else {
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const char* from[R::kLoads];
        find_round(round + b, from);
#pragma unroll
        for (int j = 0; j < R::kLoads; ++j) copy_async16(to + b * kRoundBytes + j * 512, from[j]);
      }
    }
  }
};

}  // namespace fasa::ops::paged
