// Shared memory of the fused kernels, known to the plan without a CUDA header.
#pragma once

#include <cstdint>

#include "src/ops/paged/paged.h"

#if defined(__CUDACC__)
#define FASA_PAGED_BOTH __host__ __device__
#else
#define FASA_PAGED_BOTH
#endif

namespace fasa::ops {

// What one CTA may use on every device with the fused path.
inline constexpr int64_t kPagedSharedMemory = 227 * 1024;

namespace paged {

// Rows that the score kernel's grid has: 4 query heads choose together in one, or a KV head does.
constexpr int64_t score_rows(const PagedShape& s) {
  const int64_t tokens = static_cast<int64_t>(s.num_seqs) * s.num_query_tokens;
  if (s.fcs_per_query_head != 0) return tokens * s.num_q_heads;
  return tokens * s.num_kv_heads * (s.tokens_per_query_head != 0 ? (s.group() + 3) / 4 : 1);
}

// What is copied to shared memory (cp.async) begins at such a line: to other places it takes longer.
inline constexpr int kLineBytes = 128;
FASA_PAGED_BOTH constexpr int whole_lines(int bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

// CTAs of a cluster that does a step in one launch, for one set of tokens or for four at once, and keys of one bin and set that they
// rank, at most.
FASA_PAGED_BOTH constexpr int team_ctas(int sets) { return sets == 1 ? 16 : 8; }
FASA_PAGED_BOTH constexpr int team_ties(int sets) { return sets == 1 ? 128 : 64; }
// CTAs whose part of an exchange is read at once: as many as a row of a single sequence has, as a second turn costs more.
inline constexpr int kCtasTogether = 9;
// Bins of each set: 1 KB for a CTA of the cluster to send.
FASA_PAGED_BOTH constexpr int team_bins(int sets) { return 512 / sets; }
// Keys that a lane of it holds in registers; with a ring rows have more CTAs for what they keep.
FASA_PAGED_BOTH constexpr int team_held(int sets, bool has_ring) { return sets != 1 ? 16 : has_ring ? 8 : 12; }

inline constexpr int kPruneBins = 512;
inline constexpr int kPruneSharedBytes1 = whole_lines(4 * (kPruneBins + 8 + 3 + 2 + 3));
inline constexpr int kPruneSharedBytes4 = whole_lines(4 * 4 * (kPruneBins + 8 + 3 + 2 + 3));
inline constexpr int kSelectSharedBytes = whole_lines(4 * (2 * kPruneBins + 32 + 8));

FASA_PAGED_BOTH constexpr int team_shared_bytes(int sets) { return sets == 1 ? kSelectSharedBytes : 5696; }

// Threads of a CTA of every kernel of the fused step: a constant, as loops over a runtime stride cost divisions.
inline constexpr int kThreads = 256;

// Launch 1: CTAs of an SM, rounds that a warp has on their way, 16-byte loads of a lane and round (2 KB of index rows of 16, 32
// or 64 bytes a warp), tokens of a round, keys a lane gets for them, and how many of these it stores at once.
inline constexpr int kScoreCtas = 2;
inline constexpr int kBuffers = 2;
inline constexpr int kRoundLoads = 4;
inline constexpr int kRoundBytes = 512 * kRoundLoads;
// Keys of a lane that are not looked through first for those that may be kept, in one launch.
inline constexpr int kDirectKeys = 8;
// Where a CTA has an SM for itself and many tokens: rounds that a warp has on their way in shared memory.
inline constexpr int kStepRing = 4;
// Tokens of a unit, which the CTAs of a row take in turn: few, so that neighbours, which may be kept together, lie in different CTAs. With
// a ring more, as there are fewer to look up then.
FASA_PAGED_BOTH constexpr int score_unit_log2(int ring) { return ring != 0 ? 6 : 4; }
// Rounds that a warp scores at once: what follows from one waits for itself.
FASA_PAGED_BOTH constexpr int score_rounds_together(int ring) { return ring != 0 ? 2 : 1; }
FASA_PAGED_BOTH constexpr int score_round_tokens(int row_bytes) { return 512 * kRoundLoads / row_bytes; }
FASA_PAGED_BOTH constexpr int score_round_keys(int row_bytes, int sets) {
  return sets * score_round_tokens(row_bytes) / 32;
}
// Keys that a thread of launch 1 keeps all of; where a row has more, those that are left of them, and the rest a chunk at a time
// (paged_sieve.cuh).
inline constexpr int kChunkKeys = 64;
inline constexpr int kLeftKeys = 16;
// Selection alone: CTAs of an SM, keys of a thread and round, rounds that a thread has on their way, keys that it keeps all of, and
// where it has more, keys that are left which a warp has room for.
inline constexpr int kSelectCtas = 2;
inline constexpr int kSelectRoundKeys = 16;
inline constexpr int kSelectRing = 4;
inline constexpr int kSelectKeys = 32;
inline constexpr int kSelectRoom = 512;
FASA_PAGED_BOTH constexpr int key_vector(int round_keys) { return round_keys < 4 ? round_keys : 4; }
// Dims of which a score has a key of 16 bits, at most (paged_codec.cuh), and bytes of a key in one launch, of a score of its own: those of
// 32 int4 codes are below 2^15, but for their unit.
inline constexpr int kShortKeyDims = 32;
FASA_PAGED_BOTH constexpr int least_key_bytes(PagedIndexType type, int dims) {
  return type == PagedIndexType::kI4 && dims <= kShortKeyDims ? 2 : 4;
}
// Heads that the kernel for `heads` heads scored together has room for.
FASA_PAGED_BOTH constexpr int score_heads(int heads) { return heads <= 4 ? 4 : heads <= 8 ? 8 : 16; }
// Bytes of a warp for an address and a block of each lane; in one launch then for 16 bits of each key held.
FASA_PAGED_BOTH constexpr int score_warp_bytes(bool one_launch, int sets, bool has_ring) {
  return 32 * (one_launch ? 2 * team_held(sets, has_ring) : 12);
}
static_assert(score_warp_bytes(true, 1, true) >= 32 * 12);
// Bytes of the queries of `heads` heads in two parts, the largest of each 16 of their dims, and what the warps have.
FASA_PAGED_BOTH constexpr int score_query_bytes(int heads, int dims, int part_bytes, bool one_launch, int sets,
                                                bool has_ring) {
  return heads * dims / 16 * 4 + 2 * heads * dims * part_bytes +
         kThreads / 32 * score_warp_bytes(one_launch, sets, has_ring);
}

// What a warp needs for the new tokens of a row: its queries, and a key of each of 8 tokens and set.
FASA_PAGED_BOTH constexpr int score_new_bytes(int heads, int dims, int part_bytes, int sets) {
  return heads * dims / 16 * 4 + 2 * heads * dims * part_bytes + 8 * sets * 4;
}

// From one query of 16-bit values to the next in shared memory: not a multiple of 128, so that 8 of them are read at once.
FASA_PAGED_BOTH constexpr int query_stride(int head_dim) { return 2 * head_dim + 16; }

// Tiles of 16 kept tokens that a warp has on their way, and where it has the rows of K and of V of one.
FASA_PAGED_BOTH constexpr int attend_stages(int ring) { return ring != 0 ? 2 : 1; }
FASA_PAGED_BOTH constexpr int attend_stage_bytes(int head_dim) { return 2 * 16 * 2 * head_dim; }

// Entries of the list of a set in one launch: what is kept, and ties.
FASA_PAGED_BOTH constexpr int team_entries(int budget, int sets) { return budget + team_ties(sets); }

// Bytes of dynamic shared memory of attend_kernel, in its order.
struct AttendLayout {
  int select;   // SelectShared or ExactShared, or TeamShared
  int list;     // int32 [sets][budget, or team_entries]: the tokens to attend to
  int inbox;    // float [cluster][heads * head_dim / cluster, whole chunks of 32]
  int stats;    // float2 [8 or 16 CTAs][8 heads]: maximum, sum
  int warps;    // float [8 warps][8 maxima, 8 sums]
  int barrier;  // 8 bytes; three more where the step is one launch
  int queries;  // 8 rows of query_stride(head_dim) bytes
  int table;    // int32 [table_entries]
  int slots;  // uint2 [lists * slots], or what a team exchanges; later attend_stage_bytes of each warp, also past the end in one launch
  int total;
  int table_entries;  // of the block table, copied while rows are scored: all, or none where they are many
};
// Of a plan of which all else is there.
AttendLayout attend_layout(const PagedShape& shape, const PagedPlan& plan);

}  // namespace paged
}  // namespace fasa::ops

#undef FASA_PAGED_BOTH
