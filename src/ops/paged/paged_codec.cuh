// The index types on the tensor cores. A lane holds a piece, 16 bytes of an index row, just as it came from memory: pairs of
// its words, widened where need be, are an operand of the products, whose order of dims is free, so that nothing needs shuffling
// (paged_scorer.cuh).
#pragma once

#include "src/ops/paged/paged_device.cuh"

namespace fasa::ops::paged {

__device__ __forceinline__ void mma_s8_k32(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_f16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_bf16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 pack4(int a, int b, int c, int d) {
  return (static_cast<u32>(a) & 255U) | (static_cast<u32>(b) & 255U) << 8 | (static_cast<u32>(c) & 255U) << 16 |
         static_cast<u32>(d) << 24;
}
__device__ __forceinline__ u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

__device__ __forceinline__ uint2 two_words(const uint4& v, int i) { return make_uint2(word(v, 2 * i), word(v, 2 * i + 1)); }

// A codec has
//   kType                    which it is
//   kPieceDims, kPartBytes   dims of a piece, bytes of one of them in a part of the query
//   kParts                   of the query: 2 where one would be coarser than the codes
//   kSlabs                   products of a piece; operand() gives the two words of each
//   limit()                  the largest |x| of a query after scaling
//   store_query()            writes dim `d` of a head's parts at `high` and `low` (whole pieces, kPieceDims * kPartBytes each)
//   join()                   a score from the sums of both parts
//   encode_word()            the code of a quarter of a piece
template <PagedIndexType kType>
struct Codec;

// Integer codes: sums are exact.
struct IntegerCodec {
  using Score = int;
  static constexpr int kPartBytes = 1;
  static __device__ __forceinline__ void multiply(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_s8_k32(d, a[0], a[1], a[2], a[3], b0, b1);
  }
};

template <>
struct Codec<PagedIndexType::kI8> : IntegerCodec {
  static constexpr auto kType = PagedIndexType::kI8;
  static constexpr int kPieceDims = 16;
  static constexpr int kSlabs = 2;
  static constexpr int kParts = 2;
  static __device__ __forceinline__ float limit() { return 32512.0F; }
  static __device__ __forceinline__ int join(int high, int low) { return high * 256 + low; }
  static __device__ __forceinline__ uint2 operand(const uint4& piece, int slab) { return two_words(piece, slab); }
  // query = 256 * high + low, each a signed byte.
  static __device__ __forceinline__ void store_query(float x, int d, char* high, char* low) {
    const int q16 = __float2int_rn(x);
    const int l = static_cast<int>(static_cast<signed char>(q16 & 255));
    high[d] = static_cast<char>((q16 - l) >> 8);
    low[d] = static_cast<char>(l);
  }
  static __device__ __forceinline__ u32 encode_word(const float* x) {
    return pack4(encode_int(x[0], 127), encode_int(x[1], 127), encode_int(x[2], 127), encode_int(x[3], 127));
  }
};

// Nibbles stay in the upper half of their bytes: every code counts 16 times.
template <>
struct Codec<PagedIndexType::kI4> : IntegerCodec {
  static constexpr auto kType = PagedIndexType::kI4;
  static constexpr int kPieceDims = 32;
  static constexpr int kSlabs = 4;
  static constexpr int kParts = 1;
  static __device__ __forceinline__ float limit() { return 127.0F; }
  static __device__ __forceinline__ uint2 operand(const uint4& piece, int slab) {
    const u32 w = word(piece, slab);
    return make_uint2((w << 4) & 0xF0F0F0F0U, w & 0xF0F0F0F0U);
  }
  // Of 8 dims the even ones come first, as operand() has them.
  static __device__ __forceinline__ void store_query(float x, int d, char* only, char*) {
    only[(d & ~7) + ((d & 1) << 2) + ((d & 7) >> 1)] = static_cast<char>(__float2int_rn(x));
  }
  static __device__ __forceinline__ u32 encode_word(const float* x) {
    u32 w = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) w |= (static_cast<u32>(encode_int(x[j], 7)) & 15U) << (4 * j);
    return w;
  }
};

// Float codes: sums in f32.
struct FloatCodec {
  using Score = float;
  static constexpr int kPartBytes = 2;
};

// e4m3 widens exactly to f16.
template <>
struct Codec<PagedIndexType::kF8E4M3> : FloatCodec {
  static constexpr auto kType = PagedIndexType::kF8E4M3;
  static constexpr int kPieceDims = 16;
  static constexpr int kSlabs = 4;
  static constexpr int kParts = 1;
  static __device__ __forceinline__ float limit() { return 16.0F; }
  static __device__ __forceinline__ u32 widen(u32 two) {
    u32 h;
    const unsigned short t = static_cast<unsigned short>(two);
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(h) : "h"(t));
    return h;
  }
  static __device__ __forceinline__ uint2 operand(const uint4& piece, int slab) {
    const u32 w = word(piece, slab);
    return make_uint2(widen(w & 0xFFFFU), widen(w >> 16));
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_f16(d, a[0], a[1], a[2], a[3], b0, b1);
  }
  static __device__ __forceinline__ void store_query(float x, int d, char* only, char*) {
    reinterpret_cast<__half*>(only)[d] = __float2half_rn(x);
  }
  static __device__ __forceinline__ u32 encode_word(const float* x) {
    return encode_fp8(x[0]) | encode_fp8(x[1]) << 8 | encode_fp8(x[2]) << 16 | encode_fp8(x[3]) << 24;
  }
};

template <>
struct Codec<PagedIndexType::kBF16> : FloatCodec {
  static constexpr auto kType = PagedIndexType::kBF16;
  static constexpr int kPieceDims = 8;
  static constexpr int kSlabs = 2;
  static constexpr int kParts = 2;
  static __device__ __forceinline__ float limit() { return 1.0F; }
  static __device__ __forceinline__ float join(float high, float low) { return high + low; }
  static __device__ __forceinline__ uint2 operand(const uint4& piece, int slab) { return two_words(piece, slab); }
  static __device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_bf16(d, a[0], a[1], a[2], a[3], b0, b1);
  }
  static __device__ __forceinline__ void store_query(float x, int d, char* high, char* low) {
    const __nv_bfloat16 h = __float2bfloat16_rn(x);
    reinterpret_cast<__nv_bfloat16*>(high)[d] = h;
    reinterpret_cast<__nv_bfloat16*>(low)[d] = __float2bfloat16_rn(x - __bfloat162float(h));
  }
  static __device__ __forceinline__ u32 encode_word(const float* x) { return encode_bf16(x[0]) | encode_bf16(x[1]) << 16; }
};

// The code of a piece's values.
template <class Codec>
__device__ __forceinline__ uint4 encode_piece(const float (&x)[Codec::kPieceDims]) {
  constexpr int kQuarter = Codec::kPieceDims / 4;
  return make_uint4(Codec::encode_word(x), Codec::encode_word(x + kQuarter), Codec::encode_word(x + 2 * kQuarter),
                    Codec::encode_word(x + 3 * kQuarter));
}

}  // namespace fasa::ops::paged
