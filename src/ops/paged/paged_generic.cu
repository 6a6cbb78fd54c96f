#include "src/ops/paged/paged_generic.cuh"

#include "src/ops/paged/paged_exact.cuh"

namespace fasa::ops::paged {
namespace {

__device__ float load_kv(const char* row, int d, PagedKvType type) {
  if (type == PagedKvType::kF8E4M3) {
    __nv_fp8_e4m3 v;
    v.__x = __ldcg(reinterpret_cast<const unsigned char*>(row) + d);
    return static_cast<float>(v);
  }
  return load_half_fresh(row + 2 * d, type == PagedKvType::kF16);
}

// Bytes of the index row of (plane, row of K), one warp.
__device__ void encode_row(const PagedShape& s, const int16_t* dims, const float* scales, int plane, const char* k,
                           unsigned char* out) {
  const int lane = threadIdx.x & 31;
  const int64_t first = static_cast<int64_t>(plane) * s.index_dims;
  const auto value = [&](int i) { return load_kv(k, dims[first + i], s.kv_type) * __frcp_rn(scales[first + i]); };
  if (s.index_type == PagedIndexType::kI4) {
    for (int i = lane; i < s.index_dims / 2; i += 32) {
      const int low = encode_int(value(2 * i), 7);
      const int high = encode_int(value(2 * i + 1), 7);
      out[i] = static_cast<unsigned char>((low & 15) | (high & 15) << 4);
    }
    return;
  }
  for (int i = lane; i < s.index_dims; i += 32) {
    const float x = value(i);
    if (s.index_type == PagedIndexType::kBF16) {
      const u32 code = encode_bf16(x);
      out[2 * i] = static_cast<unsigned char>(code & 255U);
      out[2 * i + 1] = static_cast<unsigned char>(code >> 8);
    } else if (s.index_type == PagedIndexType::kF8E4M3) {
      out[i] = static_cast<unsigned char>(encode_fp8(x));
    } else {
      out[i] = static_cast<unsigned char>(encode_int(x, 127));
    }
  }
}

__device__ StepParams step_params(const GenericParams& p) {
  StepParams s;
  s.a = p.a;
  s.page_factor = p.page_factor;
  s.page_shift = p.page_shift;
  return s;
}

// A CTA a new token.
__global__ void append_kernel(const __grid_constant__ GenericParams p) {
  const PagedShape& s = p.a.shape;
  const int seq = blockIdx.x / s.num_query_tokens;
  const int i = blockIdx.x - seq * s.num_query_tokens;
  const int position = p.a.lengths[seq] - s.num_query_tokens + i;
  if (position < 0) return;
  const int page = position / s.page_size;
  const int offset = position - page * s.page_size;
  const int block = p.a.block_table[seq * p.a.block_table_stride + page];
  for (int x = threadIdx.x; x < s.num_kv_heads * s.head_dim; x += blockDim.x) {
    const int head = x / s.head_dim;
    const int d = x - head * s.head_dim;
    const PagedRows* from[2] = {&p.a.k_new, &p.a.v_new};
    const PagedCache* to[2] = {&p.a.k, &p.a.v};
    for (int j = 0; j < 2; ++j) {
      const char* row = row_at(*from[j], seq, i, head);
      char* out = static_cast<char*>(to[j]->data) + cache_offset(*to[j], block, head, offset);
      if (s.kv_type == PagedKvType::kF8E4M3) {
        const float v = load_half_fresh(row + 2 * d, false);
        out[d] = static_cast<char>(__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3));
      } else {
        reinterpret_cast<unsigned short*>(out)[d] = reinterpret_cast<const unsigned short*>(row)[d];
      }
    }
  }
  __syncthreads();
  for (int plane = threadIdx.x >> 5; plane < s.num_planes(); plane += blockDim.x >> 5) {
    const int head = s.fcs_per_query_head != 0 ? plane / s.group() : plane;
    const char* k = static_cast<const char*>(p.a.k.data) + cache_offset(p.a.k, block, head, offset);
    encode_row(s, p.a.dims, p.a.index_scale, plane, k,
               static_cast<unsigned char*>(p.a.index.data) + cache_offset(p.a.index, block, plane, offset));
  }
}

struct SetPlace {
  int seq;
  int query;
  int set;
  int seen;
};
__device__ SetPlace set_place(const PagedArgs& a, int row) {
  const int sets = a.shape.num_sets();
  SetPlace r;
  const int token = row / sets;
  r.set = row - token * sets;
  r.seq = token / a.shape.num_query_tokens;
  r.query = token - r.seq * a.shape.num_query_tokens;
  r.seen = a.lengths[r.seq] - a.shape.num_query_tokens + r.query + 1;
  return r;
}

// A CTA a set and 1,024 tokens at a time.
__global__ void keys_kernel(const __grid_constant__ GenericParams p) {
  extern __shared__ u32 memory[];
  const PagedShape& s = p.a.shape;
  const SetPlace r = set_place(p.a, blockIdx.y);
  if (r.seen <= s.budget || static_cast<int>(blockIdx.x) * 1024 >= r.seen) return;
  const StepParams step = step_params(p);
  const bool own = s.tokens_per_query_head != 0;
  ScalarScorer scorer{
      &step,      r.seq, own ? r.set : r.set * s.group(), own ? 1 : s.group(), own ? r.set / s.group() : r.set,
      memory + 4, memory};
  scorer.prepare(r.query);
  for (int64_t t0 = blockIdx.x; t0 * 1024 < r.seen; t0 += gridDim.x) {
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) {
      const int64_t t = t0 * 1024 + i;
      if (t < r.seen) p.keys[blockIdx.y * s.max_length + t] = scorer.key(static_cast<int>(t));
    }
  }
}

// A CTA a set.
__global__ void __launch_bounds__(1024) pick_kernel(const __grid_constant__ GenericParams p) {
  __shared__ ExactShared memory;
  const PagedShape& s = p.a.shape;
  const SetPlace r = set_place(p.a, blockIdx.x);
  int32_t* list = p.list + static_cast<int64_t>(blockIdx.x) * s.budget;
  const bool all_kept = r.seen <= s.budget;
  const int forced = all_kept ? max(0, r.seen) : s.sinks + s.recent;
  for (int i = threadIdx.x; i < forced; i += blockDim.x) {
    list[i] = all_kept || i < s.sinks ? i : r.seen - s.recent + (i - s.sinks);
  }
  u32 kept = 0;
  if (!all_kept) {
    const u32* keys = p.keys + blockIdx.x * s.max_length;
    exact_select<false>(
        memory, s.sinks, r.seen - s.recent, static_cast<u32>(s.budget - forced), [&](int token) { return keys[token]; },
        [&](int token, u32, u32 position) { list[forced + position] = token; }, &kept);
  }
  const int n = forced + static_cast<int>(kept);
  if (threadIdx.x == 0) p.counts[blockIdx.x] = n;
  __syncthreads();
  if (p.a.kept == nullptr) return;
  for (int i = threadIdx.x; i < s.budget; i += blockDim.x) {
    p.a.kept[static_cast<int64_t>(blockIdx.x) * s.budget + i] = i < n ? list[i] : -1;
  }
}

// A CTA of 4 warps a query head: a warp every fourth kept token, lane l dims l, l + 32, ...
__global__ void __launch_bounds__(128) attend_simple_kernel(const __grid_constant__ GenericParams p) {
  __shared__ float sums[4][256];
  __shared__ float stats[4][2];
  const PagedShape& s = p.a.shape;
  const int token = blockIdx.x / s.num_q_heads;
  const int head = blockIdx.x - token * s.num_q_heads;
  const int seq = token / s.num_query_tokens;
  const int query = token - seq * s.num_query_tokens;
  const int kv = head / s.group();
  const int set = token * s.num_sets() + (s.tokens_per_query_head != 0 ? head : kv);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int n = p.counts[set];
  const bool is_f16 = s.kv_type == PagedKvType::kF16;
  float q[8];
  float o[8];
  const char* q_row = row_at(p.a.q, seq, query, head);
  for (int i = 0; i < 8; ++i) {
    const int d = lane + 32 * i;
    q[i] = d < s.head_dim ? load_half_fresh(q_row + 2 * d, is_f16) : 0.0F;
    o[i] = 0;
  }
  float highest = -1e30F;
  float sum = 0;
  for (int i = warp; i < n; i += 4) {
    const int t = p.list[static_cast<int64_t>(set) * s.budget + i];
    const int page = t / s.page_size;
    const int block = p.a.block_table[seq * p.a.block_table_stride + page];
    const char* k = static_cast<const char*>(p.a.k.data) + cache_offset(p.a.k, block, kv, t - page * s.page_size);
    const char* v = static_cast<const char*>(p.a.v.data) + cache_offset(p.a.v, block, kv, t - page * s.page_size);
    float a = 0;
    for (int j = 0; j < 8; ++j) {
      const int d = lane + 32 * j;
      if (d < s.head_dim) a = fmaf(q[j], load_kv(k, d, s.kv_type), a);
    }
    for (int m = 16; m != 0; m >>= 1) a += __shfl_xor_sync(kFullWarp, a, m);
    a *= p.a.scale;
    if (p.a.softcap > 0) a = p.a.softcap * tanhf(a / p.a.softcap);
    const float top = fmaxf(highest, a);
    const float shrink = expf(highest - top);
    const float w = expf(a - top);
    highest = top;
    sum = sum * shrink + w;
    for (int j = 0; j < 8; ++j) {
      const int d = lane + 32 * j;
      if (d < s.head_dim) o[j] = o[j] * shrink + w * load_kv(v, d, s.kv_type);
    }
  }
  for (int j = 0; j < 8; ++j) sums[warp][lane + 32 * j] = o[j];
  if (lane == 0) {
    stats[warp][0] = highest;
    stats[warp][1] = sum;
  }
  __syncthreads();
  const int64_t row = static_cast<int64_t>(token) * s.num_q_heads + head;
  const bool active = p.a.lengths[seq] - s.num_query_tokens + query >= 0;
  const bool has_sink = active && p.a.sink_logits != nullptr;
  float m = has_sink ? p.a.sink_logits[head] : -1e30F;
  for (int w = 0; w < 4; ++w) m = fmaxf(m, stats[w][0]);
  float total = has_sink ? expf(p.a.sink_logits[head] - m) : 0.0F;
  for (int w = 0; w < 4; ++w) total += stats[w][1] * expf(stats[w][0] - m);
  char* out = static_cast<char*>(p.a.out.data) + seq * p.a.out.seq_stride + query * p.a.out.token_stride +
              head * p.a.out.head_stride;
  for (int d = threadIdx.x; d < s.head_dim; d += blockDim.x) {
    float v = 0;
    for (int w = 0; w < 4; ++w) v += sums[w][d] * expf(stats[w][0] - m);
    v = total == 0.0F ? 0.0F : v / total;
    reinterpret_cast<unsigned short*>(out)[d] =
        is_f16 ? __half_as_ushort(__float2half_rn(v)) : __bfloat16_as_ushort(__float2bfloat16_rn(v));
  }
  if (p.a.lse != nullptr && threadIdx.x == 0) {
    p.a.lse[row] = total == 0.0F ? -__int_as_float(0x7F800000) : m + logf(total);
  }
}

// A warp a slot and plane.
__global__ void write_index_kernel(const __grid_constant__ PagedIndexArgs a) {
  const PagedShape& s = a.shape;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x >> 5);
  const int64_t work = a.num_slots * s.num_planes();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5); i < work; i += warps) {
    const int64_t slot = a.slots[i / s.num_planes()];
    if (slot < 0) continue;
    const int plane = static_cast<int>(i % s.num_planes());
    const int head = s.fcs_per_query_head != 0 ? plane / s.group() : plane;
    const int block = static_cast<int>(slot / s.page_size);
    const int offset = static_cast<int>(slot % s.page_size);
    encode_row(s, a.dims, a.index_scale, plane,
               static_cast<const char*>(a.k.data) + cache_offset(a.k, block, head, offset),
               static_cast<unsigned char*>(a.index.data) + cache_offset(a.index, block, plane, offset));
  }
}

}  // namespace

void launch_generic(const GenericParams& p, cudaStream_t stream) {
  const PagedShape& s = p.a.shape;
  const int tokens = s.num_seqs * s.num_query_tokens;
  const int sets = tokens * s.num_sets();
  if (p.a.k_new.data != nullptr) append_kernel<<<tokens, 256, 0, stream>>>(p);
  const int group = s.tokens_per_query_head != 0 ? 1 : s.group();
  const size_t memory = 16 + 4 * static_cast<size_t>(group) * s.index_dims;
  const int64_t chunks = (s.max_length + 1023) / 1024;
  keys_kernel<<<dim3(static_cast<unsigned>(chunks < 1024 ? chunks : 1024), sets), 256, memory, stream>>>(p);
  pick_kernel<<<sets, 1024, 0, stream>>>(p);
  attend_simple_kernel<<<tokens * s.num_q_heads, 128, 0, stream>>>(p);
}

void launch_write_index(const PagedIndexArgs& args, cudaStream_t stream) {
  if (args.num_slots == 0) return;
  const int64_t work = args.num_slots * args.shape.num_planes();
  const int64_t ctas = (work + 7) / 8;
  write_index_kernel<<<static_cast<unsigned>(ctas < 65536 ? ctas : 65536), 256, 0, stream>>>(args);
}

}  // namespace fasa::ops::paged
