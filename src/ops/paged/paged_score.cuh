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
// Tried and dropped (docs/gpu-measurements.md): every warp gathering its own queries (many thousand warps ask L2 for the same 8 KB);
//   index rows through a ring in shared memory where an SM has two CTAs; every lane looking up every unit (half of all
//   instructions); the new tokens' codes in a CTA that also scores; prefetching the kernel's parameters.
#pragma once

#include <type_traits>

#include "src/ops/paged/paged_index_rows.cuh"
#include "src/ops/paged/paged_score_new.cuh"
#include "src/ops/paged/paged_sieve.cuh"

namespace fasa::ops::paged {

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
// kRing: rounds that a warp has on their way in shared memory, after the keys, a power of two of which a batch (paged_index_rows.cuh) has a
// multiple; 0: kBuffers of them, in registers.
template <class Codec, int kDims, int kHeads, int kSets, int kRing, class Beside, class Finish>
__device__ __forceinline__ Span score_tokens(const StepParams& p, const ScoreRow& r, int rank, int ctas, char* memory,
                                             Beside& beside, const Finish& finish) {
  using S = Scorer<Codec, kDims, kHeads, kSets, Beside::kShortKeys>;
  using R = typename S::R;
  constexpr int kKeys = R::kKeys;
  constexpr int kVector = key_vector(kKeys);
  using Store = std::conditional_t<Beside::kShortKeys, ShortKeyStore<Codec, kVector>, KeyStore<kVector>>;
  static_assert(Store::kWidth == kVector);
  constexpr int kQueries = kHeads * kDims;
  constexpr int kPart = kQueries * Codec::kPartBytes;  // bytes of one part of the queries
  float* largests = reinterpret_cast<float*>(memory);
  char* queries = reinterpret_cast<char*>(largests + kQueries / 16);
  constexpr int kWarpBytes = score_warp_bytes(Beside::kNewToken, kSets, kRing != 0);
  char* of_warp = queries + 2 * kPart + threadIdx.x / 32 * kWarpBytes;
  auto* keys = reinterpret_cast<typename Store::Key*>(queries + 2 * kPart + kThreads / 32 * kWarpBytes);
  static_assert(kQueries / 16 * 4 + 2 * kPart + kThreads / 32 * kWarpBytes ==
                score_query_bytes(kHeads, kDims, Codec::kPartBytes, Beside::kNewToken, kSets, kRing != 0));
  const PagedShape& shape = p.a.shape;
  constexpr int nt = kThreads;
  const int tid = threadIdx.x;
  const int lane = tid & 31;
  const int warp = tid >> 5;
  // dims and index_scale are constants of the model: no kernel of the stream writes them (paged.h).
  const int64_t plane0 = static_cast<int64_t>(r.plane) * kDims;
  const int my_dim = __ldg(p.a.dims + plane0 + tid % kDims);
  const float my_scale = __ldg(p.a.index_scale + plane0 + tid % kDims);

  IndexRows<R, Beside::kNewToken, kRing> index{
      p,
      rank,
      ctas,
      reinterpret_cast<unsigned long long*>(of_warp),
      reinterpret_cast<int*>(of_warp + 32 * 8),
      p.a.block_table + r.seq * p.a.block_table_stride,
      static_cast<const char*>(p.a.index.data) + r.plane * p.a.index.head_stride};
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
  const int32_t* first_entry = index.entry_of(0);
  const int32_t* length_at = p.a.lengths + r.seq;
  computed(first_entry);
  computed(length_at);
  computed(index.lane_offset);  // once, not in every round

  touch(first_entry);
  touch(length_at);
  grid_wait();
  grid_launch_dependents();
  beside.wait();

  // Everything that hangs on one load is asked for before any of it is waited for.
  index.ask_block(first_entry);
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
  const auto tokens = index.see(span);
  const int lo = span.lo;
  const int hi_old = index.hi_old;
  // Shuffled, so that branches on it are known to be the warp's.
  const int rounds = __shfl_sync(kFullWarp, tokens.rounds_of(warp), 0);

  // Rounds on their way: each in registers of its own, or in the ring, from which the lane that asked reads.
  uint4 rows[kBuffers][R::kLoads];
  const u32 end = shared_address(memory) + static_cast<u32>(p.plan.score_smem);
  const u32 ring = end - (nt / 32 - warp) * kRing * kRoundBytes + lane * 16;
  // Where a round of even number, and behind it the next one, is in the ring.
  const auto place_in_ring = [&](int round) { return ring + (round & (kRing - 2)) * kRoundBytes; };
  if (rounds > 0) {
    index.template next_batch<true>(0);
  } else {
    copy_async_wait();
  }
  // Before rows are asked for, as the compiler waits for all loads together.
  float my_x[kMine];
  if constexpr (Beside::kNewToken) {
    // Adds nothing, as there is no such dim, but now rows that come to registers are asked for when these two are there.
    if constexpr (kRing == 0)
      index.lane_offset += (my_dim == INT16_MIN) & (__float_as_int(my_scale) == INT32_MAX) ? 16 : 0;
  } else {
#pragma unroll
    for (int i = 0; i < kMine; ++i) my_x[i] = half_value(my_query[i], is_f16) * my_scale;
#pragma unroll
    for (float& x : my_x) asm volatile("" : "+f"(x));
  }
  if constexpr (kRing == 0) {
#pragma unroll
    for (int b = 0; b < kBuffers; ++b) {
      if (rounds > b) index.load_round(b, rows[b]);
    }
  } else {
    // The next batch's blocks are in the first group, the one that is waited for when rounds after these are asked for: as long as a batch,
    // which of pieces of 16 tokens is shortest, has at least as many rounds as the ring.
    static_assert(kRing <= 1 << (5 - R::kTokensLog2 + 4));
#pragma unroll 1
    for (int b = 0; b < kRing; b += 2) {
      if (rounds > b) index.copy_rounds(b, place_in_ring(b));
      if (b == 0 && rounds > index.batch_rounds) index.ask_batch(1);
      copy_async_commit();
    }
  }
  beside.prepare(length, span);
  if (kRing == 0 && rounds > index.batch_rounds) index.ask_batch(1);

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
    if (round + kBuffers < rounds) index.load_round(round + kBuffers, v);
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
        if ((next & (index.batch_rounds - 1)) == 0) {
          index.template next_batch<false>(next >> index.batch_log2);
          index.ask_batch((next >> index.batch_log2) + 1);
        }
        index.copy_rounds(next, from);  // where these are
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
    if ((next & (index.batch_rounds - 1)) == 0 && next < rounds) {
      index.template next_batch<true>(next >> index.batch_log2);
      index.ask_batch((next >> index.batch_log2) + 1);
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
  char* ids = scoring + score_query_bytes(kHeads, kDims, Codec::kPartBytes, false, kSets, false) +
              4 * kThreads * (kLeftKeys + kChunkKeys);
  Alone<kSets, kFloatKeys, key_vector(kKeys)> alone{
      {s, reinterpret_cast<unsigned short*>(ids), static_cast<u32>(p.plan.quota), base}};
  score_tokens<Codec, kDims, kHeads, kSets, 0>(
      p, r, rank, ctas, scoring, alone, [&](const auto& keys, bool has_head, const auto& tokens, char*) {
        const int64_t list = list_of(p, r, has_head ? set_of_thread<kSets>() : 0, rank);
        const auto token_of = [&](int i) {
          return alone.sieve.identify(
              i, [&](int number, int lane) { return tokens(number, lane, static_cast<int>(threadIdx.x >> 5)); });
        };
        const u32 forgotten = alone.sieve.forgotten();
        prune<kSets, kFloatKeys>(s, keys, p.plan.quota, p.plan.slots,
                                 has_head ? p.slots + list * p.plan.slots : nullptr, p.bounds + list, token_of, base,
                                 alone.sieve.known.cut != 0, forgotten);
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
