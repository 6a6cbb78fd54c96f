// Scalar conversions between f32 and the 16-bit float types, and ggml's q8_0 block. Round to
// nearest even.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "fasa/tensor.h"

namespace fasa {

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000U) << 16;
  const uint32_t magnitude = h & 0x7FFFU;
  if (magnitude >= 0x7C00U) return std::bit_cast<float>(sign | 0x7F800000U | (magnitude & 0x3FFU) << 13);
  if (magnitude >= 0x0400U) return std::bit_cast<float>(sign | ((magnitude << 13) + (112U << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24F;
  return sign != 0 ? -subnormal : subnormal;
}

inline uint16_t f32_to_f16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return sign | 0x7E00U;   // NaN
  if (magnitude >= 0x477FF000U) return sign | 0x7C00U;  // rounds past 65504
  if (magnitude < 0x38800000U) {                        // subnormal: let the FPU round at 2^-24
    const float scaled = std::bit_cast<float>(magnitude) + 0.5F;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(scaled) - 0x3F000000U);
  }
  const uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
  return sign | static_cast<uint16_t>((rounded - (112U << 23)) >> 13);
}

inline float bf16_to_f32(uint16_t b) { return std::bit_cast<float>(static_cast<uint32_t>(b) << 16); }

inline uint16_t f32_to_bf16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);  // NaN
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

inline constexpr int64_t kQ8Block = 32;

// As ggml's block_q8_0.
struct Q8Block {
  uint16_t scale;  // f16
  int8_t values[kQ8Block];
};
static_assert(sizeof(Q8Block) == 34);

// Value `i` of a row that starts at `row`.
inline float load_value(DType type, const std::byte* row, int64_t i) {
  switch (type) {
    case DType::kF32: {
      float f = 0;
      std::memcpy(&f, row + i * 4, 4);
      return f;
    }
    case DType::kF16:
    case DType::kBF16: {
      uint16_t h = 0;
      std::memcpy(&h, row + i * 2, 2);
      return type == DType::kF16 ? f16_to_f32(h) : bf16_to_f32(h);
    }
    case DType::kQ8_0: {
      Q8Block block;
      std::memcpy(&block, row + i / kQ8Block * static_cast<int64_t>(sizeof(Q8Block)), sizeof block);
      return f16_to_f32(block.scale) * static_cast<float>(block.values[i % kQ8Block]);
    }
  }
  return 0;
}

// Not for kQ8_0, which is written by whole blocks.
inline void store_value(DType type, std::byte* row, int64_t i, float f) {
  if (type == DType::kF32) {
    std::memcpy(row + i * 4, &f, 4);
    return;
  }
  const uint16_t h = type == DType::kF16 ? f32_to_f16(f) : f32_to_bf16(f);
  std::memcpy(row + i * 2, &h, 2);
}

}  // namespace fasa
