#include "src/core/dtype.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>

#include "fasa/index.h"

namespace fasa {
namespace {

// The compiler's own _Float16 is the witness.
float f16_by_compiler(uint16_t h) { return static_cast<float>(std::bit_cast<_Float16>(h)); }

TEST(DTypes, EveryF16IsExactAndComesBack) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const float f = f16_to_f32(half);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(f16_by_compiler(half)));
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(f))));
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(f), std::bit_cast<uint32_t>(f16_by_compiler(half))) << h;
    ASSERT_EQ(f32_to_f16(f), half);
  }
}

RC_GTEST_PROP(DTypes, F16RoundsAsTheCompiler, (uint32_t bits)) {
  const auto f = std::bit_cast<float>(bits);
  RC_PRE(!std::isnan(f));
  RC_ASSERT(f32_to_f16(f) == std::bit_cast<uint16_t>(static_cast<_Float16>(f)));
}

TEST(DTypes, F16RoundsTiesAndEdges) {
  // The middle between any two neighbours, and a step to each side of it.
  for (uint32_t h = 0; h < 0x7BFF; ++h) {
    const float middle = (f16_to_f32(static_cast<uint16_t>(h)) + f16_to_f32(static_cast<uint16_t>(h + 1))) / 2;
    for (const float f : {middle, std::nextafterf(middle, 0), std::nextafterf(middle, 1e9F)})
      ASSERT_EQ(f32_to_f16(-f), std::bit_cast<uint16_t>(static_cast<_Float16>(-f))) << f;
  }
  EXPECT_EQ(f32_to_f16(65519.996F), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0F), 0x7C00);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::infinity()), 0x7C00);
}

RC_GTEST_PROP(DTypes, Bf16IsTheNearest, (uint32_t bits)) {
  const auto f = std::bit_cast<float>(bits);
  RC_PRE(std::isfinite(f) && std::abs(f) < 1e38F);
  const uint16_t b = f32_to_bf16(f);
  const double error = std::abs(static_cast<double>(bf16_to_f32(b)) - f);
  RC_ASSERT(error <= std::abs(static_cast<double>(bf16_to_f32(static_cast<uint16_t>(b + 1))) - f));
  if ((b & 0x7FFFU) != 0)
    RC_ASSERT(error <= std::abs(static_cast<double>(bf16_to_f32(static_cast<uint16_t>(b - 1))) - f));
}

TEST(DTypes, Bf16TiesToEvenAndKeepsNaN) {
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F808000U)), 0x3F80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F818000U)), 0x3F82);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7F800001U)))));
}

TEST(DTypes, BytesAndNames) {
  EXPECT_EQ(dtype_bytes(DType::kF32, 80), 320);
  EXPECT_EQ(dtype_bytes(DType::kBF16, 80), 160);
  EXPECT_EQ(dtype_bytes(DType::kQ8_0, 64), 68);
  EXPECT_STREQ(dtype_name(DType::kF16), "f16");
  EXPECT_STREQ(dtype_name(DType::kQ8_0), "q8_0");
}

TEST(DTypes, Q8Values) {
  Q8Block blocks[2] = {};
  blocks[1].scale = f32_to_f16(0.5F);
  blocks[1].values[3] = -7;
  EXPECT_EQ(load_value(DType::kQ8_0, reinterpret_cast<const std::byte*>(blocks), 35), -3.5F);
}

TEST(IndexShapes, BytesOfABlock) {
  const IndexShape i8{IndexType::kI8, 3, 8, 33};
  EXPECT_EQ(i8.fc_bytes(), 64);
  EXPECT_EQ(i8.block_bytes(), 8 * 64 + 64);
  EXPECT_EQ(i8.num_blocks(), 2);
  EXPECT_EQ(i8.total_bytes(), 3 * 2 * 576);
  EXPECT_DOUBLE_EQ(i8.row_bytes(), 18.0);
  EXPECT_EQ((IndexShape{IndexType::kI4, 1, 8, 32}.block_bytes()), 8 * 32 + 64);
  EXPECT_EQ((IndexShape{IndexType::kF16, 1, 8, 32}.block_bytes()), 8 * 128);
  EXPECT_STREQ(index_type_name(IndexType::kI8), "int8");
}

}  // namespace
}  // namespace fasa
