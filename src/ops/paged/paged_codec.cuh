// The index types on the tensor cores. A lane holds a piece, 16 bytes of an index row, just as it came from memory: pairs of
// its words, widened where need be, are an operand of the products, whose order of dims is free, so that nothing needs shuffling
// (paged_scorer.cuh).
#pragma once

#include "src/ops/paged/paged_device.cuh"

namespace fasa::ops::paged {

__device__ __forceinline__ void mma_s8_k32(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_f16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_bf16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 pack4(int a, int b, int c, int d) {
  return (static_cast<u32>(a) & 255U) | (static_cast<u32>(b) & 255U) << 8 | (static_cast<u32>(c) & 255U) << 16 |
         static_cast<u32>(d) << 24;
}
__device__ __forceinline__ u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

__device__ __forceinline__ uint2 two_words(const uint4& v, int i) {
  return make_uint2(word(v, 2 * i), word(v, 2 * i + 1));
}

// A codec has
//   kType                    which it is
//   kPieceDims, kPartBytes   dims of a piece, bytes of one of them in a part of the query
//   kParts                   of the query: 2 where one would be coarser than the codes
//   kSlabs                   products of a piece; operand() gives the two words of each
//   limit()                  the largest |x| of a query after scaling
//   store_query()            writes dim `d` of a head's parts at `high` and `low` (whole pieces, kPieceDims * kPartBytes each)
//   join()                   a score from the sums of both parts
//   encode_word()            the code of a quarter of a piece
// and where keys may have 16 bits, for 32 dims at most (paged_step.cuh),
//   short_key(), short_keys() that of a score, and those of the bits of two, the second one in the upper half; in the same order as scores
//   kNoShortScore            bits of a score of which it is 0, which means "none"
//   kCutsScores              whether several scores share one. Then there are, too,
//   rest_of()                a number for such a score, from 1 to 2^16 - 2, in their order
//   score()                  of a row and a head by one lane; first, second: the head's parts of the query, whole pieces
template <PagedIndexType kType>
struct Codec;

// Integer codes: sums are exact.
struct IntegerCodec {
  using Score = int;
  static constexpr bool kCutsScores = false;
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
  static constexpr bool kCutsScores = true;
  static constexpr u32 kNoShortScore = 0xF8000000U;
  static __device__ __forceinline__ float limit() { return 32512.0F; }
  static __device__ __forceinline__ int join(int high, int low) { return high * 256 + low; }
  static __device__ __forceinline__ uint2 operand(const uint4& piece, int slab) { return two_words(piece, slab); }
  // Scores are 32512 * 127 * 32 at most, which is below 2^27.
  static __device__ __forceinline__ u32 short_key(int s) { return static_cast<u32>((s >> 12) + 32768); }
  static __device__ __forceinline__ u32 short_keys(u32 s, u32 t) {
    return (t << 4 & 0xFFFF0000U) + 0x80008000U + static_cast<u32>(static_cast<int>(s) >> 12);
  }
  static __device__ __forceinline__ u32 rest_of(int s, u32) { return 1U + (static_cast<u32>(s) & 4095U); }
  template <int kPieces>
  static __device__ __forceinline__ int score(const uint4 (&row)[kPieces], const char* first, const char* second) {
    int high = 0;
    int low = 0;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const uint4 h = reinterpret_cast<const uint4*>(first)[i];
      const uint4 l = reinterpret_cast<const uint4*>(second)[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int codes = static_cast<int>(word(row[i], j));
        high = __dp4a(codes, static_cast<int>(word(h, j)), high);
        low = __dp4a(codes, static_cast<int>(word(l, j)), low);
      }
    }
    return join(high, low);
  }
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
  static constexpr u32 kNoShortScore = 0xFFF80000U;
  static __device__ __forceinline__ float limit() { return 127.0F; }
  // Scores are 16 times 127 * 8 * 32 at most.
  static __device__ __forceinline__ u32 short_key(int s) { return static_cast<u32>((s >> 4) + 32768); }
  static __device__ __forceinline__ u32 short_keys(u32 s, u32 t) {
    return (t << 12) + 0x80008000U + static_cast<u32>(static_cast<int>(s) >> 4);
  }
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
  static constexpr bool kCutsScores = false;
  static constexpr u32 kNoShortScore = 0;
  static constexpr int kPartBytes = 2;
};

// e4m3 widens exactly to f16.
template <>
struct Codec<PagedIndexType::kF8E4M3> : FloatCodec {
  static constexpr auto kType = PagedIndexType::kF8E4M3;
  static constexpr int kPieceDims = 16;
  static constexpr int kSlabs = 4;
  static constexpr int kParts = 1;
  static constexpr bool kCutsScores = true;
  static constexpr u32 kNoShortScore = 0x7FFFFFFFU;  // not a number
  // So that scores of 32 dims, 4 * 448 * 32 at most, are f16 numbers.
  static __device__ __forceinline__ float limit() { return 4.0F; }
  // An f16 of the negative score, so that what is not a number has all bits of its magnitude set, and comes last: key 0.
  static __device__ __forceinline__ u32 short_keys(u32 s, u32 t) {
    u32 h;
    u32 signs;  // in all bits of each half
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(-__uint_as_float(t)), "f"(-__uint_as_float(s)));
    asm("prmt.b32 %0, %1, 0, 0xBB99;" : "=r"(signs) : "r"(h));
    return h ^ (~signs & 0x7FFF7FFFU);
  }
  static __device__ __forceinline__ u32 short_key(float s) { return short_keys(__float_as_uint(s), 0) & 0xFFFFU; }
  // From the f16 of a key to the score, in units that both are multiples of: half an f32's last bit, but products of the f16 query and the
  // codes are multiples of 2^-33, and so are their sums.
  static __device__ __forceinline__ u32 rest_of(float s, u32 key) {
    const u32 h = (key & 0x8000U) != 0 ? key ^ 0x8000U : ~key | 0x8000U;
    const float middle = __half2float(__ushort_as_half(static_cast<unsigned short>(h)));
    const u32 exponent = max(__float_as_uint(middle) >> 23 & 255U, 127U - 14U);
    const float units = (s - middle) * __uint_as_float((127U + 24U + 127U - exponent) << 23);
    return static_cast<u32>(32768 + max(-32767, min(32766, __float2int_rn(units))));
  }
  template <int kPieces>
  static __device__ __forceinline__ float score(const uint4 (&row)[kPieces], const char* first, const char*) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint2 codes = operand(row[i], j);
        const uint2 query = reinterpret_cast<const uint2*>(first)[4 * i + j];
        sum = add_products(codes.x, query.x, sum);
        sum = add_products(codes.y, query.y, sum);
      }
    }
    return sum;
  }
  static __device__ __forceinline__ float add_products(u32 x, u32 y, float sum) {
    const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&x));
    const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&y));
    return fmaf(a.y, b.y, fmaf(a.x, b.x, sum));
  }
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
  static __device__ __forceinline__ u32 encode_word(const float* x) {
    return encode_bf16(x[0]) | encode_bf16(x[1]) << 16;
  }
};

// The code of a piece's values.
template <class Codec>
__device__ __forceinline__ uint4 encode_piece(const float (&x)[Codec::kPieceDims]) {
  constexpr int kQuarter = Codec::kPieceDims / 4;
  return make_uint4(Codec::encode_word(x), Codec::encode_word(x + kQuarter), Codec::encode_word(x + 2 * kQuarter),
                    Codec::encode_word(x + 3 * kQuarter));
}

}  // namespace fasa::ops::paged
