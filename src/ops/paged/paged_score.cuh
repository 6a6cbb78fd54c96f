// Launch 1 of the fused step: append + index the new tokens, score every token, prune.
//
//   S[h, t] = sum_d q[h, d] * code[t, d]     on the tensor cores (paged_codec.cuh)
//
// Mapping: score_ctas CTAs a row, a row being (sequence, query token, KV head [, quad of heads]), and a warp of other CTAs
//   for its new tokens. A row's tokens go round its CTAs 16 at a time, so that a hot window of neighbours spreads over all
//   of them. In a round a warp scores 2 KB of index rows, four 16-byte pieces a lane, while those of the next round are on
//   their way to registers. Where a unit of 16 tokens lies is looked up by one lane, for 32 units at a time.
// Memory: index_row_bytes a token, read once; a few hundred (key, token) pairs a CTA written.
// Numerics: paged.h. Integer keys are exact.
// Ordering: no atomics but counts, maxima and minima of integers: bit-identical from run to run.
// Tried and dropped (docs/gpu.md): every warp gathering its own queries (many thousand warps ask L2 for the same 8 KB);
//   index rows through a ring in shared memory; every lane looking up every unit (half of all instructions); the new tokens'
//   codes in a CTA that also scores; prefetching the kernel's parameters; one launch for the whole step.
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
// x: row of the token; token: (sequence, query token) as one number.
__device__ __forceinline__ ScoreRow score_row(const PagedShape& s, int x, int token) {
  ScoreRow r;
  const int group = s.group();
  const int quads = (group + 3) / 4;
  r.seq = s.num_query_tokens == 1 ? token : token / s.num_query_tokens;
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

// K and V rows of this sequence's new tokens, by one warp.
__device__ __forceinline__ void append_kv(const StepParams& p, const ScoreRow& r, int length) {
  const PagedShape& s = p.a.shape;
  const int lane = threadIdx.x & 31;
  const int chunks = s.head_dim / 8;
  for (int i = 0; i < s.num_query_tokens; ++i) {
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

// Piece `piece` of the code of new token `token`.
template <class Codec>
__device__ __forceinline__ uint4 new_code(const StepParams& p, const ScoreRow& r, int token, int piece, bool is_f16) {
  constexpr int kDims = Codec::kPieceDims;
  const int64_t at = static_cast<int64_t>(r.plane) * p.a.shape.index_dims + piece * kDims;
  const char* k = row_at(p.a.k_new, r.seq, token, r.kv_head);
  unsigned short raw[kDims];
  float y[kDims];
#pragma unroll
  for (int i = 0; i < kDims; ++i) raw[i] = load_stream<unsigned short>(k + 2 * __ldg(p.a.dims + at + i));
#pragma unroll
  for (int i = 0; i < kDims; ++i) y[i] = half_value(raw[i], is_f16) * __frcp_rn(__ldg(p.a.index_scale + at + i));
  return Codec::encode(y);
}

// The list of the new tokens, by one warp: `key` is that of new token `member` below, of this thread's set; 0 past the 8th.
template <int kSets>
__device__ __forceinline__ void publish_new(u32 key, int first_new, int slots, uint2* out, uint4* bounds) {
  const int member = member_of_set<kSets>() & (32 / kSets - 1);
  const u32 highest = sets_max<kSets>(key);
  const u32 lowest = ~sets_max<kSets>(key != 0 ? ~key : 0U);
  const u32 all = __ballot_sync(kFullWarp, key != 0);
  const u32 of_set = kSets == 1 ? all : all & (0x000F000FU << 4 * set_of_thread<kSets>());
  if (out == nullptr) return;
  for (int i = member; i < slots; i += 32 / kSets) {
    out[i] = i == member ? make_uint2(key, static_cast<u32>(first_new + member)) : make_uint2(0, 0);
  }
  if (member == 0) *bounds = make_uint4(0, highest, lowest, __popc(of_set));
}

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
  static __device__ __forceinline__ int token_of(int i) {
    const int lane = threadIdx.x & 31;
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

// Which list the keys of this thread's set go to; set: past set0, or 0 where the row has no such head.
__device__ __forceinline__ int64_t list_of(const StepParams& p, const ScoreRow& r, int set, int rank) {
  const PagedShape& s = p.a.shape;
  const int64_t token = static_cast<int64_t>(r.seq) * s.num_query_tokens + r.query;
  return (token * s.num_sets() + r.set0 + set) * p.plan.lists() + rank;
}

// What a sequence's length means for a row: tokens lo..hi-1 are scored, those from first_new on are new.
struct Span {
  bool scores;  // nothing at all where every token is kept
  int lo;
  int hi;
  int first_new;

  __device__ __forceinline__ Span(const StepParams& p, int length, int query) {
    const PagedShape& s = p.a.shape;
    const int seen = length - s.num_query_tokens + query + 1;
    first_new = p.a.k_new.data != nullptr ? max(0, length - s.num_query_tokens) : length;
    scores = seen > s.budget && s.budget > s.sinks + s.recent;
    lo = s.sinks;
    hi = scores ? seen - s.recent : 0;
  }
};

// The new tokens of one row, by one warp: append, index, score, publish. memory: score_new_bytes of this warp.
template <class Codec, int kDims, int kHeads, int kSets>
__device__ __forceinline__ void score_new(const StepParams& p, int row, int token, char* memory) {
  using S = Scorer<Codec, kDims, kHeads, kSets>;
  using R = typename S::R;
  constexpr int kQueries = kHeads * kDims;
  constexpr int kMine = (kQueries + 31) / 32;
  float* largests = reinterpret_cast<float*>(memory);
  char* queries = memory + kQueries / 16 * 4;
  u32* keys = reinterpret_cast<u32*>(queries + 2 * kQueries * Codec::kPartBytes);
  const PagedShape& shape = p.a.shape;
  const int lane = threadIdx.x & 31;
  const ScoreRow r = score_row<kSets>(shape, row, token);
  const int64_t plane0 = static_cast<int64_t>(r.plane) * kDims;
  grid_wait();
  grid_launch_dependents();
  const int length = p.a.lengths[r.seq];
  const bool is_f16 = shape.kv_type == PagedKvType::kF16;
  float mine[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int at = lane + i * 32;
    const char* q = row_at(p.a.q, r.seq, r.query, r.head0 + min(at / kDims, r.heads - 1));
    mine[i] = half_value(load_stream<unsigned short>(q + 2 * __ldg(p.a.dims + plane0 + at % kDims)), is_f16) *
              __ldg(p.a.index_scale + plane0 + at % kDims);
  }
  const Span span(p, length, r.query);
  const bool appends = p.a.k_new.data != nullptr;
  if (appends && r.writes_kv) append_kv(p, r, length);
  const bool has_head = set_of_thread<kSets>() < r.heads;
  u32 key = 0;
  if (appends) {
    share_queries<Codec, kDims, kHeads, kSets, 32>(mine, largests, queries);
    const int piece = lane % R::kPieces;
    const int position = span.first_new + lane / R::kPieces;
    const bool real = lane / R::kPieces < shape.num_query_tokens && position < length;
    const uint4 code = new_code<Codec>(p, r, real ? position - (length - shape.num_query_tokens) : 0, piece, is_f16);
    if (real && r.writes_index) {
      const Place place = place_of(p, position);
      const int block = p.a.block_table[r.seq * p.a.block_table_stride + place.page];
      *reinterpret_cast<uint4*>(static_cast<char*>(p.a.index.data) +
                                cache_offset(p.a.index, block, r.plane, place.offset) + piece * 16) = code;
    }
    // Only the first load counts.
    uint4 codes[R::kLoads];
#pragma unroll
    for (int j = 0; j < R::kLoads; ++j) codes[j] = code;
    typename Codec::Score all[S::kFrags][2 * R::kLoads];
    u32 of_round[R::kKeys];
    S scorer(queries);
    scorer.multiply(codes, all);
    S::reduce(all, of_round);
#pragma unroll
    for (int i = 0; i < R::kKeys; ++i) {
      if (R::token_of(i) < 8) keys[R::token_of(i) * kSets + set_of_thread<kSets>()] = of_round[i];
    }
    __syncwarp();
    const int member = member_of_set<kSets>() & (32 / kSets - 1);
    const int at = span.first_new + member;
    if (member < 8 && at < length && has_head && at >= span.lo && at < span.hi) {
      key = keys[member * kSets + set_of_thread<kSets>()];
    }
  }
  const int64_t list = list_of(p, r, has_head ? set_of_thread<kSets>() : 0, p.plan.score_ctas);
  publish_new<kSets>(key, span.first_new, p.plan.slots,
                     span.scores && has_head ? p.slots + list * p.plan.slots : nullptr, p.bounds + list);
}

template <class Codec, int kDims, int kHeads, int kSets>
__global__ void __launch_bounds__(kThreads, kScoreCtas) score_kernel(const __grid_constant__ StepParams p) {
#if __CUDA_ARCH__ >= 900
  using S = Scorer<Codec, kDims, kHeads, kSets>;
  constexpr bool kFloat = Codec::kPartBytes == 2;
  using R = typename S::R;
  constexpr int kPieces = R::kPieces;
  constexpr int kKeys = R::kKeys;
  constexpr int kVector = key_vector(kKeys);
  constexpr int kQueries = kHeads * kDims;
  constexpr int kPart = kQueries * Codec::kPartBytes;  // bytes of one part of the queries
  extern __shared__ __align__(16) u32 shared[];
  auto& s = *reinterpret_cast<PruneShared<kSets>*>(shared);
  float* largests = reinterpret_cast<float*>(shared) + (kSets == 1 ? kPruneSharedBytes1 : kPruneSharedBytes4) / 4;
  char* queries = reinterpret_cast<char*>(largests + kQueries / 16);
  // Addresses of the 32 units that each warp looked up last, and the blocks of the next ones.
  auto* unit_rows = reinterpret_cast<unsigned long long*>(queries + 2 * kPart) + threadIdx.x / 32 * 32;
  auto* unit_blocks = reinterpret_cast<int*>(queries + 2 * kPart + kThreads * 8) + threadIdx.x / 32 * 32;
  u32* keys = reinterpret_cast<u32*>(queries + 2 * kPart + kThreads * 12);
  static_assert(kQueries / 16 * 4 + 2 * kPart + kThreads * 12 == score_query_bytes(kHeads, kDims, Codec::kPartBytes));
  const PagedShape& shape = p.a.shape;
  constexpr int nt = kThreads;
  const int tid = threadIdx.x;
  const int lane = tid & 31;
  const int warp = tid >> 5;
  const int c = lane & 3;
  // The grid: x the CTAs of a row, for each token; y the rows, then CTAs for the new tokens, a warp a row: few enough for the
  // places that a wave of the others leaves.
  const int ctas = p.plan.score_ctas;
  int token = static_cast<int>(__umulhi(blockIdx.x, p.cta_factor));  // x / ctas, or one less
  int rank = static_cast<int>(blockIdx.x) - token * ctas;
  if (rank >= ctas) {
    ++token;
    rank -= ctas;
  }
  const int row = blockIdx.y;
  if (row >= p.rows_of_token) {
    const int of_new = ((row - p.rows_of_token) * ctas + rank) * (nt / 32) + warp;
    if (of_new < p.rows_of_token) {
      char* memory = reinterpret_cast<char*>(shared) + warp * score_new_bytes(kHeads, kDims, Codec::kPartBytes, kSets);
      score_new<Codec, kDims, kHeads, kSets>(p, of_new, token, memory);
    }
    return;
  }
  const ScoreRow r = score_row<kSets>(shape, row, token);
  s.clear();
  // dims and index_scale are constants of the model: no kernel of the stream writes them (paged.h).
  const int64_t plane0 = static_cast<int64_t>(r.plane) * kDims;
  const int my_dim = __ldg(p.a.dims + plane0 + tid % kDims);
  const float my_scale = __ldg(p.a.index_scale + plane0 + tid % kDims);

  const int32_t* table = p.a.block_table + r.seq * p.a.block_table_stride;
  // Unit of tokens number `slot` of this warp's round.
  const auto turn_of = [&](int round, int slot) { return (round * (nt / 32) + warp) * R::kUnits + slot; };
  // A lane looks up one unit of a batch of rounds, for which no length is needed.
  const int last_unit = static_cast<int>((shape.max_length - 1) >> 4);
  const auto lane_turn = [&](int batch) { return turn_of(batch * R::kBatch + lane / R::kUnits, lane % R::kUnits); };
  const auto lane_place = [&](int batch) {
    return place_of(p, min(spread_unit(lane_turn(batch), rank, ctas), last_unit) * 16);
  };
  // Blocks of the units go to shared memory by cp.async, as no register should wait for them.
  const auto ask_block = [&](const int32_t* entry) { copy_async4(shared_address(unit_blocks + lane), entry); };
  const int32_t* first_entry = table + lane_place(0).page;
  constexpr int kMine = (kQueries + nt - 1) / nt;  // queries of a thread
  const char* my_query_at[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int head = min((tid + i * nt) / kDims, r.heads - 1);
    my_query_at[i] = row_at(p.a.q, r.seq, r.query, r.head0 + head) + 2 * my_dim;
  }
  const char* index = static_cast<const char*>(p.a.index.data) + r.plane * p.a.index.head_stride;
  // What a lane loads: piece c % kPieces of token lane / kPieces of a load.
  const int piece_offset = c % kPieces * 16;
  int64_t lane_offset = static_cast<int64_t>(lane / kPieces & 15) * p.a.index.token_stride + piece_offset;
  asm("" : "+l"(lane_offset));  // computed once, not in every round

  grid_wait();
  grid_launch_dependents();

  // Everything that hangs on one load is asked for before any of it is waited for.
  const int length = p.a.lengths[r.seq];
  ask_block(first_entry);
  const bool is_f16 = shape.kv_type == PagedKvType::kF16;
  unsigned short my_query[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) my_query[i] = load_stream<unsigned short>(my_query_at[i]);
  const Span span(p, length, r.query);
  const int lo = span.lo;
  const int hi_old = min(span.hi, span.first_new);
  const int units = hi_old > lo ? (hi_old + 15) >> 4 : 0;
  // This CTA has the turns below `turns`, this warp so many rounds of them.
  int turns = static_cast<int>(__umulhi(static_cast<u32>(units), p.cta_factor));  // units / ctas, or one less
#pragma unroll
  for (int i = 0; i < 2; ++i) turns += spread_unit(turns, rank, ctas) < units ? 1 : 0;
  const int rounds = max(0, turns - turn_of(0, 0) + nt / 32 * R::kUnits - 1) / (nt / 32 * R::kUnits);

  const bool whole_units = (shape.page_size & 15) == 0;
  const auto next_batch = [&](int batch) {
    // Units past the end are read as the batch's first one; rows past the end are memory of the cache.
    const bool inside = lane_turn(batch) < turns;
    const int offset = inside ? lane_place(batch).offset : 0;
    copy_async_wait();
    __syncwarp();
    const int block = unit_blocks[inside ? lane : 0];
    const char* rows = index + block * p.a.index.block_stride + offset * p.a.index.token_stride;
    unit_rows[lane] = static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(rows));
    __syncwarp();
    ask_block(table + lane_place(batch + 1).page);
  };
  const auto load_round = [&](int round, uint4(&v)[R::kLoads]) {
    const char* from[R::kLoads];
    if (whole_units) {
      const unsigned long long* base = unit_rows + (round * R::kUnits & 31);
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
        from[j] = reinterpret_cast<const char*>(static_cast<uintptr_t>(at));
      }
#pragma unroll
      for (int j = 0; j < R::kLoads; ++j) {
        from[j] += kPieces == 4 && (j & 1) != 0 ? lane_offset + 8 * p.a.index.token_stride : lane_offset;
      }
    } else {
#pragma unroll
      for (int j = 0; j < R::kLoads; ++j) {
        const int x = j * R::kLoadTokens + lane / kPieces;
        const int unit = spread_unit(min(turn_of(round, x >> 4), turns - 1), rank, ctas);
        const Place place = place_of(p, min(unit * 16 + (x & 15), hi_old - 1));
        from[j] =
            index + table[place.page] * p.a.index.block_stride + place.offset * p.a.index.token_stride + piece_offset;
      }
    }
#pragma unroll
    for (int j = 0; j < R::kLoads; ++j) v[j] = load_row(from[j]);
  };
  // The rounds on their way, each in registers of its own.
  uint4 rows[kBuffers][R::kLoads];
  if (rounds > 0) next_batch(0);
#pragma unroll
  for (int b = 0; b < kBuffers; ++b) {
    if (rounds > b) load_round(b, rows[b]);
  }

  float my_x[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) my_x[i] = half_value(my_query[i], is_f16) * my_scale;
  share_queries<Codec, kDims, kHeads, kSets, kThreads>(my_x, largests, queries);
  if (!span.scores) return;
  S scorer(queries);
  const bool has_head = set_of_thread<kSets>() < r.heads;

  KeyStore<kVector> store{keys};
  const auto token_at = [&](int round, int i) {
    const int x = R::token_of(i);
    return spread_unit(turn_of(round, x >> 4), rank, ctas) * 16 + (x & 15);
  };
  // Sinks are in a warp's first rounds, what is past the end in its last one.
  const int rounds_with_sinks = lo == 0 ? 0 : 1 + (lo >> 4) / (nt / 32 * R::kUnits);  // or fewer
  // The rows of a round, whose registers then take those of the round kBuffers later, to keys.
  const auto score_round = [&](uint4(&v)[R::kLoads], int round) {
    typename Codec::Score all[S::kFrags][2 * R::kLoads];
    scorer.multiply(v, all);
    if (round + kBuffers < rounds) load_round(round + kBuffers, v);
    u32 key[kKeys];
    S::reduce(all, key);
    if (round < rounds_with_sinks || round == rounds - 1 || !has_head) {
#pragma unroll
      for (int i = 0; i < kKeys; ++i) {
        const int token = token_at(round, i);
        if (token < lo || token >= hi_old || !has_head) key[i] = 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kKeys; i += kVector) store.put(key + i);
  };
  for (int round = 0; round < rounds; round += kBuffers) {
    // A batch begins where the first of these rounds is followed by one.
    if (((round + kBuffers) & (R::kBatch - 1)) == 0 && round + kBuffers < rounds) {
      next_batch((round + kBuffers) / R::kBatch);
    }
#pragma unroll
    for (int b = 0; b < kBuffers; ++b) {
      if (round + b < rounds) score_round(rows[b], round + b);
    }
  }
  const int64_t list = list_of(p, r, has_head ? set_of_thread<kSets>() : 0, rank);
  prune<kSets, kFloat, kVector>(s, store, p.plan.quota, p.plan.slots, has_head ? p.slots + list * p.plan.slots : nullptr,
                                p.bounds + list, [&](int i) { return token_at(i / kKeys, i % kKeys); });
#endif
}

// Null where no kernel has these dims; heads: scored together, 1 to 16; sets: 1, or 4 (heads: 4).
template <PagedIndexType kType, int kDims>
ScoreKernel pick_score_kernel(int heads, int sets) {
  if (sets == 4) return score_kernel<Codec<kType>, kDims, 4, 4>;
  if (heads <= 4) return score_kernel<Codec<kType>, kDims, 4, 1>;
  if (heads <= 8) return score_kernel<Codec<kType>, kDims, 8, 1>;
  return score_kernel<Codec<kType>, kDims, 16, 1>;
}

}  // namespace fasa::ops::paged
