// The index types on the tensor cores: 16 tokens x 8 columns a step, the columns being 4 query heads
// times (high part, low part) of a query in two pieces.
//
// Fragments (lane = 4 * g + c): a lane holds slice c (a quarter) of the index rows of tokens g and
// g + 8 of a tile, straight from memory; it holds the queries of column g for the same slice; and it
// gets the scores of head c for both tokens. The order of dims inside a product is free, so slices
// need no shuffling.
#pragma once

#include "src/ops/paged/paged_device.cuh"

namespace fasa::ops::paged {

__device__ __forceinline__ void mma_s8_k32(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_s8_k16(int (&d)[4], u32 a0, u32 a1, u32 b0) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a0), "r"(a1), "r"(b0));
}
__device__ __forceinline__ void mma_f16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_bf16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int kBytes>
struct SliceOf;
template <>
struct SliceOf<4> {
  using Type = u32;
};
template <>
struct SliceOf<8> {
  using Type = uint2;
};
template <>
struct SliceOf<16> {
  using Type = uint4;
};
template <class S>
__device__ __forceinline__ u32 word(const S& s, int i) {
  if constexpr (sizeof(S) == 4) {
    return s;
  } else if constexpr (sizeof(S) == 8) {
    return i == 0 ? s.x : s.y;
  } else {
    return i == 0 ? s.x : i == 1 ? s.y : i == 2 ? s.z : s.w;
  }
}
template <class S>
__device__ __forceinline__ S from_words(const u32* w) {
  if constexpr (sizeof(S) == 4) {
    return w[0];
  } else if constexpr (sizeof(S) == 8) {
    return make_uint2(w[0], w[1]);
  } else {
    return make_uint4(w[0], w[1], w[2], w[3]);
  }
}
__device__ __forceinline__ u32 pack4(int a, int b, int c, int d) {
  return (static_cast<u32>(a) & 255U) | (static_cast<u32>(b) & 255U) << 8 | (static_cast<u32>(c) & 255U) << 16 |
         static_cast<u32>(d) << 24;
}

// Query pieces of integer codes: q16 = 256 * high + low, each a signed byte.
__device__ __forceinline__ int piece_of(float x, float inverse, bool low) {
  const int q16 = __float2int_rn(x * inverse);
  const int l = static_cast<int>(static_cast<signed char>(q16 & 255));
  return low ? l : (q16 - l) >> 8;
}

template <PagedIndexType kType, int kDims>
struct Codec;

template <int kDims>
struct Codec<PagedIndexType::kI8, kDims> {
  static constexpr int kLaneDims = kDims / 4;
  using Slice = typename SliceOf<kLaneDims>::Type;
  using Score = int;
  struct Query {
    u32 w[kLaneDims / 4];
  };
  static __device__ __forceinline__ float query_limit() { return 32512.0F; }
  // x: this lane's dims of its column's head; inverse: query_limit / largest |x| of the heads.
  static __device__ __forceinline__ Query query(const float* x, float inverse, bool low) {
    Query q;
#pragma unroll
    for (int i = 0; i < kLaneDims / 4; ++i) {
      q.w[i] = pack4(piece_of(x[4 * i], inverse, low), piece_of(x[4 * i + 1], inverse, low),
                     piece_of(x[4 * i + 2], inverse, low), piece_of(x[4 * i + 3], inverse, low));
    }
    return q;
  }
  static __device__ __forceinline__ void scores(const Slice& a, const Slice& b, const Query& q, Score& s0, Score& s1) {
    int d[4] = {0, 0, 0, 0};
    if constexpr (kLaneDims == 4) {
      mma_s8_k16(d, word(a, 0), word(b, 0), q.w[0]);
    } else {
#pragma unroll
      for (int i = 0; i < kLaneDims / 8; ++i) {
        mma_s8_k32(d, word(a, 2 * i), word(b, 2 * i), word(a, 2 * i + 1), word(b, 2 * i + 1), q.w[2 * i],
                   q.w[2 * i + 1]);
      }
    }
    s0 = d[0] * 256 + d[1];
    s1 = d[2] * 256 + d[3];
  }
  static __device__ __forceinline__ Slice encode(const float* x) {
    u32 w[kLaneDims / 4];
#pragma unroll
    for (int i = 0; i < kLaneDims / 4; ++i) {
      w[i] = pack4(encode_int(x[4 * i], 127), encode_int(x[4 * i + 1], 127), encode_int(x[4 * i + 2], 127),
                   encode_int(x[4 * i + 3], 127));
    }
    return from_words<Slice>(w);
  }
};

// Nibbles stay in the upper half of their bytes: every code counts 16 times.
template <int kDims>
struct Codec<PagedIndexType::kI4, kDims> {
  static constexpr int kLaneDims = kDims / 4;
  using Slice = typename SliceOf<kLaneDims / 2>::Type;
  using Score = int;
  struct Query {
    u32 w[kLaneDims / 4];
  };
  static __device__ __forceinline__ float query_limit() { return 32512.0F; }
  static __device__ __forceinline__ Query query(const float* x, float inverse, bool low) {
    Query q;
#pragma unroll
    for (int i = 0; i < kLaneDims / 8; ++i) {
      const float* y = x + 8 * i;
      q.w[2 * i] = pack4(piece_of(y[0], inverse, low), piece_of(y[2], inverse, low), piece_of(y[4], inverse, low),
                         piece_of(y[6], inverse, low));
      q.w[2 * i + 1] = pack4(piece_of(y[1], inverse, low), piece_of(y[3], inverse, low), piece_of(y[5], inverse, low),
                             piece_of(y[7], inverse, low));
    }
    return q;
  }
  static __device__ __forceinline__ void scores(const Slice& a, const Slice& b, const Query& q, Score& s0, Score& s1) {
    int d[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kLaneDims / 8; ++i) {
      const u32 x = word(a, i);
      const u32 y = word(b, i);
      mma_s8_k32(d, (x << 4) & 0xF0F0F0F0U, (y << 4) & 0xF0F0F0F0U, x & 0xF0F0F0F0U, y & 0xF0F0F0F0U, q.w[2 * i],
                 q.w[2 * i + 1]);
    }
    s0 = d[0] * 256 + d[1];
    s1 = d[2] * 256 + d[3];
  }
  static __device__ __forceinline__ Slice encode(const float* x) {
    u32 w[kLaneDims / 8];
#pragma unroll
    for (int i = 0; i < kLaneDims / 8; ++i) {
      w[i] = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        w[i] |= (static_cast<u32>(encode_int(x[8 * i + j], 7)) & 15U) << (4 * j);
      }
    }
    return from_words<Slice>(w);
  }
};

// e4m3 widens exactly to f16.
template <int kDims>
struct Codec<PagedIndexType::kF8E4M3, kDims> {
  static constexpr int kLaneDims = kDims / 4;
  using Slice = typename SliceOf<kLaneDims>::Type;
  using Score = float;
  struct Query {
    u32 w[kLaneDims / 2];
  };
  static __device__ __forceinline__ float query_limit() { return 16.0F; }
  static __device__ __forceinline__ u32 pair(float x, float y, bool low) {
    const __half hx = __float2half_rn(x);
    const __half hy = __float2half_rn(y);
    const __half lx = __float2half_rn(x - __half2float(hx));
    const __half ly = __float2half_rn(y - __half2float(hy));
    const u32 a = __half_as_ushort(low ? lx : hx);
    const u32 b = __half_as_ushort(low ? ly : hy);
    return a | b << 16;
  }
  static __device__ __forceinline__ Query query(const float* x, float inverse, bool low) {
    Query q;
#pragma unroll
    for (int i = 0; i < kLaneDims / 2; ++i) {
      q.w[i] = pair(x[2 * i] * inverse, x[2 * i + 1] * inverse, low);
    }
    return q;
  }
  static __device__ __forceinline__ u32 widen(u32 two) {
    u32 h;
    const unsigned short t = static_cast<unsigned short>(two);
    asm volatile("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(h) : "h"(t));
    return h;
  }
  static __device__ __forceinline__ void scores(const Slice& a, const Slice& b, const Query& q, Score& s0, Score& s1) {
    float d[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kLaneDims / 4; ++i) {
      const u32 x = word(a, i);
      const u32 y = word(b, i);
      mma_f16(d, widen(x & 0xFFFFU), widen(y & 0xFFFFU), widen(x >> 16), widen(y >> 16), q.w[2 * i], q.w[2 * i + 1]);
    }
    s0 = d[0] + d[1];
    s1 = d[2] + d[3];
  }
  static __device__ __forceinline__ Slice encode(const float* x) {
    u32 w[kLaneDims / 4];
#pragma unroll
    for (int i = 0; i < kLaneDims / 4; ++i) {
      w[i] = encode_fp8(x[4 * i]) | encode_fp8(x[4 * i + 1]) << 8 | encode_fp8(x[4 * i + 2]) << 16 |
             encode_fp8(x[4 * i + 3]) << 24;
    }
    return from_words<Slice>(w);
  }
};

template <int kDims>
struct Codec<PagedIndexType::kBF16, kDims> {
  static constexpr int kLaneDims = kDims / 4;
  using Slice = typename SliceOf<kLaneDims * 2>::Type;
  using Score = float;
  struct Query {
    u32 w[kLaneDims / 2];
  };
  static __device__ __forceinline__ float query_limit() { return 1.0F; }
  static __device__ __forceinline__ u32 one(float x, bool low) {
    const __nv_bfloat16 h = __float2bfloat16_rn(x);
    return __bfloat16_as_ushort(low ? __float2bfloat16_rn(x - __bfloat162float(h)) : h);
  }
  static __device__ __forceinline__ Query query(const float* x, float inverse, bool low) {
    Query q;
#pragma unroll
    for (int i = 0; i < kLaneDims / 2; ++i) {
      q.w[i] = one(x[2 * i] * inverse, low) | one(x[2 * i + 1] * inverse, low) << 16;
    }
    return q;
  }
  static __device__ __forceinline__ void scores(const Slice& a, const Slice& b, const Query& q, Score& s0, Score& s1) {
    float d[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kLaneDims / 4; ++i) {
      mma_bf16(d, word(a, 2 * i), word(b, 2 * i), word(a, 2 * i + 1), word(b, 2 * i + 1), q.w[2 * i], q.w[2 * i + 1]);
    }
    s0 = d[0] + d[1];
    s1 = d[2] + d[3];
  }
  static __device__ __forceinline__ Slice encode(const float* x) {
    u32 w[kLaneDims / 2];
#pragma unroll
    for (int i = 0; i < kLaneDims / 2; ++i) {
      w[i] = encode_bf16(x[2 * i]) | encode_bf16(x[2 * i + 1]) << 16;
    }
    return from_words<Slice>(w);
  }
};

}  // namespace fasa::ops::paged
