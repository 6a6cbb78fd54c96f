// Exact selection from scores computed (or read) token by token: slow, and right for every input.
// The fused path falls back on it for a row whose pruned lists cannot prove their answer (a CTA kept
// back a key as good as the threshold); the generic path always uses it.
#pragma once

#include <cooperative_groups.h>

#include "src/ops/paged/paged_prune.cuh"

namespace fasa::ops::paged {

// Scores of single tokens in plain arithmetic. Integer types give the very keys of the tensor cores.
struct ScalarScorer {
  const StepParams* p;
  int seq;
  int head0;
  int heads;
  int kv_head;
  u32* query;    // shared, [heads][index_dims]: rounded query (paged.h), an integer or float bits
  u32* largest;  // shared, one word

  static __device__ bool integer(const PagedShape& s) {
    return s.index_type == PagedIndexType::kI8 || s.index_type == PagedIndexType::kI4;
  }
  __device__ int plane_of(int head) const { return p->a.shape.fcs_per_query_head != 0 ? head0 + head : kv_head; }
  // All threads of the CTA; ends with a barrier.
  __device__ void prepare(int token) {
    const PagedShape& s = p->a.shape;
    const int dims = s.index_dims;
    if (threadIdx.x == 0) *largest = 0;
    __syncthreads();
    const bool is_f16 = s.kv_type == PagedKvType::kF16;
    for (int i = threadIdx.x; i < heads * dims; i += blockDim.x) {
      const int64_t d = static_cast<int64_t>(plane_of(i / dims)) * dims + i % dims;
      const float x =
          load_half_fresh(row_at(p->a.q, seq, token, head0 + i / dims) + 2 * static_cast<int>(__ldg(p->a.dims + d)),
                          is_f16) *
          __ldg(p->a.index_scale + d);
      query[i] = __float_as_uint(x);
      atomicMax(largest, __float_as_uint(fmaxf(fabsf(x), 0.0F)));
    }
    __syncthreads();
    if (s.index_type != PagedIndexType::kBF16) {
      const float limit = s.index_type == PagedIndexType::kI8 ? 32512.0F : integer(s) ? 127.0F : 4.0F;
      const float inverse = limit / fmaxf(__uint_as_float(*largest), 1e-30F);
      for (int i = threadIdx.x; i < heads * dims; i += blockDim.x) {
        const float x = __uint_as_float(query[i]) * inverse;
        query[i] = integer(s) ? static_cast<u32>(__float2int_rn(x)) : __float_as_uint(__half2float(__float2half_rn(x)));
      }
    }
    __syncthreads();
  }
  __device__ int code_int(const unsigned char* row, int d, bool nibbles) const {
    if (!nibbles) return static_cast<signed char>(__ldcg(row + d));
    const int b = __ldcg(row + d / 2);
    return ((d & 1) != 0 ? b >> 4 : b & 15) - (((d & 1) != 0 ? b : b << 4) & 128) / 8;
  }
  __device__ u32 key(int token) const {
    const PagedShape& s = p->a.shape;
    const Place place = place_of(*p, token);
    const int block = __ldcg(p->a.block_table + seq * p->a.block_table_stride + place.page);
    const bool nibbles = s.index_type == PagedIndexType::kI4;
    u32 best = 0;
    for (int h = 0; h < heads; ++h) {
      const unsigned char* row = static_cast<const unsigned char*>(p->a.index.data) +
                                 cache_offset(p->a.index, block, plane_of(h), place.offset);
      const u32* q = query + h * s.index_dims;
      if (integer(s)) {
        int sum = 0;
        for (int d = 0; d < s.index_dims; ++d) {
          sum += code_int(row, d, nibbles) * static_cast<int>(q[d]);
        }
        best = max(best, key_of(nibbles ? 16 * sum : sum));
      } else {
        float sum = 0;
        for (int d = 0; d < s.index_dims; ++d) {
          float x;
          if (s.index_type == PagedIndexType::kBF16) {
            x = load_half_fresh(row + 2 * d, false);
          } else {
            __nv_fp8_e4m3 v;
            v.__x = __ldcg(row + d);
            x = static_cast<float>(v);
          }
          sum = fmaf(x, __uint_as_float(q[d]), sum);
        }
        best = max(best, key_of(sum));
      }
    }
    return best;
  }
};

struct ExactShared {
  u32 hist[kPruneBins];
  u32 total[kPruneBins];
  u32 warps[32];
  u32 counts[2];
};

// CTAs that work on one row together: a cluster, or one CTA.
template <bool kCluster>
struct Team {
  static __device__ int size() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCluster) return cooperative_groups::this_cluster().num_blocks();
#endif
    return 1;
  }
  static __device__ int rank() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCluster) {
      int rank;
      asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
      return rank;
    }
#endif
    return 0;
  }
  static __device__ void sync() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCluster) {
      cooperative_groups::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }
  // The two halves of a barrier after which the barriers that share_barriers() told of may be used. arrive() releases nothing else, as
  // that is a fence of all memory.
  static __device__ void arrive() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCluster) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
  }
  static __device__ void wait() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCluster) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }
  template <class T>
  static __device__ T* peer(T* mine, int rank) {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCluster) {
      return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
    }
#endif
    return mine;
  }
};

// Exclusive place of `mine` in thread order over the CTA and the total; ends with a barrier.
__device__ inline void place_in_block(u32* warps, u32 mine, u32& place, u32& total) {
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  u32 x = mine;
  for (int o = 1; o < 32; o <<= 1) {
    const u32 y = __shfl_up_sync(kFullWarp, x, o);
    if (lane >= o) x += y;
  }
  if (lane == 31) warps[warp] = x;
  __syncthreads();
  place = x - mine;
  total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x >> 5); ++w) {
    if (w < warp) place += warps[w];
    total += warps[w];
  }
  __syncthreads();
}

// Keeps the `need` best of tokens lo..hi-1 (ties: the first ones). key(token) 0: never kept.
// emit(token, local, position): the CTA's local-th kept token, the position-th of the row; all in
// token order. Returns how many this CTA emitted; *all: how many the team did. Every thread of the
// team calls it.
template <bool kCluster, class Key, class Emit>
__device__ u32 exact_select(ExactShared& s, int lo, int hi, u32 need, const Key& key, const Emit& emit, u32* all) {
  using T = Team<kCluster>;
  const int tid = threadIdx.x;
  const int nt = blockDim.x;
  const int size = T::size();
  const int rank = T::rank();
  const int each = ((hi - lo + size - 1) / size + nt - 1) / nt * nt;
  const int64_t begin = min(static_cast<int64_t>(hi), static_cast<int64_t>(lo) + static_cast<int64_t>(rank) * each);
  const int64_t end = min(static_cast<int64_t>(hi), begin + each);
  u32 prefix = 0;
  u32 remaining = need;
  bool short_of = need == 0;
  u32 last_bin = 0;
  for (int shift = 23, bits = 9; !short_of;) {
    for (int i = tid; i < kPruneBins; i += nt) s.hist[i] = 0;
    __syncthreads();
    for (int64_t t = begin + tid; t < end; t += nt) {
      const u32 k = key(static_cast<int>(t));
      if (k != 0 && (shift == 23 || k >> (shift + bits) == prefix)) {
        atomicAdd(&s.hist[k >> shift & ((1U << bits) - 1U)], 1U);
      }
    }
    T::sync();
    for (int i = tid; i < kPruneBins; i += nt) {
      u32 sum = 0;
      for (int c = 0; c < size; ++c) sum += T::peer(s.hist, c)[i];
      s.total[bin_place(static_cast<u32>(i))] = sum;
    }
    __syncthreads();
    const BinFound f = find_bin(s.total, 0, remaining);
    if (f.bin < 0) {
      short_of = true;
    } else {
      remaining -= f.before;
      prefix = prefix << bits | static_cast<u32>(f.bin);
      last_bin = static_cast<u32>(f.bin);
    }
    if (f.bin < 0 || shift == 0) break;
    T::sync();
    bits = shift > 9 ? 9 : shift;
    shift -= bits;
  }
  // Kept: keys above `threshold` and the first `ties` equal to it.
  const u32 threshold = short_of ? (need == 0 ? 0xFFFFFFFFU : 0U) : prefix;
  const u32 ties = short_of ? 0U : remaining;
  u32 mine = 0;
  for (int64_t t = begin + tid; t < end; t += nt) {
    mine += key(static_cast<int>(t)) > threshold ? 1U : 0U;
  }
  u32 place;
  u32 above;
  place_in_block(s.warps, mine, place, above);
  if (tid == 0) {
    s.counts[0] = above;
    s.counts[1] = short_of ? 0U : s.hist[last_bin];
  }
  T::sync();
  u32 equal_before = 0;
  u32 above_before = 0;
  u32 total = 0;
  for (int c = 0; c < size; ++c) {
    const u32* counts = T::peer(s.counts, c);
    if (c < rank) {
      above_before += counts[0];
      equal_before += counts[1];
    }
    total += counts[0];
  }
  *all = total + ties;
  const u32 position0 = above_before + min(equal_before, ties);
  u32 emitted = 0;
  u32 equal = equal_before;
  for (int64_t b = begin; b < end; b += nt) {
    const int64_t t = b + tid;
    const u32 k = t < end ? key(static_cast<int>(t)) : 0U;
    const bool is_above = k > threshold;
    const bool is_equal = ties != 0 && k == threshold;
    u32 e_place;
    u32 e_total;
    place_in_block(s.warps, is_equal ? 1U : 0U, e_place, e_total);
    const bool take = is_above || (is_equal && equal + e_place < ties);
    u32 t_place;
    u32 t_total;
    place_in_block(s.warps, take ? 1U : 0U, t_place, t_total);
    if (take) emit(static_cast<int>(t), emitted + t_place, position0 + emitted + t_place);
    emitted += t_total;
    equal += e_total;
  }
  T::sync();
  return emitted;
}

}  // namespace fasa::ops::paged
