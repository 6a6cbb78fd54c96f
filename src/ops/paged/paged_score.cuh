// Launch 1 of the fused step: append + index the new tokens, score every token, prune.
//
//   S[h, t] = sum_d q[h, d] * code[t, d]     on the tensor cores, 16 tokens x 4 heads an instruction
//
// Mapping: score_ctas CTAs a row, a row being (sequence, query token, KV head [, quad of heads]), and one more for
//   the new tokens. A row's tokens go round its CTAs 16 at a time, so that a hot window of neighbours spreads over all
//   of them. A warp takes 4 such units at a time and keeps the next two rounds of them on their way to a ring of its own
//   in shared memory (cp.async): no barrier, and no registers for what is in flight.
// Memory: index_row_bytes a token, read once; a few hundred (key, token) pairs a CTA written.
// Numerics: paged.h. Integer keys are exact.
// Ordering: no atomics but counts, maxima and minima of integers: bit-identical from run to run.
// Tried and dropped (docs/gpu.md): every warp gathering its own queries (many thousand warps ask L2 for the same 8 KB);
//   a second set of registers for loads in flight (two CTAs an SM, 12% slower at 16 x 128K); the new tokens' codes in a
//   CTA that also scores; prefetching the kernel's parameters; one launch for the whole step.
#pragma once

#include "src/ops/paged/paged_codec.cuh"
#include "src/ops/paged/paged_kernels.cuh"
#include "src/ops/paged/paged_prune.cuh"

namespace fasa::ops::paged {

// Which heads, plane and set a score row is about.
struct ScoreRow {
  int seq;
  int query;
  int kv_head;
  int plane;
  int head0;          // first query head
  int heads;          // how many
  int set0;           // first set
  bool writes_kv;     // appends K and V of kv_head
  bool writes_index;  // appends the index of plane
};

template <int kSets>
__device__ __forceinline__ ScoreRow score_row(const PagedShape& s, int row) {
  ScoreRow r;
  const int group = s.group();
  const int quads = (group + 3) / 4;
  const int rows = s.fcs_per_query_head != 0 ? s.num_q_heads : s.num_kv_heads * (kSets == 1 ? 1 : quads);
  const int token = row / rows;
  const int x = row - token * rows;
  r.seq = token / s.num_query_tokens;
  r.query = token - r.seq * s.num_query_tokens;
  const bool first = r.query == 0;
  if (s.fcs_per_query_head != 0) {
    r.head0 = r.plane = r.set0 = x;
    r.heads = 1;
    r.kv_head = x / group;
    r.writes_kv = first && x % group == 0;
    r.writes_index = first;
  } else if (kSets == 1) {
    r.kv_head = r.plane = r.set0 = x;
    r.head0 = x * group;
    r.heads = group;
    r.writes_kv = r.writes_index = first;
  } else {
    r.kv_head = r.plane = x / quads;
    const int quad = x - r.kv_head * quads;
    r.head0 = r.set0 = r.kv_head * group + 4 * quad;
    r.heads = min(4, group - 4 * quad);
    r.writes_kv = r.writes_index = first && quad == 0;
  }
  return r;
}

// K and V rows of this sequence's new tokens, a warp a token.
__device__ __forceinline__ void append_kv(const StepParams& p, const ScoreRow& r, int length) {
  const PagedShape& s = p.a.shape;
  constexpr int warps = kThreads / 32;
  const int lane = threadIdx.x & 31;
  const int chunks = s.head_dim / 8;
  for (int i = warps - 1 - static_cast<int>(threadIdx.x >> 5); i < s.num_query_tokens; i += warps) {
    const int position = length - s.num_query_tokens + i;
    if (position < 0) continue;
    const Place place = place_of(p, position);
    const int block = __ldcg(p.a.block_table + r.seq * p.a.block_table_stride + place.page);
    char* k = static_cast<char*>(p.a.k.data) + cache_offset(p.a.k, block, r.kv_head, place.offset);
    char* v = static_cast<char*>(p.a.v.data) + cache_offset(p.a.v, block, r.kv_head, place.offset);
    const char* from_k = row_at(p.a.k_new, r.seq, i, r.kv_head);
    const char* from_v = row_at(p.a.v_new, r.seq, i, r.kv_head);
    for (int c = lane; c < 2 * chunks; c += 32) {
      const int o = (c < chunks ? c : c - chunks) * 16;
      const uint4 x = __ldcg(reinterpret_cast<const uint4*>((c < chunks ? from_k : from_v) + o));
      *reinterpret_cast<uint4*>((c < chunks ? k : v) + o) = x;
    }
  }
}

// Slice c of the code of new token `token`, of this lane's plane.
template <class Codec>
__device__ __forceinline__ typename Codec::Slice new_code(const StepParams& p, const ScoreRow& r, int token,
                                                          bool is_f16) {
  constexpr int kLaneDims = Codec::kLaneDims;
  const int64_t at = static_cast<int64_t>(r.plane) * (4 * kLaneDims) + (threadIdx.x & 3) * kLaneDims;
  const char* k = row_at(p.a.k_new, r.seq, token, r.kv_head);
  unsigned short raw[kLaneDims];
  float y[kLaneDims];
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) raw[i] = load_stream<unsigned short>(k + 2 * __ldg(p.a.dims + at + i));
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) y[i] = half_value(raw[i], is_f16) * __frcp_rn(__ldg(p.a.index_scale + at + i));
  return Codec::encode(y);
}

// The list of the new tokens: lane 4 * g + c has the key of token g (of set c, or c == 0). One warp.
template <int kSets>
__device__ __forceinline__ void publish_new(u32 key, int position, int slots, uint2* out, uint4* bounds) {
  const int lane = threadIdx.x & 31;
  const u32 highest = sets_max<kSets>(key);
  const u32 lowest = ~sets_max<kSets>(key != 0 ? ~key : 0U);
  const u32 all = __ballot_sync(kFullWarp, key != 0);
  const u32 of_set = kSets == 1 ? all : all & (0x11111111U << (lane & 3));
  if (out == nullptr) return;
  if (kSets != 1 || (lane & 3) == 0) out[lane >> 2] = make_uint2(key, static_cast<u32>(position));
  for (int i = 8 + lane / kSets; i < slots; i += 32 / kSets) out[i] = make_uint2(0, 0);
  if (lane < kSets) *bounds = make_uint4(0, highest, lowest, __popc(of_set));
}

template <class Codec, int kFrags, int kSets>
__global__ void __launch_bounds__(kThreads, 3)
    score_kernel(const __grid_constant__ StepParams p) {
#if __CUDA_ARCH__ >= 900
  using Slice = typename Codec::Slice;
  using Score = typename Codec::Score;
  constexpr bool kFloat = sizeof(Score) == 4 && static_cast<Score>(0.5F) != static_cast<Score>(0);
  constexpr int kLaneDims = Codec::kLaneDims;
  constexpr int kKeys = kSets == 1 ? 2 : 8;  // of a thread and round
  constexpr int kDims = 4 * kLaneDims;
  constexpr int kQueries = 4 * kFrags * kDims;
  extern __shared__ __align__(16) u32 shared[];
  auto& s = *reinterpret_cast<PruneShared<kSets>*>(shared);
  // [4 * kFrags heads][kDims] of q * index_scale, zero past the row's heads.
  float* queries = reinterpret_cast<float*>(shared) + (kSets == 1 ? kPruneSharedBytes1 : kPruneSharedBytes4) / 4;
  // [warps][kStages][kRoundTokens] index rows
  constexpr int kRow = 4 * static_cast<int>(sizeof(Slice));
  constexpr int kRoundBytes = kRoundTokens * kRow;
  static_assert((kStages & (kStages - 1)) == 0);
  char* ring = reinterpret_cast<char*>(queries + kQueries) + (threadIdx.x >> 5) * kStages * kRoundBytes;
  u32* keys = reinterpret_cast<u32*>(queries + kQueries) + kThreads / 32 * kStages * kRoundBytes / 4;
  const PagedShape& shape = p.a.shape;
  constexpr int nt = kThreads;
  const int tid = threadIdx.x;
  const int lane = tid & 31;
  const int warp = tid >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  const int ctas = gridDim.x - 1;
  const int rank = blockIdx.x;
  const bool for_new = rank == ctas;  // the CTA of the new tokens
  const ScoreRow r = score_row<kSets>(shape, blockIdx.y);
  s.clear();
  // dims and index_scale are constants of the model: no kernel of the stream writes them (paged.h).
  const int64_t plane0 = static_cast<int64_t>(r.plane) * kDims;
  const int my_dim = __ldg(p.a.dims + plane0 + tid % kDims);
  const float my_scale = __ldg(p.a.index_scale + plane0 + tid % kDims);

  grid_wait();
  grid_launch_dependents();

  // Everything that hangs on one load is asked for before any of it is waited for.
  const int length = p.a.lengths[r.seq];
  // A warp's round: 4 units and where they are; page: the block itself. Needs no length. Where pages do not hold whole
  // units, each row is looked up for itself.
  struct Round {
    int unit[4];
    Place place[4];
  };
  const int32_t* table = p.a.block_table + r.seq * p.a.block_table_stride;
  const bool whole_units = (shape.page_size & 15) == 0;
  const auto unit_of = [&](int round, int j) { return spread_unit((round * (nt >> 5) + warp) * 4 + j, rank, ctas); };
  const int last_unit = static_cast<int>((shape.max_length - 1) >> 4);
  const auto look_up = [&](int round) {
    Round at;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      at.unit[j] = unit_of(round, j);
      at.place[j] = place_of(p, min(at.unit[j], last_unit) * 16);
      if (whole_units) at.place[j].page = table[at.place[j].page];
    }
    return at;
  };
  const Round first_round = look_up(0);
  Round next_round = look_up(1);
  const bool is_f16 = shape.kv_type == PagedKvType::kF16;
  const auto load_query = [&](int i) {
    return load_stream<unsigned short>(row_at(p.a.q, r.seq, r.query, r.head0 + min(i / kDims, r.heads - 1)) +
                                       2 * my_dim);
  };
  const auto store_query = [&](int i, unsigned short bits) {
    queries[i] = i / kDims < r.heads ? half_value(bits, is_f16) * my_scale : 0.0F;
  };
  const unsigned short first_query = tid < kQueries ? load_query(tid) : 0;
  const bool appends = p.a.k_new.data != nullptr;
  const int seen = length - shape.num_query_tokens + r.query + 1;
  const int first_new = appends ? max(0, length - shape.num_query_tokens) : length;
  // Scored: neither a sink nor recent. Nothing at all where every token is kept.
  const bool scores = seen > shape.budget && shape.budget > shape.sinks + shape.recent;
  const int lo = shape.sinks;
  const int hi = scores ? seen - shape.recent : 0;
  const int hi_old = min(hi, first_new);
  const int units = hi_old > lo && !for_new ? (hi_old + 15) >> 4 : 0;

  // A lane copies 16-byte pieces of its rows.
  constexpr int kPerRow = kRow / 16;
  constexpr int kRowStep = 32 / kPerRow;  // rows that one piece of all lanes spans
  const char* base = static_cast<const char*>(p.a.index.data) + r.plane * p.a.index.head_stride + lane % kPerRow * 16;
  const int row0 = lane / kPerRow;
  const u32 ring_address = shared_address(ring) + lane * 16;
  const auto load_rows = [&](int round, const Round& at) {
    // Units past the end are read as the round's first one, and rows past the end are memory of the cache: their scores
    // are not kept.
    if (at.unit[0] < units) {
      const u32 to = ring_address + (round & (kStages - 1)) * kRoundBytes;
#pragma unroll
      for (int i = 0; i < kRoundTokens / kRowStep; ++i) {
        const int row = row0 + i * kRowStep;
        // The unit of the row: the same for all lanes, or one of two where a piece spans two.
        constexpr bool kTwo = kRowStep > 16;
        const int j = kTwo ? 2 * i : i * kRowStep / 16;
        int unit = at.unit[j];
        Place place = at.place[j];
        if (kTwo && row0 >= 16) {
          unit = at.unit[j + (kTwo ? 1 : 0)];
          place = at.place[j + (kTwo ? 1 : 0)];
        }
        if (unit >= units) {
          unit = at.unit[0];
          place = at.place[0];
        }
        if (whole_units) {
          place.offset += row & 15;
        } else {
          place = place_of(p, min(unit * 16 + (row & 15), hi_old - 1));
          place.page = table[place.page];
        }
        copy_async16(to + i * 512, base + place.page * p.a.index.block_stride + place.offset * p.a.index.token_stride);
      }
    }
    copy_async_commit();
  };
  load_rows(0, first_round);
  load_rows(1, next_round);
  next_round = look_up(2);

  if (tid < kQueries) store_query(tid, first_query);
  for (int i = tid + nt; i < kQueries; i += nt) store_query(i, load_query(i));
  __syncthreads();
  // Queries of column g (head g / 2 of a quad, high or low part) for this lane's dims.
  float x[kFrags][kLaneDims];
  float largest = 0;
#pragma unroll
  for (int f = 0; f < kFrags; ++f) {
#pragma unroll
    for (int i = 0; i < kLaneDims; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(queries + (4 * f + (g >> 1)) * kDims + c * kLaneDims + i);
      x[f][i] = v.x;
      x[f][i + 1] = v.y;
      x[f][i + 2] = v.z;
      x[f][i + 3] = v.w;
    }
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) largest = fmaxf(largest, fabsf(x[f][i]));
  }
  if constexpr (kSets == 1) {
    largest = __uint_as_float(__reduce_max_sync(kFullWarp, __float_as_uint(largest)));
  } else {
#pragma unroll
    for (int o = 1; o < 8; o <<= 1) largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, o));
  }
  const float inverse = Codec::query_limit() / fmaxf(largest, 1e-30F);
  typename Codec::Query query[kFrags];
#pragma unroll
  for (int f = 0; f < kFrags; ++f) query[f] = Codec::query(x[f], inverse, (g & 1) != 0);

  // The scores of head c (or the best of the row's heads) for tokens g and g + 8 of a tile.
  const Score none = kFloat ? static_cast<Score>(-__int_as_float(0x7F800000)) : static_cast<Score>(-2147483647 - 1);
  const auto score_tile = [&](const Slice& v0, const Slice& v1, Score& s0, Score& s1) {
    s0 = s1 = none;
#pragma unroll
    for (int f = 0; f < kFrags; ++f) {
      Score t0;
      Score t1;
      Codec::scores(v0, v1, query[f], t0, t1);
      if (4 * f + c < r.heads) {
        s0 = f == 0 ? t0 : max(s0, t0);
        s1 = f == 0 ? t1 : max(s1, t1);
      }
    }
  };
  const bool has_head = kSets == 1 || c < r.heads;
  const int set = r.set0 + (kSets == 1 ? 0 : c);
  const int64_t list = ((static_cast<int64_t>(r.seq) * shape.num_query_tokens + r.query) * shape.num_sets() +
                        (has_head ? set : r.set0)) *
                           (ctas + 1) +
                       rank;
  uint2* const slots = p.slots + list * p.plan.slots;

  if (for_new) {
    if (appends && r.writes_kv) append_kv(p, r, length);
    if (warp != 0) return;
    const int position = first_new + g;
    const bool mine = appends && position < length;
    u32 key = 0;
    if (appends) {
      const Slice code = new_code<Codec>(p, r, mine ? position - (length - shape.num_query_tokens) : 0, is_f16);
      if (mine && r.writes_index) {
        const Place place = place_of(p, position);
        *reinterpret_cast<Slice*>(static_cast<char*>(p.a.index.data) +
                                  cache_offset(p.a.index, table[place.page], r.plane, place.offset) +
                                  c * static_cast<int>(sizeof(Slice))) = code;
      }
      Score s0;
      Score s1;
      score_tile(code, code, s0, s1);
      if constexpr (kSets == 1) {
        s0 = max(s0, __shfl_xor_sync(kFullWarp, s0, 1));
        s0 = max(s0, __shfl_xor_sync(kFullWarp, s0, 2));
      }
      if (mine && has_head && position >= lo && position < hi && (kSets != 1 || c == 0)) key = key_of(s0);
    }
    publish_new<kSets>(key, position, p.plan.slots, scores && has_head ? slots : nullptr, p.bounds + list);
    return;
  }
  if (!scores) return;

  u32 best = 0;
  int n = 0;
  const auto keep = [&](Score score, bool valid) {
    const u32 key = valid ? key_of(score) : 0U;
    keys[n * nt + tid] = key;
    ++n;
    best = max(best, key);
  };
  for (int round = 0; unit_of(round, 0) < units; ++round) {
    copy_async_wait_groups<kStages - 1>();
    __syncwarp();
    const char* rows = ring + (round & (kStages - 1)) * kRoundBytes + g * kRow + c * static_cast<int>(sizeof(Slice));
    Score t[8];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      score_tile(*reinterpret_cast<const Slice*>(rows + 16 * j * kRow),
                 *reinterpret_cast<const Slice*>(rows + (16 * j + 8) * kRow), t[2 * j], t[2 * j + 1]);
    }
    __syncwarp();
    load_rows(round + kStages, next_round);
    next_round = look_up(round + kStages + 1);
    if constexpr (kSets == 1) {
      // Best over the four lanes of a token; lane c keeps unit c.
      Score u[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Score other = __shfl_xor_sync(kFullWarp, (c & 2) != 0 ? t[i] : t[4 + i], 2);
        u[i] = max((c & 2) != 0 ? t[4 + i] : t[i], other);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Score other = __shfl_xor_sync(kFullWarp, (c & 1) != 0 ? u[i] : u[2 + i], 1);
        const int token = unit_of(round, c) * 16 + g + 8 * i;
        keep(max((c & 1) != 0 ? u[2 + i] : u[i], other), token >= lo && token < hi_old);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int token = unit_of(round, i >> 1) * 16 + g + 8 * (i & 1);
        keep(t[i], has_head && token >= lo && token < hi_old);
      }
    }
  }

  const auto token_of = [&](int i) {
    const int of_round = kSets == 1 ? 2 * c + i % kKeys : i % kKeys;
    return unit_of(i / kKeys, of_round >> 1) * 16 + g + 8 * (of_round & 1);
  };
  prune<kSets, kFloat>(s, keys, n, best, p.plan.quota, p.plan.slots, has_head ? slots : nullptr, p.bounds + list,
                       token_of);
#endif
}

template <class Codec>
ScoreKernel pick_score_kernel(int frags, int sets) {
  if (sets == 4) return score_kernel<Codec, 1, 4>;
  if (frags == 1) return score_kernel<Codec, 1, 1>;
  if (frags == 2) return score_kernel<Codec, 2, 1>;
  return score_kernel<Codec, 4, 1>;
}

}  // namespace fasa::ops::paged
