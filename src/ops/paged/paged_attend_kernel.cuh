// The kernel that paged_attend.cuh describes.
#pragma once

#include "src/ops/paged/paged_attend_row.cuh"
#include "src/ops/paged/paged_attend_tile.cuh"
#include "src/ops/paged/paged_kernels.cuh"

namespace fasa::ops::paged {

// The exchange of a row: its heads * kDim sums in chunks of 32, chunk i to CTA i mod size.
template <int kDim>
struct Exchange {
  char* memory;
  AttendLayout layout;
  int chunks;
  int size;
  int rank;
  u32 factor;  // of a division by size (paged_device.cuh)

  __device__ int mine() const { return quotient(chunks - rank + size - 1); }
  __device__ int capacity() const { return quotient(chunks + size - 1); }
  __device__ __forceinline__ int quotient(int i) const { return divided(i, factor); }
  __device__ u32 barrier() const { return shared_address(memory + layout.barrier); }
  // One thread, at the start.
  __device__ void expect() const {
    init_barrier(barrier());
    share_barriers();
    expect_stores(barrier(), size * (mine() * 128 + 8 * 8));
  }
  // Without a cluster stores to a peer are illegal, even to oneself.
  template <class T>
  __device__ void store(T* to, int owner, T value) const {
    if (size == 1) {
      *to = value;
    } else {
      store_peer(peer_address(shared_address(to), owner), peer_address(barrier(), owner), value);
    }
  }
  __device__ void wait() const {
    if (size == 1) {
      __syncthreads();
    } else {
      wait_stores(barrier());
    }
  }
};

// Sums the warps' partials of the CTA and gives each CTA of the cluster its share of the row; each then writes its share
// of the output. kSets: heads attend to tokens of their own, kThreads / 32 / kSets warps each, or (1) all to the same. kStages: of a warp.
template <int kDim, bool kF16, int kSets, int kStages>
__device__ __forceinline__ void combine(const StepParams& p, const AttendRow& r, int n, Partial<kDim>& o,
                                        const Exchange<kDim>& x) {
  // Warps of a head.
  constexpr int kWarps = kThreads / 32 / kSets;
  constexpr int kStride = kStages * attend_stage_bytes(kDim) / 4;  // of the warps' sums
  const int tid = threadIdx.x;
  float* sums = reinterpret_cast<float*>(x.memory + x.layout.slots);  // where each warp's first Stage was
  float* of_warps = reinterpret_cast<float*>(x.memory + x.layout.warps);
  float2* stats = reinterpret_cast<float2*>(x.memory + x.layout.stats);
  float* inbox = reinterpret_cast<float*>(x.memory + x.layout.inbox);
  o.sum += __shfl_xor_sync(kFullWarp, o.sum, 1);
  o.sum += __shfl_xor_sync(kFullWarp, o.sum, 2);
  const int busy = kSets == 1 ? min((n + 15) / 16, kWarps) : kWarps;
  const int stored = kSets == 1 ? r.heads : 1;  // heads of a warp
  if (kSets != 1 || tid >> 5 < busy) {
    store_partial<kDim>(o, kSets == 1 ? 0 : (tid >> 5) / kWarps, stored, of_warps, sums + (tid >> 5) * kStride);
  }
  __syncthreads();
  // Where warp w of head h has them.
  const auto warp_of = [](int h, int w) { return kSets == 1 ? w : h * kWarps + w; };
  const auto place_of_head = [](int h) { return kSets == 1 ? h : 0; };
  // Maximum of head h over the warps, and what each warp's sums count relative to it.
  const auto weigh = [&](int h, float(&weights)[kWarps]) {
    float m = -1e30F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      weights[w] = w < busy ? of_warps[warp_of(h, w) * 16 + place_of_head(h)] : -1e30F;
      m = fmaxf(m, weights[w]);
    }
#pragma unroll
    for (int w = 0; w < kWarps; ++w) weights[w] = exp2_fast(weights[w] - m);
    return m;
  };
  for (int i = tid; i < r.heads * (kDim / 4); i += kThreads) {
    const int h = i / (kDim / 4);
    float weights[kWarps];
    weigh(h, weights);
    float4 value = {0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float f = weights[w];
      float4 v = {0, 0, 0, 0};
      if (w < busy)
        v = reinterpret_cast<const float4*>(sums + warp_of(h, w) * kStride + (place_of_head(h) - h) * kDim)[i];
      value = {value.x + f * v.x, value.y + f * v.y, value.z + f * v.z, value.w + f * v.w};
    }
    const int chunk = i >> 3;
    const int turn = x.quotient(chunk);
    const int owner = chunk - turn * x.size;
    const int at = (x.rank * x.capacity() + turn) * 32 + (i & 7) * 4;
    x.store(reinterpret_cast<float4*>(inbox + at), owner, value);
  }
  // By the last threads, which have no sums where there are few heads.
  const int other = kThreads - 1 - tid;
  if (other < 8 * x.size) {
    const int h = other & 7;
    float2 stat = {-1e30F, 0};
    if (h < r.heads) {
      float weights[kWarps];
      stat.x = weigh(h, weights);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        stat.y += weights[w] * (w < busy ? of_warps[warp_of(h, w) * 16 + 8 + place_of_head(h)] : 0.0F);
      }
    }
    x.store(stats + x.rank * 8 + h, other >> 3, stat);
  }
  x.wait();
  for (int j = tid; j < x.mine() * 32; j += kThreads) {
    const int i = ((j >> 5) * x.size + x.rank) * 32 + (j & 31);
    const int h = i / kDim;
    const bool has_sink = p.a.sink_logits != nullptr;
    const float sink = has_sink ? __ldg(p.a.sink_logits + r.head0 + h) * 1.44269504F : -1e30F;
    float m = sink;
    float value = 0;
    float sum = has_sink ? 1.0F : 0.0F;
#pragma unroll 1
    for (int first = 0; first < x.size; first += kCtasTogether) {
      float2 of_cta[kCtasTogether];
      float values[kCtasTogether];
      float highest = m;
#pragma unroll
      for (int k = 0; k < kCtasTogether; ++k) {
        const bool is_one = first + k < x.size;
        of_cta[k] = is_one ? stats[(first + k) * 8 + h] : make_float2(-1e30F, 0);
        values[k] = is_one ? inbox[(first + k) * x.capacity() * 32 + j] : 0.0F;
        highest = fmaxf(highest, of_cta[k].x);
      }
      const float shrink = exp2_fast(m - highest);
      value *= shrink;
      sum *= shrink;
      m = highest;
#pragma unroll
      for (int k = 0; k < kCtasTogether; ++k) {
        const float f = exp2_fast(of_cta[k].x - m);
        value += f * values[k];
        sum += f * of_cta[k].y;
      }
    }
    const float out = sum == 0.0F ? 0.0F : __fdividef(value, sum);
    char* to = static_cast<char*>(p.a.out.data) + r.seq * p.a.out.seq_stride + r.query * p.a.out.token_stride +
               (r.head0 + h) * p.a.out.head_stride;
    reinterpret_cast<unsigned short*>(to)[i - h * kDim] = to_half<kF16>(out);
    if (p.a.lse != nullptr && i == h * kDim) {
      const PagedShape& s = p.a.shape;
      p.a.lse[(static_cast<int64_t>(r.seq) * s.num_query_tokens + r.query) * s.num_q_heads + r.head0 + h] =
          sum == 0.0F ? -__int_as_float(0x7F800000) : (m + log2f(sum)) * 0.69314718F;
    }
  }
}

// sets: whose kept tokens it reports, r.set the first of them.
template <int kDim>
__device__ __forceinline__ void write_nothing(const StepParams& p, const AttendRow& r, int sets = 1) {
  const PagedShape& s = p.a.shape;
  if (Team<true>::rank() != 0) return;
  for (int i = threadIdx.x; i < r.heads * kDim; i += blockDim.x) {
    char* to = static_cast<char*>(p.a.out.data) + r.seq * p.a.out.seq_stride + r.query * p.a.out.token_stride +
               (r.head0 + i / kDim) * p.a.out.head_stride;
    reinterpret_cast<unsigned short*>(to)[i % kDim] = 0;
  }
  if (p.a.lse != nullptr && threadIdx.x < r.heads) {
    p.a.lse[(static_cast<int64_t>(r.seq) * s.num_query_tokens + r.query) * s.num_q_heads + r.head0 + threadIdx.x] =
        -__int_as_float(0x7F800000);
  }
  if (p.a.kept != nullptr && r.reports) {
    for (int i = threadIdx.x; i < sets * s.budget; i += blockDim.x) p.a.kept[r.set * s.budget + i] = -1;
  }
}

// The whole row is scored again, token by token (paged_exact.cuh). By value, so that nothing of the usual way is in memory.
struct KeptAgain {
  u32 mine;  // by this CTA
  u32 all;
};
__device__ __noinline__ inline KeptAgain select_again(const StepParams& p, AttendRow r, int seen, ExactShared& s,
                                                      u32* query, int* list) {
  const PagedShape& shape = p.a.shape;
  const bool own = shape.tokens_per_query_head != 0;
  // The whole group scores, also where this row attends for a part of it.
  ScalarScorer scorer{&p,        r.seq, own ? r.head0 : r.kv_head * shape.group(), own ? 1 : shape.group(), r.kv_head,
                      query + 4, query};
  scorer.prepare(r.query);
  const int forced = shape.sinks + shape.recent;
  const int rank = Team<true>::rank();
  const int size = Team<true>::size();
  // Forced tokens first, one CTA after the other.
  const u32 before = rank < forced ? static_cast<u32>((forced - rank + size - 1) / size) : 0U;
  for (u32 i = threadIdx.x; i < before; i += blockDim.x) {
    const int f = rank + static_cast<int>(i) * size;
    const int token = f < shape.sinks ? f : seen - shape.recent + (f - shape.sinks);
    list[i] = token;
    if (p.a.kept != nullptr && r.reports) p.a.kept[r.set * shape.budget + f] = token;
  }
  u32 all;
  const u32 mine = exact_select<true>(
      s, shape.sinks, seen - shape.recent, static_cast<u32>(shape.budget - forced),
      [&](int token) { return scorer.key(token); },
      [&](int token, u32 local, u32 position) {
        list[before + local] = token;
        if (p.a.kept != nullptr && r.reports) {
          p.a.kept[r.set * shape.budget + forced + position] = token;
        }
      },
      &all);
  return {before + mine, all + static_cast<u32>(forced)};
}

// What a row keeps besides the best of its lists, and where kept token i of it goes: to CTA i mod size, and CTA 0 reports all.
template <int kDim>
struct KeptRow {
  const Exchange<kDim>& x;
  int* list;
  int32_t* report;  // null: not wanted
  int seen;         // tokens that the query may see
  bool all_kept;
  int forced;  // sinks and recent tokens, or all
  u32 need;    // from the lists

  // first: entry of the CTA's lists with which that of the row begins.
  __device__ __forceinline__ KeptRow(const StepParams& p, const AttendRow& r, const Exchange<kDim>& exchange,
                                     int length, int first = 0)
      : x(exchange), list(reinterpret_cast<int*>(exchange.memory + exchange.layout.list) + first) {
    const PagedShape& s = p.a.shape;
    seen = length - s.num_query_tokens + r.query + 1;
    all_kept = seen <= s.budget;
    forced = all_kept ? max(seen, 0) : s.sinks + s.recent;
    need = all_kept ? 0U : static_cast<u32>(s.budget - forced);
    report = p.a.kept != nullptr && r.reports ? p.a.kept + r.set * s.budget : nullptr;
  }
  __device__ __forceinline__ bool is_mine(u32 i) const {
    return static_cast<int>(i) - x.quotient(static_cast<int>(i)) * x.size == x.rank;
  }
  __device__ __forceinline__ void put(int token, u32 i) const { list[x.quotient(static_cast<int>(i))] = token; }
  // Places of the report from `kept` on.
  __device__ __forceinline__ void report_none(int kept, int budget) const {
    if (report == nullptr) return;
    for (int i = kept + x.rank * kThreads + static_cast<int>(threadIdx.x); i < budget; i += kThreads * x.size)
      report[i] = -1;
  }
  // Forced tokens of this CTA.
  __device__ __forceinline__ int forced_here() const { return x.quotient(forced - x.rank + x.size - 1); }
  // mark: of their entries in the list; sets: so many lists, `stride` entries each.
  __device__ __forceinline__ void put_forced(const PagedShape& s, int mark, int sets = 1, int stride = 0) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < forced; i += kThreads) {
      const int token = all_kept || i < s.sinks ? i : seen - s.recent + (i - s.sinks);
#pragma unroll 1
      for (int set = 0; set < sets; ++set) {
        if (is_mine(static_cast<u32>(i))) list[set * stride + x.quotient(i)] = token | mark;
        if (report != nullptr && x.rank == 0) report[set * s.budget + i] = token;
      }
    }
  }
};

// What this CTA attends to, by the row's lists in shared memory (and held, after a barrier): how many tokens of row.list. Ends
// with a barrier.
template <int kDim>
__device__ __forceinline__ int select_kept(const StepParams& p, const AttendRow& r, const KeptRow<kDim>& row,
                                           const Lists& all, const uint4& bounds) {
  const Exchange<kDim>& exchange = row.x;
  const int size = exchange.size;
  const int rank = exchange.rank;
  int* list = row.list;
  auto& select = *reinterpret_cast<SelectShared*>(exchange.memory + exchange.layout.select);
  u32 kept = static_cast<u32>(row.forced);
  bool exact = true;
  if (row.need != 0) {
    const Threshold t = find_threshold(select, all, row.need, bounds);
    exact = t.exact;
    if (exact) {
      const auto first = static_cast<u32>(row.forced);
      emit_kept(
          select, all, t, [&](u32 i) { return row.is_mine(first + i); },
          [&](int token, u32 i) { row.put(token, first + i); });
      if (row.report != nullptr && rank == 0) {
        __syncthreads();
        emit_kept(
            select, all, t, [](u32) { return true; }, [&](int token, u32 i) { row.report[first + i] = token; });
      }
      kept += t.kept;
    }
  }
  int n = exchange.quotient(static_cast<int>(kept) - rank + size - 1);
  if (!exact) {
    __syncthreads();
    const KeptAgain again =
        select_again(p, r, row.seen, *reinterpret_cast<ExactShared*>(exchange.memory + exchange.layout.select),
                     reinterpret_cast<u32*>(exchange.memory + exchange.layout.slots), list);
    n = static_cast<int>(again.mine);
    kept = again.all;
  }
  row.report_none(static_cast<int>(kept), p.a.shape.budget);
  __syncthreads();
  return n;
}

// Attention of this CTA over the first n tokens of the list, and its combination with the peers'. own_table: the block table in
// shared memory, or null.
// choose(): which entries are kept, called once by every warp, whether it attends or not, when its first tile is on the way.
// token_of: of an entry of the list.
// kSets: as in combine; where it is not 1, list, n and choose() are those of the warp's head.
// kStages: tiles that a warp has on their way. With one, and kAhead, the next one comes to L2 meanwhile where it is a warp's last one,
// if the row has several CTAs.
template <int kDim, bool kF16, bool kAhead, int kSets, int kStages, class Choose, class TokenOf>
__device__ __forceinline__ void attend_list(const StepParams& p, const AttendRow& r, const Exchange<kDim>& exchange,
                                            const int* list, int n, const int* own_table, const Choose& choose,
                                            const TokenOf& token_of) {
  const int tid = threadIdx.x;
  const int lane = tid & 31;
  Partial<kDim> o;
#pragma unroll
  for (int i = 0; i < Partial<kDim>::kTiles * 4; ++i) {
    o.out[i][0] = o.out[i][1] = o.out[i][2] = o.out[i][3] = 0.0F;
  }
  constexpr int kWarps = kThreads / 32 / kSets;  // that share the list
  constexpr int kTurn = kWarps * 16;
  const char* k_base = static_cast<const char*>(p.a.k.data) + r.kv_head * p.a.k.head_stride;
  const char* v_base = static_cast<const char*>(p.a.v.data) + r.kv_head * p.a.v.head_stride;
  const int32_t* table = p.a.block_table + r.seq * p.a.block_table_stride;
  const char* queries = exchange.memory + exchange.layout.queries;
  const u32 stage =
      shared_address(exchange.memory + exchange.layout.slots) + tid / 32 * kStages * attend_stage_bytes(kDim);
  const int begin = tid / 32 % kWarps * 16;
  // The i-th entry, and where its token lies: block, and offset in it.
  const auto find = [&](int i, int& entry) {
    entry = list[i];
    const Place at = place_of(p, token_of(entry));
    return make_int2(own_table != nullptr ? own_table[at.page] : load_stream<int>(table + at.page), at.offset);
  };
  if constexpr (kStages == 1) {
    // Addresses of pieces that are kept from one tile to the next spill, so they are found anew. The upper lanes find where the next tile's
    // tokens lie, so that this is not waited for then; where there are four sets that costs more.
    constexpr bool kOneSet = kSets == 1;
    int entry = 0;
    int2 place = make_int2(0, 0);
    const auto ask = [&](int first) {
      const int next = first + kTurn;
      int mine = lane < 16 ? first + lane : n;
      if constexpr (!kOneSet) {
        entry = 0;
        place = make_int2(0, 0);
      } else {
        if (first != begin) {
          entry = __shfl_down_sync(kFullWarp, entry, 16);
          place.x = __shfl_down_sync(kFullWarp, place.x, 16);
          place.y = __shfl_down_sync(kFullWarp, place.y, 16);
        }
        mine = lane >= 16 ? next + lane - 16 : first == begin ? mine : n;
      }
      if (mine < n) {
        place = find(mine, entry);
        if (kAhead && kOneSet && exchange.size > 1 && next + kTurn >= n && lane >= 16) {
          const char* k = k_base + place.x * p.a.k.block_stride + place.y * p.a.k.token_stride;
          const char* v = v_base + place.x * p.a.v.block_stride + place.y * p.a.v.token_stride;
#pragma unroll
          for (int line = 0; line < (2 * kDim + 127) / 128; ++line) {
            prefetch_l2(k + line * 128);
            prefetch_l2(v + line * 128);
          }
        }
      }
      ask_tile<kDim, kStages>(p, place, n - first, k_base, v_base, stage);
    };
    auto choice = decltype(choose())();
    for (int first = begin;; first += kTurn) {
      if (first < n) ask(first);
      if (first == begin) choice = choose();
      if (first >= n) break;
      attend_tile<kDim, kF16, kStages>(p, first, n, entry, queries, stage, o, choice);
    }
  } else {
    static_assert(kStages == 2);
    // Returns this lane's entry.
    const auto ask = [&](int first, u32 to) {
      int entry = 0;
      if (first < n) {
        int2 place = make_int2(0, 0);
        if (lane < 16 && first + lane < n) place = find(first + lane, entry);
        ask_tile<kDim, kStages>(p, place, n - first, k_base, v_base, to);
      } else {
        // The groups of a tile, as those behind a tile are counted.
        copy_async_commit();
        copy_async_commit();
      }
      return entry;
    };
    int entry = ask(begin, stage);
    const auto choice = choose();
    u32 here = stage;
    u32 other = stage + attend_stage_bytes(kDim);
#pragma unroll 1
    for (int first = begin; first < n; first += kTurn) {
      const int next = ask(first + kTurn, other);
      attend_tile<kDim, kF16, kStages>(p, first, n, entry, queries, here, o, choice);
      entry = next;
      const u32 read = here;
      here = other;
      other = read;
    }
  }
  combine<kDim, kF16, kSets, kStages>(p, r, n, o, exchange);
}

// kAlone: for so few rows that a CTA need not share an SM.
template <int kDim, bool kF16, bool kAlone = false>
__global__ void __launch_bounds__(kThreads, kDim <= 128 && !kAlone ? 2 : 1)
    attend_kernel(const __grid_constant__ StepParams p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(kLineBytes) char memory[];
  using T = Team<true>;
  const PagedShape& shape = p.a.shape;
  const int tid = threadIdx.x;
  const int size = T::size();
  int rank = T::rank();
  asm volatile("" : "+r"(rank));  // a register: to read it again takes long
  const AttendRow r = attend_row(p, divided(static_cast<int>(blockIdx.x), p.cluster_factor));
  const int lists = p.plan.lists();
  const int count = p.plan.entries();
  const Exchange<kDim> exchange{memory, p.layout, r.heads * kDim / 32, size, rank, p.cluster_factor};
  auto& select = *reinterpret_cast<SelectShared*>(memory + exchange.layout.select);
  uint2* slots = reinterpret_cast<uint2*>(memory + exchange.layout.slots);
  if (tid == 0) exchange.expect();
  __syncwarp();
  T::arrive();

  // What launch 1 does not write, and its predecessors had written before it let us start.
  const int length = __ldcg(p.a.lengths + r.seq);
  const KeptRow<kDim> row(p, r, exchange, length);
  // Queries, 8 heads whether there are so many or not.
  char* queries = memory + exchange.layout.queries;
  for (int i = tid; i < kDim; i += kThreads) {
    const int head = i / (kDim / 8);
    const int piece = i % (kDim / 8);
    uint4 x = make_uint4(0, 0, 0, 0);
    if (head < r.heads)
      x = __ldcg(reinterpret_cast<const uint4*>(row_at(p.a.q, r.seq, r.query, r.head0 + head)) + piece);
    *reinterpret_cast<uint4*>(queries + head * query_stride(kDim) + piece * 16) = x;
  }
  select.clear();
  const int32_t* table = p.a.block_table + r.seq * p.a.block_table_stride;
  int* own_table = reinterpret_cast<int*>(memory + exchange.layout.table);
  const int entries = row.seen > 0 ? min(p.layout.table_entries, place_of(p, row.seen - 1).page + 1) : 0;
  for (int i = tid; i < entries; i += kThreads) copy_async4(shared_address(own_table + i), table + i);

  row.put_forced(shape, 0);
  const uint2* lists_of_set = p.slots + r.set * count;
  const uint4* bounds_of_set = p.bounds + r.set * lists;
  touch(lists_of_set);
  touch(bounds_of_set);
  T::wait();  // it empties L1, which nothing is in yet
  grid_wait();
  grid_launch_dependents();
  if (row.seen <= 0) {
    write_nothing<kDim>(p, r);
    return;
  }

  Lists all{slots, count, {}};
  uint4 bounds = make_uint4(0, 0, 0, 0);
  if (row.need != 0) {
    all.copy(lists_of_set);
    bounds = join_bounds(bounds_of_set, lists);
    __syncthreads();  // for select.clear()
    copy_async_wait();
    all.hold();
  }
  const int n = select_kept(p, r, row, all, bounds);
  // The copy of the table is there where something was selected.
  attend_list<kDim, kF16, false, 1, 1>(
      p, r, exchange, row.list, n, row.need != 0 && entries != 0 ? own_table : nullptr, [] { return AllKept(); },
      [](int token) { return token; });
#endif
}

}  // namespace fasa::ops::paged
