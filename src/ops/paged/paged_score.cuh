// Launch 1 of the fused step: append + index the new tokens, score every token, prune.
//
//   S[h, t] = sum_d q[h, d] * code[t, d]     on the tensor cores (paged_codec.cuh)
//
// Mapping: score_ctas CTAs a row, a row being (sequence, query token, KV head [, quad of heads]), and a warp of other CTAs
//   for its new tokens. A row's tokens go round its CTAs 16 at a time, so that a hot window of neighbours spreads over all
//   of them. In a round a warp scores 2 KB of index rows, four 16-byte pieces a lane, while those of the next round are on
//   their way to registers. Where such a unit lies is looked up by one lane, for 32 of them at a time.
// Keys: all in shared memory, or what is left of them after each chunk (paged_sieve.cuh).
// Memory: index_row_bytes a token, read once; a few hundred (key, token) pairs a CTA written.
// Numerics: paged.h. Integer keys are exact.
// Ordering: no atomics but counts, maxima and minima of integers: bit-identical from run to run.
// Tried and dropped (docs/gpu.md): every warp gathering its own queries (many thousand warps ask L2 for the same 8 KB);
//   index rows through a ring in shared memory where an SM has two CTAs; every lane looking up every unit (half of all
//   instructions); the new tokens' codes in a CTA that also scores; prefetching the kernel's parameters.
#pragma once

#include <type_traits>

#include "src/ops/paged/paged_kernels.cuh"
#include "src/ops/paged/paged_score_new.cuh"
#include "src/ops/paged/paged_sieve.cuh"

namespace fasa::ops::paged {

// Which token the keys of a CTA are of: key i of a lane is of round i / kKeys of its warp.
// kTogether: a warp has a multiple of so many rounds, perhaps of no tokens at all. kUnitLog2: of the tokens of a unit.
template <class R, bool kNewToken, int kTogether, int kUnitLog2>
struct RowTokens {
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

// Beside the scoring of a row, where that is all that a launch does (launch 1).
template <int kSets, bool kFloatKeys, int kVector>
struct Alone {
  static constexpr bool kNewToken = false;
  static constexpr bool kShortKeys = false;
  Sieve<kSets, kFloatKeys, kVector> sieve;

  __device__ __forceinline__ void wait() const {}
  __device__ __forceinline__ void prepare(int, const Span&) const {}
  __device__ __forceinline__ void score(const Span&, const char*) const {}
  __device__ __forceinline__ void sample(u32) const {}
};

// Scores the row's tokens that are this CTA's and calls finish(keys, whether this thread has any, RowTokens, score_warp_bytes of its warp)
// where there are more than are kept anyway. memory: score_query_bytes, then the keys.
// beside: what the CTA does meanwhile. wait(): what earlier kernels wrote is visible; prepare(): rows of the index are on their way;
// score(): the queries are in shared memory; sample(): the best of a lane's keys of its first sample_rounds rounds. With kNewToken a
// warp whose has_new is true has key beside.key of the new token after those of its rounds (0: none). Returns the row's span, seen from
// its length.
// kRing: rounds that a warp has on their way in shared memory, after the keys, a power of two that kBatch is a multiple of; 0: kBuffers
// of them, in registers.
template <class Codec, int kDims, int kHeads, int kSets, int kRing, class Beside, class Finish>
__device__ __forceinline__ Span score_tokens(const StepParams& p, const ScoreRow& r, int rank, int ctas, char* memory, Beside& beside,
                                             const Finish& finish) {
  using S = Scorer<Codec, kDims, kHeads, kSets, Beside::kShortKeys>;
  using R = typename S::R;
  constexpr int kPieces = R::kPieces;
  constexpr int kKeys = R::kKeys;
  constexpr int kVector = key_vector(kKeys);
  using Store = std::conditional_t<Beside::kShortKeys, ShortKeyStore<Codec, kVector>, KeyStore<kVector>>;
  static_assert(Store::kWidth == kVector);
  constexpr int kQueries = kHeads * kDims;
  constexpr int kPart = kQueries * Codec::kPartBytes;  // bytes of one part of the queries
  float* largests = reinterpret_cast<float*>(memory);
  char* queries = reinterpret_cast<char*>(largests + kQueries / 16);
  // Addresses of the 32 pieces (below) that each warp looked up last, and the blocks of the next ones.
  constexpr int kWarpBytes = score_warp_bytes(Beside::kNewToken, kSets, kRing != 0);
  char* of_warp = queries + 2 * kPart + threadIdx.x / 32 * kWarpBytes;
  auto* unit_rows = reinterpret_cast<unsigned long long*>(of_warp);
  auto* unit_blocks = reinterpret_cast<int*>(of_warp + 32 * 8);
  auto* keys = reinterpret_cast<typename Store::Key*>(queries + 2 * kPart + kThreads / 32 * kWarpBytes);
  static_assert(kQueries / 16 * 4 + 2 * kPart + kThreads / 32 * kWarpBytes ==
                score_query_bytes(kHeads, kDims, Codec::kPartBytes, Beside::kNewToken, kSets, kRing != 0));
  const PagedShape& shape = p.a.shape;
  constexpr int nt = kThreads;
  const int tid = threadIdx.x;
  const int lane = tid & 31;
  const int warp = tid >> 5;
  const int c = lane & 3;
  // dims and index_scale are constants of the model: no kernel of the stream writes them (paged.h).
  const int64_t plane0 = static_cast<int64_t>(r.plane) * kDims;
  const int my_dim = __ldg(p.a.dims + plane0 + tid % kDims);
  const float my_scale = __ldg(p.a.index_scale + plane0 + tid % kDims);

  const int32_t* table = p.a.block_table + r.seq * p.a.block_table_stride;
  constexpr int kUnitLog2 = score_unit_log2(kRing);
  using Tokens = RowTokens<R, Beside::kNewToken, score_rounds_together(kRing), kUnitLog2>;
  constexpr u32 kUnits = Tokens::kUnits;
  // A lane looks up a piece of a batch of rounds, for which no length is needed: 16 tokens, or a longer unit whose rows are contiguous.
  constexpr bool kLong = kUnitLog2 != 4;
  const bool is_long = kLong && (shape.page_size & ((1 << kUnitLog2) - 1)) == 0 && p.a.index.token_stride == 16 * kPieces;
  const int piece_log2 = is_long ? kUnitLog2 : 4;
  const int batch_log2 = 5 - R::kTokensLog2 + piece_log2;  // of its rounds
  const int batch_rounds = 1 << batch_log2;
  const int last_token = static_cast<int>(shape.max_length - 1);
  const auto lane_token = [&](int batch) {
    const bool is_part = kLong && !is_long;
    constexpr u32 kParts = 1U << (kUnitLog2 - 4);
    const u32 piece = static_cast<u32>(batch * 32 + lane);
    const u32 i = is_part ? piece / kParts : piece;
    const int turn = Tokens::turn_of(static_cast<int>(i / kUnits), static_cast<int>(i % kUnits), warp);
    const int first = min(spread_unit(turn, rank, ctas), last_token >> kUnitLog2) << kUnitLog2;
    return is_part ? min(first + static_cast<int>(piece % kParts) * 16, last_token & ~15) : first;
  };
  // Their blocks go to shared memory by cp.async, as no register should wait for them.
  const auto ask_block = [&](const int32_t* entry) { copy_async4(shared_address(unit_blocks + lane), entry); };
  const auto ask_batch = [&](int batch) { ask_block(table + place_of(p, lane_token(batch)).page); };
  constexpr int kMine = (kQueries + nt - 1) / nt;  // queries of a thread
  const auto my_head = [&](int i) { return min((tid + i * nt) / kDims, r.heads - 1); };
  const char* my_query_row[kMine];
  if constexpr (!Beside::kNewToken) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      my_query_row[i] = row_at(p.a.q, r.seq, r.query, r.head0 + my_head(i));
      computed(my_query_row[i]);
    }
  }
  const int32_t* first_entry = table + place_of(p, lane_token(0)).page;
  const int32_t* length_at = p.a.lengths + r.seq;
  computed(first_entry);
  computed(length_at);
  const char* index = static_cast<const char*>(p.a.index.data) + r.plane * p.a.index.head_stride;
  // What a lane loads: piece c % kPieces of token lane / kPieces of a load.
  const int piece_offset = c % kPieces * 16;
  int64_t lane_offset = static_cast<int64_t>(lane / kPieces & ((1 << piece_log2) - 1)) * p.a.index.token_stride + piece_offset;
  computed(lane_offset);  // once, not in every round

  touch(first_entry);
  touch(length_at);
  grid_wait();
  grid_launch_dependents();
  beside.wait();

  // Everything that hangs on one load is asked for before any of it is waited for.
  ask_block(first_entry);
  const int length = load_stream<int>(length_at);
  const bool is_f16 = shape.kv_type == PagedKvType::kF16;
  unsigned short my_query[kMine];
  if constexpr (Beside::kNewToken) {
    beside.ask_queries();
  } else {
#pragma unroll
    for (int i = 0; i < kMine; ++i) my_query[i] = load_stream<unsigned short>(my_query_row[i] + 2 * my_dim);
  }
  const Span span(p, length, r.query);
  const int lo = span.lo;
  const int hi_old = min(span.hi, span.first_new);
  const int units = hi_old > lo ? (hi_old + (1 << kUnitLog2) - 1) >> kUnitLog2 : 0;
  // This CTA has the turns below `turns`, this warp so many rounds of them.
  int turns = static_cast<int>(__umulhi(static_cast<u32>(units), p.cta_factor));  // units / ctas, or one less
  turns += (turns + 1) * ctas <= units ? 1 : 0;
  turns += spread_unit(turns, rank, ctas) < units ? 1 : 0;
  const Tokens tokens{turns, rank, ctas, span.first_new};
  const int rounds = __shfl_sync(kFullWarp, tokens.rounds_of(warp), 0);  // so that branches on it are known to be the warp's

  const bool whole_units = Beside::kNewToken || (shape.page_size & 15) == 0;  // in one launch always
  // waits: for the blocks, which in the ring came with an earlier round.
  const auto next_batch = [&](int batch, auto waits) {
    // Pieces past the end are read as the batch's first one; rows past the end are memory of the cache.
    const int token = lane_token(batch);
    const bool inside = token < hi_old;
    const int offset = inside ? place_of(p, token).offset : 0;
    if constexpr (waits.value) copy_async_wait();
    __syncwarp();
    const int block = unit_blocks[inside ? lane : 0];
    const char* rows = index + block * p.a.index.block_stride + offset * p.a.index.token_stride;
    unit_rows[lane] = static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(rows));
    __syncwarp();
  };
  const auto pointer = [](unsigned long long at) { return reinterpret_cast<const char*>(static_cast<uintptr_t>(at)); };
  const auto find_round = [&](int round, const char*(&from)[R::kLoads]) {
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
  };
  const auto load_round = [&](int round, uint4(&v)[R::kLoads]) {
    const char* from[R::kLoads];
    find_round(round, from);
#pragma unroll
    for (int j = 0; j < R::kLoads; ++j) v[j] = load_row(from[j]);
  };
  // Rounds on their way: each in registers of its own, or in the ring, from which the lane that asked reads.
  uint4 rows[kBuffers][R::kLoads];
  const u32 end = shared_address(memory) + static_cast<u32>(p.plan.score_smem);
  const u32 ring = end - (nt / 32 - warp) * kRing * kRoundBytes + lane * 16;
  // Where a round of even number, and behind it the next one, is in the ring.
  const auto place_in_ring = [&](int round) { return ring + (round & (kRing - 2)) * kRoundBytes; };
  const auto copy_rounds = [&](int round, u32 to) {
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
  };
  if (rounds > 0) {
    next_batch(0, std::true_type());
  } else {
    copy_async_wait();
  }
  // Before rows are asked for, as the compiler waits for all loads together.
  float my_x[kMine];
  if constexpr (Beside::kNewToken) {
    // Adds nothing, as there is no such dim, but now rows that come to registers are asked for when these two are there.
    if constexpr (kRing == 0) lane_offset += (my_dim == INT16_MIN) & (__float_as_int(my_scale) == INT32_MAX) ? 16 : 0;
  } else {
#pragma unroll
    for (int i = 0; i < kMine; ++i) my_x[i] = half_value(my_query[i], is_f16) * my_scale;
#pragma unroll
    for (float& x : my_x) asm volatile("" : "+f"(x));
  }
  if constexpr (kRing == 0) {
#pragma unroll
    for (int b = 0; b < kBuffers; ++b) {
      if (rounds > b) load_round(b, rows[b]);
    }
  } else {
#pragma unroll 1
    for (int b = 0; b < kRing; b += 2) {
      if (rounds > b) copy_rounds(b, place_in_ring(b));
      if (b == 0 && rounds > batch_rounds) ask_batch(1);  // in the first group, as these rounds may be all of a batch
      copy_async_commit();
    }
  }
  beside.prepare(length, span);
  if (kRing == 0 && rounds > batch_rounds) ask_batch(1);

  if constexpr (Beside::kNewToken) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kMine; ++i) my_x[i] = half_value(beside.query(my_head(i), my_dim), is_f16) * my_scale;
  }
  share_queries<Codec, kDims, kHeads, kSets, kThreads>(my_x, largests, queries);
  beside.score(span, queries);
  if (!span.scores) return span;
  S scorer(queries);
  const bool has_head = kSets == 1 || set_of_thread<kSets>() < r.heads;

  Store store{keys};
  // Rounds of a chunk of keys, and those that every warp has.
  constexpr int kChunk = kChunkKeys / kKeys;
  static_assert(kChunk % kBuffers == 0);
  int common = 0;
  if constexpr (!Beside::kNewToken) {
    if (beside.sieve.base != 0) {
      beside.sieve.begin(store);
      common = tokens.rounds_of(nt / 32 - 1);
    }
  }
  int sample_round = 0;
  // Sinks are in a warp's first rounds, what is past the end in its last one.
  const int rounds_with_sinks = lo == 0 ? 0 : 1 + lo / (nt / 32 * R::kTokens);  // or fewer
  // Keys of some rounds, of their sums; each step for all of them, as what follows from one waits for itself.
  const auto put_keys = [&](auto& all, int round, bool masks) {
    constexpr int kRounds = sizeof(all) / sizeof(all[0]);
    u32 key[kRounds][kKeys];
#pragma unroll
    for (int b = 0; b < kRounds; ++b) S::reduce(all[b], key[b]);
    if (masks) {
#pragma unroll
      for (int b = 0; b < kRounds; ++b) {
#pragma unroll
        for (int i = 0; i < kKeys; ++i) {
          const int token = tokens.token_at(round + b, i, lane, warp);
          if (token < lo || token >= hi_old || !has_head) key[b][i] = S::kNone;
        }
      }
    }
#pragma unroll
    for (int b = 0; b < kRounds; ++b) {
#pragma unroll
      for (int i = 0; i < kKeys; i += kVector) store.put(key[b] + i);
    }
  };
  // The rows of a round, whose registers then take those of the round kBuffers later, to keys.
  const auto score_round = [&](uint4(&v)[R::kLoads], int round) {
    typename S::Sums all[1];
    scorer.multiply(v, all[0]);
    if (round + kBuffers < rounds) load_round(round + kBuffers, v);
    put_keys(all, round, round < rounds_with_sinks || round == rounds - 1 || !has_head);
    if constexpr (Beside::kNewToken) {
      if (round == sample_round) beside.sample(store.best_key());
    }
  };
  if constexpr (Beside::kNewToken) {
    sample_round = min(beside.sample_rounds, rounds) - 1;
    if (rounds == 0) beside.sample(0);
  }
  if constexpr (kRing != 0) {
    // Two at a time, as what follows from one waits for itself.
#pragma unroll 1
    for (int round = 0; round < rounds; round += 2) {
      copy_async_wait<kRing / 2 - 1>();
      uint4 v[2][R::kLoads];
      typename S::Sums all[2];
      const u32 from = place_in_ring(round);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
#pragma unroll
        for (int j = 0; j < R::kLoads; ++j) v[b][j] = load_shared(from + b * kRoundBytes + j * 512);
      }
      // The next ones are asked for before these are multiplied, where codes need no widening (2%; else it is the other way round). A
      // lane's reads of the ring are ahead of its copies to the same place, as one unit does both in order.
      constexpr bool kAsksFirst = !S::kCodesFirst;
      const auto multiply = [&] {
#pragma unroll
        for (int b = 0; b < 2; ++b) scorer.multiply(v[b], all[b]);
      };
      if constexpr (!kAsksFirst) multiply();
      const int next = round + kRing;
      if (next < rounds) {
        if ((next & (batch_rounds - 1)) == 0) {
          next_batch(next >> batch_log2, std::false_type());
          ask_batch((next >> batch_log2) + 1);
        }
        copy_rounds(next, from);  // where these are
      }
      copy_async_commit();
      if constexpr (kAsksFirst) multiply();
      put_keys(all, round, round < rounds_with_sinks || round + 2 >= rounds || !has_head);
      if constexpr (Beside::kNewToken) {
        if (round + 1 == sample_round) beside.sample(store.best_key());
      }
    }
  }
  for (int round = 0; kRing == 0 && round < rounds; round += kBuffers) {
    // A batch begins where the first of these rounds is followed by one.
    const int next = round + kBuffers;
    if ((next & (batch_rounds - 1)) == 0 && next < rounds) {
      next_batch(next >> batch_log2, std::true_type());
      ask_batch((next >> batch_log2) + 1);
    }
    // Not in a condition: the compiler counts all rounds on their way on one counter and so waits for all of them here; past a branch
    // around this it would wait again, for those that were asked for since.
    score_round(rows[0], round);
#pragma unroll
    for (int b = 1; b < kBuffers; ++b) {
      if (round + b < rounds) score_round(rows[b], round + b);
    }
    if constexpr (!Beside::kNewToken) {
      if (round + kBuffers <= common && (round + kBuffers) % kChunk == 0) beside.sieve.next_chunk(store);
    }
  }
  if constexpr (Beside::kNewToken) {
    if (beside.has_new) {
      u32 keys[kVector] = {beside.key};
#pragma unroll
      for (int i = 1; i < kVector; ++i) keys[i] = S::kNone;
      store.put(keys);
    }
  }
  finish(store, has_head, tokens, of_warp);
  return span;
}

template <class Codec, int kDims, int kHeads, int kSets>
__global__ void __launch_bounds__(kThreads, kScoreCtas) score_kernel(const __grid_constant__ StepParams p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(kLineBytes) char memory[];
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
    const int of_new = ((row - p.rows_of_token) * ctas + rank) * (kThreads / 32) + static_cast<int>(threadIdx.x >> 5);
    if (of_new < p.rows_of_token) {
      constexpr int kBytes = score_new_bytes(kHeads, kDims, Codec::kPartBytes, kSets);
      score_new<Codec, kDims, kHeads, kSets>(p, of_new, token, memory + (threadIdx.x >> 5) * kBytes);
    }
    return;
  }
  const ScoreRow r = score_row<kSets>(p, row, token);
  auto& s = *reinterpret_cast<PruneShared<kSets>*>(memory);
  s.clear();
  constexpr bool kFloatKeys = Codec::kPartBytes == 2;
  constexpr int kKeys = Scorer<Codec, kDims, kHeads, kSets>::R::kKeys;
  const int base = p.plan.score_iterations * kKeys > kChunkKeys ? kLeftKeys : 0;
  char* scoring = memory + (kSets == 1 ? kPruneSharedBytes1 : kPruneSharedBytes4);
  char* ids = scoring + score_query_bytes(kHeads, kDims, Codec::kPartBytes, false, kSets, false) + 4 * kThreads * (kLeftKeys + kChunkKeys);
  Alone<kSets, kFloatKeys, key_vector(kKeys)> alone{
      {s, reinterpret_cast<unsigned short*>(ids), static_cast<u32>(p.plan.quota), base}};
  score_tokens<Codec, kDims, kHeads, kSets, 0>(
      p, r, rank, ctas, scoring, alone,
      [&](const auto& keys, bool has_head, const auto& tokens, char*) {
        const int64_t list = list_of(p, r, has_head ? set_of_thread<kSets>() : 0, rank);
        const auto token_of = [&](int i) {
          return alone.sieve.identify(i, [&](int number, int lane) { return tokens(number, lane, static_cast<int>(threadIdx.x >> 5)); });
        };
        const u32 forgotten = alone.sieve.forgotten();
        prune<kSets, kFloatKeys>(s, keys, p.plan.quota, p.plan.slots, has_head ? p.slots + list * p.plan.slots : nullptr,
                                 p.bounds + list, token_of, base, alone.sieve.known.cut != 0, forgotten);
      });
#endif
}

// Null where no kernel has these dims; heads: scored together, 1 to 16; sets: 1, or 4 (heads: 4).
template <PagedIndexType kType, int kDims>
ScoreKernel pick_score_kernel(int heads, int sets) {
  if (sets == 4) return score_kernel<Codec<kType>, kDims, 4, 4>;
  switch (score_heads(heads)) {
    case 4:
      return score_kernel<Codec<kType>, kDims, 4, 1>;
    case 8:
      return score_kernel<Codec<kType>, kDims, 8, 1>;
    default:
      return score_kernel<Codec<kType>, kDims, 16, 1>;
  }
}

}  // namespace fasa::ops::paged
