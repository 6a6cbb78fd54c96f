// The part of launch 1 that appends, indexes and scores the new tokens, a warp a row.
#pragma once

#include "src/ops/paged/paged_score_row.cuh"
#include "src/ops/paged/paged_scorer.cuh"

namespace fasa::ops::paged {

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
  for (int i = 0; i < kDims; ++i) y[i] = half_value(raw[i], is_f16) * divide(1.0F, __ldg(p.a.index_scale + at + i));
  return encode_piece<Codec>(y);
}

// The list of the new tokens, by one warp: `key` is that of new token `member` below, of this thread's set; 0 past the 8th.
template <int kSets>
__device__ __forceinline__ void publish_new(u32 key, int first_new, int slots, uint2* out, uint4* bounds) {
  const int member = set_lane<kSets>();
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
  const ScoreRow r = score_row<kSets>(p, row, token);
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
    typename S::Sums all;
    u32 of_round[R::kKeys];
    S scorer(queries);
    scorer.multiply(codes, all);
    S::reduce(all, of_round);
#pragma unroll
    for (int i = 0; i < R::kKeys; ++i) {
      if (R::token_of(i) < 8) keys[R::token_of(i) * kSets + set_of_thread<kSets>()] = of_round[i];
    }
    __syncwarp();
    const int member = set_lane<kSets>();
    const int at = span.first_new + member;
    if (member < 8 && at < length && has_head && at >= span.lo && at < span.hi) {
      key = keys[member * kSets + set_of_thread<kSets>()];
    }
  }
  const int64_t list = list_of(p, r, has_head ? set_of_thread<kSets>() : 0, p.plan.score_ctas);
  publish_new<kSets>(key, span.first_new, p.plan.slots,
                     span.scores && has_head ? p.slots + list * p.plan.slots : nullptr, p.bounds + list);
}

}  // namespace fasa::ops::paged
