// One decode step of FASA-C over a paged KV cache, on the GPU: append, score, select, attend.
//
// For sequence b of length n = lengths[b] (the new tokens included), query token i in
// 0..num_query_tokens-1 sits at position p = n - num_query_tokens + i and sees the tokens 0..p:
//
//   append   K, V [position p] = k_new, v_new [b, i];  index[position p, plane] = encode(K)
//   score    S[h, t] = sum_d q[h, dims[plane][d]] * index_scale[plane][d] * code[plane, t, d]
//            tokens chosen for a KV group together: S[g, t] = max over the query heads h of g
//   select   the first `sinks` tokens, the last `recent` of the tokens seen, and the best of the
//            others by S until `budget` tokens are kept; all tokens where no more are seen
//   attend   a[h, t] = cap(scale * q[h] . k[t]), cap(x) = softcap * tanh(x / softcap), over kept t
//            out[h] = sum_t exp(a) v[t] / (sum_t exp(a) + exp(sink_logits[h])),  lse[h] = log of it
//
// A query token with p < 0 (so every one of a sequence of length 0) is inactive: out = 0, lse = -inf,
// nothing appended, nothing kept. Among equal scores the choice is fixed but unspecified. An index
// code never is NaN: encode maps NaN to 0 and clamps infinities, so a NaN in K reaches only the
// outputs that keep its token.
//
// Codes are scored with q * index_scale rounded, relative to the largest |q * index_scale| of the heads scored together: to 16 bits
// for int8, to 8 bits for int4, to an f16 for fp8 (a finer one would be lost in the rounding of the codes); to a sum of two bf16 for
// bf16. Integer scores are exact from there on, the others are sums in f32.
//
// encode: x * (1 / index_scale[plane][d]), each in f32, rounded to nearest even; int8 clamps to +-127, int4 to +-7
// (two to a byte, first dim in the low nibble), fp8 e4m3 to +-448, bf16 to its largest.
//
// run: launches kernels on `stream` and returns; it allocates nothing, never synchronises and can be
// captured in a graph. lengths, block_table and everything else behind a pointer is read on the
// device at each (re)play. Same inputs, same bytes out. Two runs at once need two workspaces.
#pragma once

#include <cstdint>
#include <string>

namespace fasa::ops {

enum class PagedKvType : int32_t { kBF16 = 0, kF16 = 1, kF8E4M3 = 2 };
enum class PagedIndexType : int32_t { kBF16 = 0, kF8E4M3 = 1, kI8 = 2, kI4 = 3 };

inline constexpr int32_t kPagedMaxQueryTokens = 8;
inline constexpr int32_t kPagedMaxGroup = 16;

// What a plan depends on; the same for every replay.
struct PagedShape {
  int32_t num_seqs = 0;
  int32_t num_query_tokens = 1;  // 1..8 for each sequence
  int32_t num_q_heads = 0;       // up to 4096
  int32_t num_kv_heads = 0;      // divides num_q_heads, group 1..16
  int32_t head_dim = 0;          // 64, 96, 128, 192, 256
  int32_t page_size = 0;         // tokens of a block, 1..256; fastest: multiples of 64, then of 16
  PagedKvType kv_type = PagedKvType::kBF16;
  PagedIndexType index_type = PagedIndexType::kI8;
  int32_t index_dims = 0;             // dims of a key in the index: 2 * N_tip, even
  int32_t fcs_per_query_head = 0;     // 1: num_planes = num_q_heads, 0: num_kv_heads
  int32_t tokens_per_query_head = 0;  // 1: num_sets = num_q_heads, 0: num_kv_heads
  int32_t budget = 0;                 // >= 1, sinks and recent included
  int32_t sinks = 0;
  int32_t recent = 0;      // sinks + recent <= budget
  int64_t max_length = 0;  // no sequence is ever longer: < 2^31

  constexpr int32_t group() const { return num_q_heads / num_kv_heads; }
  constexpr int32_t num_planes() const { return fcs_per_query_head != 0 ? num_q_heads : num_kv_heads; }
  constexpr int32_t num_sets() const { return tokens_per_query_head != 0 ? num_q_heads : num_kv_heads; }
  // Tokens of a set that scores choose.
  constexpr int32_t num_chosen() const { return budget - sinks - recent; }
  // Sets that one pass over an index row scores: four query heads that choose for themselves.
  constexpr int32_t sets_at_once() const { return tokens_per_query_head != 0 && fcs_per_query_head == 0 ? 4 : 1; }
  // Bytes of the index of one token and plane: index_dims * (2, 1, 1, 1/2).
  constexpr int64_t index_row_bytes() const {
    return index_type == PagedIndexType::kBF16 ? 2 * index_dims
           : index_type == PagedIndexType::kI4 ? index_dims / 2
                                               : index_dims;
  }
};

// Row (block, head, token) lies at data + block * block_stride + head * head_stride +
// token * token_stride (bytes, 64 bits); its head_dim values (or index row bytes) are contiguous.
// Rows of 16-bit K and V, and index rows of 16, 32 or 64 bytes, start at multiples of 16 bytes.
struct PagedCache {
  void* data = nullptr;
  int64_t block_stride = 0;
  int64_t head_stride = 0;  // of the index: plane stride
  int64_t token_stride = 0;
};

// q, k_new, v_new, out: 16-bit values (the type of K and V; bf16 where these are fp8), strides in
// bytes, head_dim values contiguous.
struct PagedRows {
  void* data = nullptr;
  int64_t seq_stride = 0;
  int64_t token_stride = 0;  // of the query tokens
  int64_t head_stride = 0;
};

struct PagedArgs {
  PagedShape shape;
  PagedRows q;      // [num_seqs, num_query_tokens, num_q_heads, head_dim], after RoPE
  PagedRows k_new;  // [num_seqs, num_query_tokens, num_kv_heads, head_dim]; null: already in the cache
  PagedRows v_new;  // null exactly where k_new is
  PagedCache k;     // [num_blocks, num_kv_heads, page_size, head_dim]
  PagedCache v;
  PagedCache index;                      // [num_blocks, num_planes, page_size, index_row_bytes]
  const int32_t* block_table = nullptr;  // [num_seqs, block_table_stride]: block of each page
  int64_t block_table_stride = 0;        // entries, >= ceil(max_length / page_size)
  const int32_t* lengths = nullptr;      // [num_seqs], after the append
  // Constants: not written by work that may be in flight on the stream.
  const int16_t* dims = nullptr;       // [num_planes, index_dims], dims of the key, 16-byte aligned
  const float* index_scale = nullptr;  // [num_planes, index_dims], > 0, 16-byte aligned
  float scale = 1.0F;                  // usually 1 / sqrt(head_dim)
  float softcap = 0.0F;                // 0: none
  const float* sink_logits = nullptr;  // [num_q_heads] or null
  PagedRows out;                       // [num_seqs, num_query_tokens, num_q_heads, head_dim]
  float* lse = nullptr;                // [num_seqs, num_query_tokens, num_q_heads] or null
  int32_t* kept = nullptr;             // [num_seqs, num_query_tokens, num_sets, budget] or null; unused: -1
};

// The device that a plan is for.
struct PagedDevice {
  int32_t compute_capability = 90;  // 10 * major + minor
  int32_t num_sms = 132;
  // [n - 1]: clusters of n CTAs that run at once where every CTA has an SM for itself, and where two share one; 0: not known.
  int32_t clusters_alone[16] = {};
  int32_t clusters_paired[16] = {};
  int32_t memory_gbs = 0;  // bandwidth; 0: not known
};

enum class PagedPath : int32_t {
  kFused = 0,      // two launches: score + local prune, then threshold + attention in clusters
  kGeneric = 1,    // four simple launches, for every other shape and for devices before sm_90
  kOneLaunch = 2,  // all of a short row by one cluster, pages being multiples of 16 tokens (score_ctas = cluster)
};

struct PagedPlan {
  PagedPath path = PagedPath::kGeneric;
  // Fused: rows of launch 1, CTAs of a row (its new tokens have a warp of another), rounds of a warp, keys that a CTA publishes at
  // least and at most.
  int32_t score_rows = 0;
  int32_t score_ctas = 0;
  int32_t score_iterations = 0;  // rounds of 2 KB of index rows that a warp makes at max_length
  int32_t quota = 0;
  int32_t slots = 0;
  int32_t attend_rows = 0;    // of launch 2
  int32_t cluster = 0;        // CTAs that share one row's attention
  int32_t heads_per_row = 0;  // query heads that one attention row serves
  int32_t ring = 0;           // one launch: rounds that a warp has on their way in shared memory; 0: in registers
  // One launch: CTAs after the first lead_ctas, which come second to an SM, wait so long before they score rows of max_length.
  int32_t lead_ctas = 0;
  int32_t lead_ns = 0;
  // Two launches: 1 where the CTAs of launch 2 are so few that they need not share SMs with those of launch 1.
  int32_t attend_alone = 0;
  // One launch: bytes of a key in shared memory. 2: several int8 or fp8 scores share one, and those of the threshold's are scored again.
  int32_t key_bytes = 0;
  int64_t score_smem = 0;
  int64_t attend_smem = 0;
  int64_t workspace_bytes = 0;  // 256-byte aligned memory of the caller, no need to clear it; one launch needs none

  bool operator==(const PagedPlan&) const = default;

  // What launch 1 publishes for a set: a list of `slots` (key, token) a CTA, that of the new tokens included.
  constexpr int32_t lists() const { return score_ctas + (path == PagedPath::kOneLaunch ? 0 : 1); }
  constexpr int32_t entries() const { return lists() * slots; }
  // CTAs that do a row's step together in one launch; 0: two launches.
  constexpr int32_t team() const { return path == PagedPath::kOneLaunch ? cluster : 0; }
};

// Throws Error(kInvalidArgument) with what is wrong and what to do.
void check(const PagedShape& shape);
void check(const PagedArgs& args);

// Bytes that one step must move at these lengths: index of every token seen, kept K and V, the new
// rows, q and out. lengths is host memory here.
int64_t paged_bytes(const PagedShape& shape, const int32_t* lengths);

// Pure. Throws as check(shape).
PagedPlan paged_plan(const PagedShape& shape, const PagedDevice& device);
// The rest of a fused plan whose score_ctas and cluster are given (tuning).
void complete_plan(const PagedShape& shape, PagedPlan& plan);
// Whether its CTAs have numbers for so many keys (paged_sieve.cuh).
bool paged_keys_fit(const PagedShape& shape, const PagedPlan& plan);
// Empty, or why the fused path cannot do the shape on the device, or not in one launch.
std::string paged_fused_refusal(const PagedShape& shape, const PagedDevice& device);
std::string paged_one_launch_refusal(const PagedShape& shape);

// Scalar, in f64 where it rounds; every pointer is host memory.
void paged_decode_ref(const PagedArgs& args);

// Rows of the index from rows already in the K cache (after a prefill, a page copy, a K-shift).
struct PagedIndexArgs {
  PagedShape shape;
  PagedCache k;
  PagedCache index;
  const int64_t* slots = nullptr;  // [num_slots] block * page_size + offset; negative: skipped
  int64_t num_slots = 0;
  const int16_t* dims = nullptr;       // [num_planes, index_dims]
  const float* index_scale = nullptr;  // [num_planes, index_dims]
};
void check(const PagedIndexArgs& args);
void paged_write_index_ref(const PagedIndexArgs& args);

// Selection alone: the `budget` best of num_tokens scores of each row, NaN never.
struct PagedSelectArgs {
  const float* scores = nullptr;  // [num_rows, row_stride], 16-byte aligned rows
  int64_t row_stride = 0;         // floats
  int32_t num_rows = 0;
  int32_t num_tokens = 0;   // at most 2^30
  int32_t budget = 0;       // <= num_tokens
  int32_t* kept = nullptr;  // [num_rows, budget], order fixed but unspecified; unused: -1
};
struct PagedSelectPlan {
  int32_t score_ctas = 0;
  int32_t score_iterations = 0;
  int32_t quota = 0;
  int32_t slots = 0;
  int64_t score_smem = 0;
  int64_t select_smem = 0;
  int64_t workspace_bytes = 0;
};
void check(const PagedSelectArgs& args);
PagedSelectPlan paged_select_plan(const PagedSelectArgs& args, const PagedDevice& device);
void paged_select_ref(const PagedSelectArgs& args);

// In libfasa_cuda. `stream` is a cudaStream_t; workspace is device memory of plan.workspace_bytes.
// Throw Error(kInvalidArgument) on a bad call and Error(kUnsupported) where a launch fails.
PagedDevice paged_device(int32_t ordinal);
void paged_decode_cuda(const PagedArgs& args, const PagedPlan& plan, void* workspace, void* stream);
void paged_write_index_cuda(const PagedIndexArgs& args, void* stream);
void paged_select_cuda(const PagedSelectArgs& args, const PagedSelectPlan& plan, void* workspace, void* stream);

}  // namespace fasa::ops
