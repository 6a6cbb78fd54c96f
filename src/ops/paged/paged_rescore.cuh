// Scores of single tokens of a row, by lanes: where keys have 16 bits, and several scores share one, they tell apart those of the
// threshold (paged_team_select.cuh). Integer codes give the very scores of the tensor cores.
#pragma once

#include "src/ops/paged/paged_scorer.cuh"

namespace fasa::ops::paged {

// Tokens: RowTokens of the CTA. An id is number * 32 + lane of a key, and its warp from bit 13 on.
template <class Codec, int kDims, int kNumHeads, class Tokens>
struct Rescore {
  static constexpr bool kCuts = true;
  static constexpr int kHeads = kNumHeads;  // which has a query each, also where the row has fewer
  static constexpr int kPieces = kDims / Codec::kPieceDims;

  const StepParams* p;
  const int* own_table;  // the block table in shared memory, or null
  const char* queries;   // as share_queries left them
  Tokens tokens;
  int seq;
  int plane;

  __device__ __forceinline__ auto score(u32 id, int head) const {
    const Place at =
        place_of(*p, tokens(static_cast<int>(id >> 5 & 255U), static_cast<int>(id & 31U), static_cast<int>(id >> 13)));
    const int block = own_table != nullptr
                          ? own_table[at.page]
                          : load_stream<int>(p->a.block_table + seq * p->a.block_table_stride + at.page);
    const char* from = static_cast<const char*>(p->a.index.data) + cache_offset(p->a.index, block, plane, at.offset);
    uint4 row[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) row[i] = load_stream<uint4>(from + 16 * i);
    const char* query = queries + head * kDims * Codec::kPartBytes;
    return Codec::score(row, query, query + kHeads * kDims * Codec::kPartBytes);
  }
  // Of key `key`, number * 32 + lane of this thread's warp and for its set, which among those that share it.
  template <int kSets>
  __device__ __forceinline__ u32 rest(int number_and_lane, u32 key) const {
    const u32 id = static_cast<u32>(number_and_lane) | threadIdx.x >> 5 << 13;
    if constexpr (kSets != 1) return Codec::rest_of(score(id, set_of_thread<kSets>()), key);
    auto best = score(id, 0);
#pragma unroll 1
    for (int head = 1; head < kHeads; ++head) best = max(best, score(id, head));
    return Codec::rest_of(best, key);
  }
};

}  // namespace fasa::ops::paged
