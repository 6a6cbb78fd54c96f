// Attention of one warp over 16 kept tokens at a time (paged_attend.cuh).
#pragma once

#include "src/ops/paged/paged_attend.cuh"

namespace fasa::ops::paged {

// One warp's share of a row. highest and sum are of head g (lane = 4 * g + c); out[4 * j + x] holds dims
// (g + 8 * j) * 8 + 2 * x (+ 1 in the upper two) of heads 2 * c and 2 * c + 1.
template <int kDim>
struct Partial {
  static constexpr int kTiles = (kDim + 63) / 64;
  float highest = -1e30F;
  float sum = 0;
  float out[kTiles * 4][4];
};

// Every entry of the list is kept.
struct AllKept {
  __device__ __forceinline__ bool kept(int, int) const { return true; }
};

// Where a warp has rows of K and V (attend_stage_bytes), in pieces of 16 bytes. They are copied by whole rows, which memory gives faster
// than pieces of many rows, and so placed that the lanes that read together do not meet in a bank.
template <int kDim>
struct Stage {
  static constexpr int kRowPieces = kDim / 8;
  static constexpr bool kSpreads = kRowPieces % 8 == 0;
  static constexpr u32 kOfV = 16 * 2 * kDim;
  static_assert(attend_stage_bytes(kDim) == 2 * kOfV);

  // Lanes read four pieces of each of 8 neighbouring rows of K, and 8 pieces of every other row of V.
  static __device__ __forceinline__ u32 place_of_k(int row, int piece) {
    return static_cast<u32>(row * kRowPieces + (kSpreads ? piece ^ (row & 1) << 2 : piece)) * 16;
  }
  static __device__ __forceinline__ u32 place_of_v(int row, int piece) {
    return kOfV + static_cast<u32>(row * kRowPieces + (kSpreads ? piece ^ (row & 6) : piece)) * 16;
  }
};

// Where two CTAs share an SM what is made of it is found again for every tile, as it would spill.
template <int kStages>
__device__ __forceinline__ int lane_of_tile() {
  int lane = threadIdx.x & 31;
  if constexpr (kStages == 1) asm volatile("" : "+r"(lane));
  return lane;
}

// K and V of 16 tokens, `count` of them there, to a Stage of the warp: two groups of copies. place: block and offset in it, of token
// `lane`; kStages: tiles that a warp has on their way.
template <int kDim, int kStages>
__device__ __forceinline__ void ask_tile(const StepParams& p, const int2& place, int count, const char* k_base,
                                         const char* v_base, u32 stage) {
  using Rows = Stage<kDim>;
  const int lane = lane_of_tile<kStages>();
  __syncwarp();  // those that were there were read
  // A row's address goes from the lane whose token it is to those that copy it, as to find it takes four times as many instructions.
  const auto copy_rows = [&](const char* base, const PagedCache& cache, const auto& place_of_piece) {
    auto own = reinterpret_cast<unsigned long long>(base + place.x * cache.block_stride + place.y * cache.token_stride);
    const auto first = __shfl_sync(kFullWarp, own, 0);
    if (lane >= count) own = first;
#pragma unroll
    for (int i = 0; i < Rows::kRowPieces / 2; ++i) {
      const int row = (i * 32 + lane) / Rows::kRowPieces;
      const int piece = (i * 32 + lane) % Rows::kRowPieces;
      const auto* from = reinterpret_cast<const char*>(__shfl_sync(kFullWarp, own, row)) + piece * 16;
      copy_async16(stage + place_of_piece(row, piece), from);
    }
    copy_async_commit();
  };
  copy_rows(k_base, p.a.k, [](int row, int piece) { return Rows::place_of_k(row, piece); });
  copy_rows(v_base, p.a.v, [](int row, int piece) { return Rows::place_of_v(row, piece); });
}

// Attends to entries first, first + 1... of the warp's list, which has n of them, whose K and V come to `stage`; after them those of
// kStages - 1 tiles were asked for. entry: the one number first + lane. choice: which entries are kept.
template <int kDim, bool kF16, int kStages, class Choice>
__device__ __forceinline__ void attend_tile(const StepParams& p, int first, int n, int entry, const char* queries,
                                            u32 stage, Partial<kDim>& o, const Choice& choice) {
  using Rows = Stage<kDim>;
  constexpr int kPieces = kDim / 32;           // 16-byte pieces of K a lane
  constexpr int kPending = 2 * (kStages - 1);  // groups of copies
  const int lane = lane_of_tile<kStages>();
  const int g = lane >> 2;
  const int c = lane & 3;
  const auto token_of = [&](int i) { return (i >> 1) * 8 + 2 * c + (i & 1); };
  const u32 keeps = __ballot_sync(kFullWarp, lane < 16 && first + lane < n && choice.kept(entry, first + lane));
  bool kept[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) kept[i] = (keeps >> token_of(i) & 1U) != 0;
  copy_async_wait<kPending + 1>();
  __syncwarp();
  float s[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
  // Where registers suffice, of the other half of the dims, as products of one sum wait for each other.
  constexpr bool kHalves = kStages != 1;
  float t[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
  for (int j = 0; j < kPieces; ++j) {
    const uint4 q = *reinterpret_cast<const uint4*>(queries + g * query_stride(kDim) + (j * 4 + c) * 16);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint4 k = load_shared(stage + Rows::place_of_k(h * 8 + g, j * 4 + c));
      mma_16x8x16<kF16>(s[h], q.x, 0, q.y, 0, k.x, k.y);
      mma_16x8x16<kF16>(kHalves ? t[h] : s[h], q.z, 0, q.w, 0, k.z, k.w);
    }
  }
  float w[2][2];
  float highest = o.highest;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      float a = (kHalves ? s[h][x] + t[h][x] : s[h][x]) * p.score_factor;
      if (p.score_cap > 0) a = p.score_cap * tanhf(a);
      w[h][x] = kept[2 * h + x] ? a : -1e30F;
      highest = fmaxf(highest, w[h][x]);
    }
  }
  highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 1));
  highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 2));
  const float shrink = exp2f(o.highest - highest);
  o.highest = highest;
  o.sum *= shrink;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      w[h][x] = exp2f(w[h][x] - highest);
      o.sum += w[h][x];
    }
  }
  const float shrinks[2] = {__shfl_sync(kFullWarp, shrink, 8 * c), __shfl_sync(kFullWarp, shrink, 8 * c + 4)};
#pragma unroll
  for (int i = 0; i < Partial<kDim>::kTiles * 4; ++i) {
#pragma unroll
    for (int x = 0; x < 4; ++x) o.out[i][x] *= shrinks[x & 1];
  }
  const u32 w0 = pack_pair<kF16>(w[0][0], w[0][1]);
  const u32 w1 = pack_pair<kF16>(w[1][0], w[1][1]);
  copy_async_wait<kPending>();
  __syncwarp();
#pragma unroll
  for (int j = 0; j < Partial<kDim>::kTiles; ++j) {
    const bool inside = kDim % 64 == 0 || j * 64 + g * 8 < kDim;
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // What is not kept may be no number.
      v[i] = make_uint4(0, 0, 0, 0);
      if (kept[i] && inside) v[i] = load_shared(stage + Rows::place_of_v(token_of(i), j * 8 + g));
    }
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const u32 x0 = (&v[0].x)[x];
      const u32 x1 = (&v[1].x)[x];
      const u32 x2 = (&v[2].x)[x];
      const u32 x3 = (&v[3].x)[x];
      mma_16x8x16<kF16>(o.out[4 * j + x], __byte_perm(x0, x1, 0x5410), __byte_perm(x0, x1, 0x7632),
                        __byte_perm(x2, x3, 0x5410), __byte_perm(x2, x3, 0x7632), w0, w1);
    }
  }
}

// This warp's partial of `heads` heads from head0 on to shared memory: sums [head][dim], and of_warps[warp][8 maxima, 8 sums].
template <int kDim>
__device__ __forceinline__ void store_partial(Partial<kDim>& o, int head0, int heads, float* of_warps, float* sums) {
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int g = lane >> 2;
  const int c = lane & 3;
  __syncwarp();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int head = 2 * c + h - head0;
    if (head < 0 || head >= heads) continue;
    float* to = sums + head * kDim;
#pragma unroll
    for (int j = 0; j < Partial<kDim>::kTiles; ++j) {
      const int d = (g + 8 * j) * 8;
      const auto& u = o.out;
      if (kDim % 64 == 0 || d < kDim) {
        *reinterpret_cast<float4*>(to + d) =
            make_float4(u[4 * j][h], u[4 * j][2 + h], u[4 * j + 1][h], u[4 * j + 1][2 + h]);
        *reinterpret_cast<float4*>(to + d + 4) =
            make_float4(u[4 * j + 2][h], u[4 * j + 2][2 + h], u[4 * j + 3][h], u[4 * j + 3][2 + h]);
      }
    }
  }
  if (c == 0 && g >= head0 && g < head0 + heads) {
    of_warps[warp * 16 + g - head0] = o.highest;
    of_warps[warp * 16 + 8 + g - head0] = o.sum;
  }
}

}  // namespace fasa::ops::paged
