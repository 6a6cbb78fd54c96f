// The whole step in one launch: a cluster a row, whose CTAs score their tokens (paged_score.cuh), find the threshold together
// (paged_team.cuh), and attend each to those of its own that are kept (paged_attend.cuh). It saves lists in L2, what lies between two
// launches, and a fallback. For rows short enough that the CTAs of one cluster score them as fast as the chip could (paged_plan.cc).
//
// Memory: rounds of the index on their way in registers where an SM has two of the CTAs, in shared memory (kRing) where it has one,
//   which then has two tiles of K and V on their way, too.
// Mapping: a cluster a row, a row being (sequence, KV head), or (sequence, KV head, quad of heads) where heads choose for themselves:
//   four sets at once, whose keys come from the same products; then two warps of a CTA attend for each head. One query token.
// Ordering: every CTA appends K and V of the new token, the same bytes to the same place, as a CTA sees its own stores without a
//   fence; the last one its index row, which nothing of this launch reads.
#pragma once

#include "src/ops/paged/paged_attend_kernel.cuh"
#include "src/ops/paged/paged_rescore.cuh"
#include "src/ops/paged/paged_score.cuh"
#include "src/ops/paged/paged_team_select.cuh"

namespace fasa::ops::paged {

// An entry of the list is a token that is kept anyway, marked so, or the id of a key: from the lowest bit on lane (5 bits), number (8),
// warp (3), and which of the CTA's ties it is, from 1; 0: none.
inline constexpr int kForced = INT32_MIN;

// Row number `row` of the launch.
template <int kSets>
__device__ __forceinline__ AttendRow step_row(const StepParams& p, int row) {
  const int seq = divided(row, p.row_factor);
  const int x = row - seq * p.rows_of_token;
  // Not p.group twice, nor `row` kept for the set: values spill then.
  if constexpr (kSets == 1) {
    return {seq, 0, x, x * p.group, p.plan.heads_per_row, static_cast<int64_t>(seq) * p.a.shape.num_kv_heads + x, true};
  }
  const ScoreRow r = score_row<kSets>(p, x, seq);
  return {seq, 0, r.kv_head, r.head0, r.heads, static_cast<int64_t>(seq) * p.a.shape.num_q_heads + r.head0, true};
}
// What of a row is about its i-th head, where heads choose for themselves; else the row.
template <int kSets>
__device__ __forceinline__ AttendRow head_row(const AttendRow& r, int i) {
  return kSets == 1 ? r : AttendRow{r.seq, r.query, r.kv_head, r.head0 + i, 1, r.set + i, true};
}

// What a CTA does while it scores.
template <class Codec, int kDims, int kHeads, int kDim, int kSets, int kRing, int kKeyBytes>
struct Together {
  static constexpr bool kShortKeys = kKeyBytes == 2;
  using S = Scorer<Codec, kDims, kHeads, kSets, kShortKeys>;
  using R = typename S::R;
  static constexpr bool kNewToken = true;
  // Where a CTA has an SM for itself it starts when the last step's has ended, so the cluster meets when rows of the index are on their
  // way. (To have met empties L1, so where others run on the SM it comes before.)
  static constexpr bool kMeetsLate = kRing != 0;
  static constexpr bool kGuesses = kSets == 1 && Codec::kPartBytes == 1;
  static constexpr int kMine = (kDims + 31) / 32;       // dims of a lane
  static constexpr int kKv = (2 * kDim / 8 + 31) / 32;  // 16-byte pieces of K and V of a lane

  const StepParams& p;
  const AttendRow& r;
  const Exchange<kDim>& x;
  const TeamLink<kSets>& link;
  int* own_table;
  int lanes;          // of a group of samples
  int sample_rounds;  // that these are of
  bool has_new;       // this warp scores the new token
  bool has_kv;        // this warp appends K and V
  int dims[kMine];
  float scales[kMine];
  unsigned short raw[kMine];
  uint4 kv[kKv];
  int length;
  Place place;  // of the new token
  int block;
  u32 key = S::kNone;    // what is stored of the new token's, by one lane a set
  bool guesses = false;  // the bins are guessed from the query, as what samples say would come late
  uint2 bins;

  __device__ __forceinline__ Together(const StepParams& params, const AttendRow& row, const Exchange<kDim>& exchange,
                                      const TeamLink<kSets>& team)
      : p(params),
        r(row),
        x(exchange),
        link(team),
        own_table(reinterpret_cast<int*>(exchange.memory + exchange.layout.table)) {
    const int warp = threadIdx.x >> 5;
    const bool appends = p.a.k_new.data != nullptr;
    // By the last warps, which have a round less than the first ones where these are not as many for all.
    has_new = appends && warp == kThreads / 32 - 1 && x.rank == x.size - 1;
    has_kv = appends && warp == kThreads / 32 - 2;
    if (has_new) {
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const int64_t at =
            static_cast<int64_t>(r.kv_head) * kDims + min(static_cast<int>(threadIdx.x & 31) + 32 * i, kDims - 1);
        dims[i] = __ldg(p.a.dims + at);
        scales[i] = __ldg(p.a.index_scale + at);
      }
    }
  }
  // Barriers that peers may store to when the cluster has met, which Team<true>::wait() says.
  __device__ __forceinline__ void meet() const {
    if (threadIdx.x == 0) {
      x.expect();
      link.expect();
    }
    __syncwarp();
    Team<true>::arrive();
    link.s.clear();
  }
  // The second CTA of an SM lets the first go ahead (PagedPlan), less far where its row is short.
  __device__ __forceinline__ void wait() const {
    const int block = static_cast<int>(blockIdx.x);
    if (block < p.plan.lead_ctas || block >= 2 * p.plan.lead_ctas) return;
    const int row_length = load_stream<int>(p.a.lengths + r.seq);
    const int ns = row_length > p.a.shape.budget ? __float2int_rz(static_cast<float>(row_length) * p.lead_rate) : 0;
    const u32 begin = nanoseconds();
    while (static_cast<int>(nanoseconds() - begin) < ns) __nanosleep(100);
  }
  // The queries, 8 heads whether there are so many or not, to where attention reads them.
  __device__ __forceinline__ void ask_queries() const {
    char* queries = x.memory + x.layout.queries;
    for (int i = threadIdx.x; i < kDim; i += kThreads) {
      const int head = i / (kDim / 8);
      const int piece = i % (kDim / 8);
      char* to = queries + head * query_stride(kDim) + piece * 16;
      if (head < r.heads) {
        copy_async16(shared_address(to), row_at(p.a.q, r.seq, 0, r.head0 + head) + piece * 16);
      } else {
        *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
      }
    }
  }
  __device__ __forceinline__ unsigned short query(int head, int dim) const {
    return *reinterpret_cast<const unsigned short*>(x.memory + x.layout.queries + head * query_stride(kDim) + 2 * dim);
  }
  __device__ __forceinline__ void prepare(int row_length, const Span& span) {
    if constexpr (kMeetsLate) meet();
    const int tid = threadIdx.x;
    const int lane = tid & 31;
    if (has_new) {
      const char* k = row_at(p.a.k_new, r.seq, 0, r.kv_head);
#pragma unroll
      for (int i = 0; i < kMine; ++i) raw[i] = load_stream<unsigned short>(k + 2 * dims[i]);
    }
    if (has_kv) {
#pragma unroll
      for (int i = 0; i < kKv; ++i) {
        const int at = lane + 32 * i;
        if (at < 2 * kDim / 8) kv[i] = load_stream<uint4>(kv_at(at, p.a.k_new, p.a.v_new));
      }
    }
    length = row_length;
    if ((has_new || has_kv) && length > 0) {
      place = place_of(p, length - 1);
      block = load_stream<int>(p.a.block_table + r.seq * p.a.block_table_stride + place.page);
    }
    // The worst of the best keys of G groups of g keys has about ln(G) / g of all keys above it, and fewer than need / total once in
    // 10^4 rows, where g is 2 * total / need and there are 64 groups at least.
    const int tokens = max(0, span.hi - span.lo);
    const int group = __float2int_rz(static_cast<float>(tokens) * p.sample_rate);
    lanes = kSetLanes<kSets> >> (x.size >= 8 ? 0 : x.size >= 4 ? 1 : x.size >= 2 ? 2 : 3);
    constexpr int kTogether = score_rounds_together(kRing);  // are sampled together, too
    constexpr int kOfLane = R::kKeys * kTogether;
    while (lanes > 1 && lanes * kOfLane > group) lanes >>= 1;
    const auto rounds_of = [&] { return max(1, group >> (31 - __clz(lanes * kOfLane))); };  // both powers of two
    int rounds = rounds_of();
    if constexpr (kSets == 1) {
      // Groups of whole rounds may be half as large as they should be. Half the lanes and more rounds then, where more than half of what a
      // warp can hold is expected: 5, some ln(G), keys of each group.
      constexpr u32 kOfWarp = 8 * 32 * team_held(1, kRing != 0) / 2 / 5;
      const u32 size = static_cast<u32>(rounds * lanes * kOfLane);
      if (lanes > 1 && 6 * size < 5 * static_cast<u32>(group) &&
          static_cast<u32>(tokens) > kOfWarp * size * static_cast<u32>(x.size)) {
        lanes >>= 1;
        rounds = rounds_of();
      }
    }
    sample_rounds = rounds * kTogether;
    if constexpr (kGuesses) guesses = span.hi <= x.size * kThreads * 4 && p.a.shape.budget <= 512;
    if constexpr (!kMeetsLate) settle();
  }
  // What is needed after the scores only: the block table, the tokens that are kept in any case, and that the cluster has met.
  __device__ __forceinline__ void settle() const {
    const int32_t* table = p.a.block_table + r.seq * p.a.block_table_stride;
    for (int i = threadIdx.x; i < p.layout.table_entries; i += kThreads)
      copy_async4(shared_address(own_table + i), table + i);
    const KeptRow<kDim> kept(p, r, x, length);
    if constexpr (kSets == 1) {
      kept.put_forced(p.a.shape, kForced);
    } else {
      kept.put_forced(p.a.shape, kForced, r.heads, team_entries(p.a.shape.budget, kSets));
    }
    if constexpr (kMeetsLate) Team<true>::wait();
  }
  // Once a warp, in the midst of its scores.
  __device__ __forceinline__ void sample(u32 best) const {
    if constexpr (kMeetsLate) settle();
    if (!guesses) link.sample(best, lanes);
  }
  __device__ __forceinline__ void score(const Span& span, const char* queries) {
    const int lane = threadIdx.x & 31;
    if constexpr (kGuesses) {
      if (guesses) bins = guess_bins(queries);
    }
    if ((has_new || has_kv) && length > 0) {
      if (has_kv) {
        char* k = static_cast<char*>(p.a.k.data) + cache_offset(p.a.k, block, r.kv_head, place.offset);
        char* v = static_cast<char*>(p.a.v.data) + cache_offset(p.a.v, block, r.kv_head, place.offset);
#pragma unroll
        for (int i = 0; i < kKv; ++i) {
          const int at = lane + 32 * i;
          const int o = (at < kDim / 8 ? at : at - kDim / 8) * 16;
          if (at < 2 * kDim / 8) *reinterpret_cast<uint4*>((at < kDim / 8 ? k : v) + o) = kv[i];
        }
      } else {
        // Scaled values meet in memory that the row's sums will come to.
        float* values = reinterpret_cast<float*>(x.memory + x.layout.inbox);
        const bool is_f16 = p.a.shape.kv_type == PagedKvType::kF16;
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          if (lane + 32 * i < kDims) values[lane + 32 * i] = half_value(raw[i], is_f16) * divide(1.0F, scales[i]);
        }
        __syncwarp();
        float y[Codec::kPieceDims];
#pragma unroll
        for (int i = 0; i < Codec::kPieceDims; ++i) y[i] = values[lane % R::kPieces * Codec::kPieceDims + i];
        const uint4 code = encode_piece<Codec>(y);
        if (lane < R::kPieces) {
          *reinterpret_cast<uint4*>(static_cast<char*>(p.a.index.data) +
                                    cache_offset(p.a.index, block, r.kv_head, place.offset) + lane * 16) = code;
        }
        // Every row of the round is the new token's.
        uint4 codes[R::kLoads];
#pragma unroll
        for (int j = 0; j < R::kLoads; ++j) codes[j] = code;
        typename S::Sums all;
        S scorer(queries);
        scorer.multiply(codes, all);
        u32 keys[R::kKeys];
        S::reduce(all, keys);
        const bool counts =
            set_lane<kSets>() == 0 && set_of_thread<kSets>() < r.heads && length - 1 >= span.lo && length - 1 < span.hi;
        if (counts) key = keys[0];
      }
    }
  }

 private:
  // Scores by codes whose root mean square is a third of the largest, from -4 to 6 times their root mean square: tens of keys
  // in the bin of the threshold, and a hundred where the scores vary by a quarter of that. Integer codes; every warp for itself.
  __device__ __forceinline__ uint2 guess_bins(const char* queries) const {
    static_assert(kDims % 16 == 0);
    const int lane = threadIdx.x & 31;
    int most = 0;
#pragma unroll
    for (int i = 0; i < (kHeads * kDims + 127) / 128; ++i) {
      const int word = i * 32 + lane;  // of the queries' first parts, 4 dims
      const int four = word < kHeads * kDims / 4 ? reinterpret_cast<const int*>(queries)[word] : 0;
      int sum = __dp4a(four, four, 0);
#pragma unroll
      for (int o = 1; o < (kDims < 128 ? kDims / 4 : 32); o <<= 1) sum += __shfl_xor_sync(kFullWarp, sum, o);
      most = max(most, sum);
    }
    most = __reduce_max_sync(kFullWarp, most);
    const float sigma = (Codec::kParts == 2 ? 256.0F : 1.0F) * 42.0F * sqrt_fast(static_cast<float>(most));
    const int part = __float2int_rz(fminf(2.0F * sigma, 3e8F)) + 1;
    return make_uint2(S::key(-2 * part), S::key(3 * part));
  }
  __device__ __forceinline__ const char* kv_at(int piece, const PagedRows& k, const PagedRows& v) const {
    constexpr int kPieces = kDim / 8;
    return piece < kPieces ? row_at(k, r.seq, 0, r.kv_head) + piece * 16
                           : row_at(v, r.seq, 0, r.kv_head) + (piece - kPieces) * 16;
  }
};

// The kept tokens of the CTAs in their order, forced ones before; counts: shared, one word a warp.
template <int kDim, class TokenOf>
__device__ __forceinline__ void report_team(const KeptRow<kDim>& row, const TeamChoice& choice, int n, int forced,
                                            int all, u32* counts, int budget, const TokenOf& token_of) {
  using T = Team<true>;
  u32 mine = 0;
  for (int i = forced + static_cast<int>(threadIdx.x); i < n; i += kThreads)
    mine += choice.kept(row.list[i], i) ? 1U : 0U;
  u32 place;
  u32 here;
  place_in_block(counts, mine, place, here);
  if (threadIdx.x == 0) counts[0] = here;
  T::sync();
  u32 before = static_cast<u32>(row.forced);
  for (int i = 0; i < row.x.rank; ++i) before += *T::peer(counts, i);
  for (int i = forced + static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    if (choice.kept(row.list[i], i)) row.report[before + place++] = token_of(row.list[i]);
  }
  row.report_none(all, budget);
  T::sync();
}

template <class Codec, int kDims, int kHeads, int kDim, int kSets, int kRing, int kKeyBytes>
__global__ void __launch_bounds__(kThreads, kDim <= 128 && kRing == 0 ? 2 : 1)
    step_kernel(const __grid_constant__ StepParams p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(kLineBytes) char memory[];
  using T = Team<true>;
  const PagedShape& shape = p.a.shape;
  const int tid = threadIdx.x;
  const int size = p.plan.cluster;
  int rank = T::rank();
  asm volatile("" : "+r"(rank));  // a register: to read it again takes long
  const AttendRow r = step_row<kSets>(p, divided(static_cast<int>(blockIdx.x), p.cluster_factor));
  const Exchange<kDim> exchange{memory, p.layout, r.heads * kDim / 32, size, rank, p.cluster_factor};
  auto& team = *reinterpret_cast<TeamShared<kSets>*>(memory + exchange.layout.select);
  const TeamLink<kSets> link{team, memory + exchange.layout.slots, exchange.barrier() + 8, size, rank};
  Together<Codec, kDims, kHeads, kDim, kSets, kRing, kKeyBytes> beside(p, r, exchange, link);
  if constexpr (!beside.kMeetsLate) beside.meet();
  const ScoreRow row{r.seq, 0, r.kv_head, r.kv_head, r.head0, r.heads, r.kv_head, true, true};
  if constexpr (!beside.kMeetsLate) T::wait();
  auto* lists = reinterpret_cast<int*>(memory + exchange.layout.list);
  const int stride = kSets == 1 ? 0 : team_entries(shape.budget, kSets);  // of the lists of the sets
  // Of this thread's set, and its list.
  TeamRange range{0, 0, 0, 0, 0, 0};
  using Tokens = RowTokens<typename Scorer<Codec, kDims, kHeads, kSets>::R, true, kRing>;
  Tokens tokens;
  constexpr bool kCuts = kKeyBytes == 2 && Codec::kCutsScores;
  // Found where it is used: kept, it takes registers all the while.
  const auto own_table = [&] { return p.layout.table_entries != 0 ? beside.own_table : nullptr; };
  const auto rescore = [&] {
    if constexpr (kCuts) {
      const char* queries = memory + exchange.layout.total + kHeads * kDims / 16 * 4;
      return Rescore<Codec, kDims, kHeads, Tokens>{&p, own_table(), queries, tokens, row.seq, row.plane};
    } else {
      return NoRescore();
    }
  };
  const Span span = score_tokens<Codec, kDims, kHeads, kSets, kRing>(
      p, row, rank, size, memory + exchange.layout.total, beside,
      [&](const auto& store, bool, const auto& tokens_of_row, char* of_warp) {
        tokens = tokens_of_row;
        const KeptRow<kDim> kept(p, r, exchange, beside.length);
        copy_async_wait();
        __syncwarp();  // of_warp is used for something else now
        TeamKeys<std::decay_t<decltype(store)>, kSets, team_held(kSets, kRing != 0)> keys(store, of_warp);
        range = find_team_range(link, keys, beside.guesses ? beside.bins : link.range(), kept.need, rescore());
        const int forced = kept.forced_here();
        const int first = set_of_thread<kSets>() * stride + forced;
        range.listed = forced + list_team_keys(link, keys, range, [&](int place, int id, u32 tie) {
                         lists[first + place] = id | static_cast<int>(tie) << 16;
                       });
      });
  if (!span.scores) {
    if constexpr (beside.kMeetsLate) beside.settle();
    copy_async_wait();
  }
  const int forced = KeptRow<kDim>(p, r, exchange, beside.length).forced_here();
  if (beside.length <= 0) {
    write_nothing<kDim>(p, r, kSets == 1 ? 1 : r.heads);
    return;
  }
  if (!span.scores) range.listed = forced;
  if (kSets != 1 && tid < 32 && set_lane<kSets>() == 0) team.chosen[set_of_thread<kSets>()] = range;
  __syncthreads();
  // From here on a warp is about one set.
  const auto range_of = [&](int i) { return kSets == 1 ? range : team.chosen[i]; };
  const int set = kSets == 1 ? 0 : static_cast<int>(threadIdx.x >> 5) / (kThreads / 32 / kSets);
  const int n = set < r.heads ? range_of(set).listed : 0;
  if constexpr (kCuts) {
    if (range_of(set).cut != 0) {
      link.send_scored(set, range_of(set).before, rescore());
    } else {
      link.send_ties(set, range_of(set).before);
    }
    __syncthreads();  // K and V come to where the queries are that ties are scored with
  } else {
    link.send_ties(set, range_of(set).before);
  }
  const auto choose_of = [&](int i) { return choose(link, i, range_of(i), lists + i * stride); };
  const auto token_of = [&](int x) { return x < 0 ? x & INT32_MAX : tokens(x >> 5 & 255, x & 31, x >> 13 & 7); };
  if (p.a.kept != nullptr) {
    for (int i = 0; i < (kSets == 1 ? 1 : r.heads); ++i) {
      const KeptRow<kDim> kept(p, head_row<kSets>(r, i), exchange, beside.length, i * stride);
      const TeamRange of = range_of(i);
      report_team(kept, choose_of(i), of.listed, forced, kept.forced + static_cast<int>(of.kept), team.warps,
                  shape.budget, token_of);
    }
  }
  attend_list<kDim, false, true, kSets, attend_stages(kRing)>(
      p, r, exchange, lists + set * stride, n, own_table(), [&] { return choose_of(set); }, token_of);
#endif
}

// Null where there is none (paged.cc, paged_one_launch_refusal). bf16 K and V; heads: of a KV head; sets: 4 where these choose for
// themselves.
template <PagedIndexType kType, int kDims>
StepKernel pick_step_kernel(int head_dim, int heads, int sets, int ring, int key_bytes) {
  using C = Codec<kType>;
  constexpr int kBytes = least_key_bytes(kType, kDims);
  if constexpr (kBytes == 4 && kDims <= kShortKeyDims) {
    if (key_bytes == 2) {
      if (head_dim != 128 || (heads > 4 && sets == 1)) return nullptr;
      if (ring == kStepRing && sets == 1) return step_kernel<C, kDims, 4, 128, 1, kStepRing, 2>;
      if (ring != 0) return nullptr;
      return sets == 4 ? step_kernel<C, kDims, 4, 128, 4, 0, 2> : step_kernel<C, kDims, 4, 128, 1, 0, 2>;
    }
  }
  if (key_bytes != kBytes) return nullptr;
  if (ring != 0) {
    const bool known = ring == kStepRing && head_dim == 128 && heads <= 4 && sets == 1;
    return known ? step_kernel<C, kDims, 4, 128, 1, kStepRing, kBytes> : nullptr;
  }
  if (head_dim == 128 && sets == 4) return step_kernel<C, kDims, 4, 128, 4, 0, kBytes>;
  if (head_dim == 64 && sets == 4) return step_kernel<C, kDims, 4, 64, 4, 0, kBytes>;
  if (head_dim == 128 && heads <= 4) return step_kernel<C, kDims, 4, 128, 1, 0, kBytes>;
  if (head_dim == 128 && heads <= 8) return step_kernel<C, kDims, 8, 128, 1, 0, kBytes>;
  if (head_dim == 64 && heads <= 4) return step_kernel<C, kDims, 4, 64, 1, 0, kBytes>;
  return nullptr;
}

}  // namespace fasa::ops::paged
