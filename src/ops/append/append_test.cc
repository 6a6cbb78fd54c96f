#include "src/ops/append/append.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "src/core/dtype.h"

namespace fasa::ops {
namespace {

constexpr auto kSentinel = std::byte{0xA5};

struct Shape {
  DType from = DType::kF32;
  DType to = DType::kF16;
  IndexType type = IndexType::kI8;
  int64_t kv_heads = 2;
  int64_t planes_per_head = 1;
  int64_t head_dim = 64;
  int64_t num_fcs = 8;
  int64_t cache_rows = 70;
  int64_t new_rows = 33;
};

// Cache and index with gaps and a guard of sentinels, so that a stray write shows.
struct Case {
  explicit Case(const Shape& s, uint32_t seed = 1) : shape(s) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const int64_t from_bytes = dtype_bytes(s.from, s.head_dim);
    const int64_t to_bytes = dtype_bytes(s.to, s.head_dim);
    source.resize(static_cast<size_t>(s.new_rows * s.kv_heads * (from_bytes + 8)));
    args.src = {source.data(), s.from, s.new_rows, s.kv_heads, s.head_dim, s.kv_heads * (from_bytes + 8),
                from_bytes + 8};
    for (int64_t i = 0; i < s.new_rows; ++i)
      for (int64_t h = 0; h < s.kv_heads; ++h)
        for (int64_t d = 0; d < s.head_dim; ++d) store_value(s.from, args.src.at(i, h), d, 4 * normal(random));
    // Heads outermost, rows padded: neither stride is the other's multiple.
    const int64_t row_stride = to_bytes + 4;
    cache_bytes.assign(static_cast<size_t>(s.kv_heads * s.cache_rows * row_stride + 64), kSentinel);
    args.cache = {cache_bytes.data(),       s.to, s.cache_rows, s.kv_heads, s.head_dim, row_stride,
                  s.cache_rows * row_stride};
    rows.resize(static_cast<size_t>(s.cache_rows));
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), random);
    rows.resize(static_cast<size_t>(s.new_rows));
    args.rows = rows;
    const IndexShape index_shape{s.type, s.kv_heads * s.planes_per_head, s.num_fcs, s.cache_rows};
    for (int64_t i = 0; i < index_shape.num_planes * s.num_fcs * 2; ++i)
      dims.push_back(static_cast<int16_t>(random() % static_cast<uint32_t>(s.head_dim)));
    index_bytes.assign(static_cast<size_t>(index_shape.total_bytes() + 64), kSentinel);
    args.index = {index_bytes.data(), index_shape, dims.data()};
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  Shape shape;
  std::vector<std::byte> source;
  std::vector<std::byte> cache_bytes;
  std::vector<std::byte> index_bytes;
  std::vector<int64_t> rows;
  std::vector<int16_t> dims;
  AppendArgs args;
};

// The layout of fasa/index.h, read a second time and by hand.
double index_value(const IndexView& index, int64_t plane, int64_t row, int64_t i, double* step) {
  const IndexShape& s = index.shape;
  const int64_t scales = s.type == IndexType::kF16 ? 0 : 64;
  const int64_t per_fc = s.type == IndexType::kF16 ? 128 : s.type == IndexType::kI8 ? 64 : 32;
  const int64_t block_bytes = s.num_fcs * per_fc + scales;
  const std::byte* block = index.data + (plane * ((s.num_rows + 31) / 32) + row / 32) * block_bytes;
  const int64_t lane = row % 32;
  const std::byte* fc = block + i / 2 * per_fc;
  _Float16 scale = 1;
  if (s.type == IndexType::kF16) {
    _Float16 value = 0;
    std::memcpy(&value, fc + lane * 4 + i % 2 * 2, 2);
    *step = 0;
    return static_cast<double>(value);
  }
  std::memcpy(&scale, block + s.num_fcs * per_fc + lane * 2, 2);
  *step = static_cast<double>(scale);
  if (s.type == IndexType::kI8) return *step * std::bit_cast<int8_t>(fc[lane * 2 + i % 2]);
  const int bits = i % 2 == 0 ? std::to_integer<int>(fc[lane]) & 15 : std::to_integer<int>(fc[lane]) >> 4;
  return *step * (bits < 8 ? bits : bits - 16);
}

void expect_contract(const Case& c, const char* name) {
  const Shape& s = c.shape;
  for (size_t i = 0; i < c.rows.size(); ++i) {
    for (int64_t h = 0; h < s.kv_heads; ++h)
      for (int64_t d = 0; d < s.head_dim; ++d) {
        const float want = load_value(s.from, c.args.src.at(static_cast<int64_t>(i), h), d);
        const float got = load_value(s.to, c.args.cache.at(c.rows[i], h), d);
        if (s.to == DType::kF32) {
          ASSERT_EQ(got, want) << name;
        } else if (s.to == DType::kF16) {
          ASSERT_EQ(got, static_cast<float>(static_cast<_Float16>(want))) << name;
        } else {
          ASSERT_NEAR(got, want, std::abs(want) * 0x1p-8) << name;
        }
      }
    for (int64_t plane = 0; plane < c.args.index.shape.num_planes; ++plane) {
      const std::byte* key = c.args.cache.at(c.rows[i], plane / s.planes_per_head);
      for (int64_t j = 0; j < s.num_fcs * 2; ++j) {
        const float value = load_value(s.to, key, c.dims[static_cast<size_t>(plane * s.num_fcs * 2 + j)]);
        double step = 0;
        const double got = index_value(c.args.index, plane, c.rows[i], j, &step);
        const double tolerance = s.type == IndexType::kF16 ? std::abs(value) * 0x1p-11 + 0x1p-25 : step * 0.5001;
        ASSERT_NEAR(got, value, tolerance) << name << " " << index_type_name(s.type) << " value " << j;
      }
    }
  }
  for (size_t i = 0; i < 64; ++i) {
    ASSERT_EQ(c.cache_bytes[c.cache_bytes.size() - 1 - i], kSentinel);
    ASSERT_EQ(c.index_bytes[c.index_bytes.size() - 1 - i], kSentinel);
  }
}

void expect_all_agree(const Shape& shape, uint32_t seed) {
  Case first(shape, seed);
  Context serial(make_serial_executor());
  append_implementations().back().run(serial, first.args);
  expect_contract(first, append_implementations().back().name);
  for (const auto& implementation : append_implementations())
    for (const int threads : {1, 3}) {
      Case c(shape, seed);
      check(c.args);
      ASSERT_EQ(implementation.supports(c.args), "");
      Context context(make_thread_executor(threads));
      implementation.run(context, c.args);
      // Untouched rows included: what is not written keeps its sentinels in both.
      ASSERT_EQ(c.cache_bytes, first.cache_bytes) << implementation.name;
      ASSERT_EQ(c.index_bytes, first.index_bytes) << implementation.name;
    }
}

TEST(Append, EveryPairOfDtypesAndHeadDim) {
  for (const DType from : {DType::kF32, DType::kF16, DType::kBF16})
    for (const DType to : {DType::kF32, DType::kF16, DType::kBF16})
      for (const int64_t head_dim : {64, 80, 96, 128, 256})
        for (const IndexType type : {IndexType::kF16, IndexType::kI8, IndexType::kI4}) {
          Shape shape;
          shape.from = from;
          shape.to = to;
          shape.type = type;
          shape.head_dim = head_dim;
          expect_all_agree(shape, 5);
        }
}

RC_GTEST_PROP(Append, AnyShape, (uint32_t seed)) {
  Shape shape;
  shape.from = *rc::gen::element(DType::kF32, DType::kF16, DType::kBF16);
  shape.to = *rc::gen::element(DType::kF32, DType::kF16, DType::kBF16);
  shape.type = *rc::gen::element(IndexType::kF16, IndexType::kI8, IndexType::kI4);
  shape.kv_heads = *rc::gen::inRange(1, 5);
  shape.planes_per_head = *rc::gen::inRange(1, 17);
  shape.head_dim = 2 * *rc::gen::inRange(1, 129);
  shape.num_fcs = *rc::gen::inRange(1, 65);
  shape.cache_rows = *rc::gen::inRange(1, 100);
  shape.new_rows = *rc::gen::inRange<int64_t>(0, shape.cache_rows + 1);
  expect_all_agree(shape, seed);
  RC_ASSERT(!testing::Test::HasFatalFailure());
}

TEST(Append, RebuiltIsTheSameBytes) {
  for (const IndexType type : {IndexType::kF16, IndexType::kI8, IndexType::kI4})
    for (const auto& implementation : append_implementations()) {
      Shape shape;
      shape.type = type;
      Case c(shape);
      Context context(make_thread_executor(2));
      implementation.run(context, c.args);
      const std::vector<std::byte> appended = c.index_bytes;
      const std::vector<std::byte> cache = c.cache_bytes;
      std::fill(c.index_bytes.begin(), c.index_bytes.end(), kSentinel);
      c.args.src = {};
      check(c.args);
      implementation.run(context, c.args);
      EXPECT_EQ(c.index_bytes, appended) << implementation.name;
      EXPECT_EQ(c.cache_bytes, cache) << implementation.name;
    }
}

TEST(Append, NonFiniteValuesSpoilOnlyTheirRow) {
  for (const float spoiled : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(), 3e38F, 1e-42F})
    for (const IndexType type : {IndexType::kF16, IndexType::kI8, IndexType::kI4})
      for (const auto& implementation : append_implementations()) {
        Shape shape;
        shape.to = DType::kF32;
        shape.type = type;
        Case good(shape);
        Case bad(shape);
        for (int64_t d = 0; d < shape.head_dim; d += 2) store_value(DType::kF32, bad.args.src.at(4, 1), d, spoiled);
        Context context(make_serial_executor());
        implementation.run(context, good.args);
        implementation.run(context, bad.args);
        for (int64_t plane = 0; plane < 2; ++plane)
          for (size_t i = 0; i < good.rows.size(); ++i)
            for (int64_t j = 0; j < shape.num_fcs * 2; ++j) {
              double step = 0;
              const double got = index_value(bad.args.index, plane, good.rows[i], j, &step);
              ASSERT_TRUE(std::isfinite(got)) << implementation.name;
              if (i != 4 || plane != 1) {
                ASSERT_EQ(got, index_value(good.args.index, plane, good.rows[i], j, &step));
              }
            }
      }
}

TEST(Append, ValuesWithoutAnIndex) {
  Shape shape;
  shape.to = DType::kBF16;
  Case c(shape);
  c.args.index = {};
  Context context(make_thread_executor(2));
  append(context, c.args);
  EXPECT_EQ(load_value(DType::kBF16, c.args.cache.at(c.rows[7], 1), 5),
            bf16_to_f32(f32_to_bf16(load_value(DType::kF32, c.args.src.at(7, 1), 5))));
  EXPECT_EQ(c.index_bytes[0], kSentinel);
  EXPECT_EQ(bytes(c.args), 33 * 2 * 64 * (4 + 2));
}

TEST(Append, RefusesQ8) {
  Shape shape;
  Case c(shape);
  c.args.cache.dtype = DType::kQ8_0;
  Context context(make_serial_executor());
  EXPECT_THROW(append(context, c.args), Error);
}

// Rows more than 4 GiB apart: strides and offsets are 64-bit. The memory between them is never touched.
TEST(Append, StridesBeyond32Bits) {
  std::vector<float> target(64);
  auto* base = reinterpret_cast<std::byte*>(target.data());
  const int64_t far = int64_t{3} << 32;
  // Row 1 of this view is `target`, its row 0 lies a stride before, so that only exact 64-bit arithmetic finds it.
  const std::vector<float> values(64, 2.5F);
  const std::vector<int64_t> rows{1};
  AppendArgs args;
  args.src = {reinterpret_cast<std::byte*>(const_cast<float*>(values.data())), DType::kF32, 1, 1, 64, 256, 256};
  args.rows = rows;
  args.cache = {std::bit_cast<std::byte*>(std::bit_cast<uintptr_t>(base) - static_cast<uintptr_t>(far)),
                DType::kF32,
                2,
                1,
                64,
                far,
                256};
  Context context(make_serial_executor());
  append(context, args);
  EXPECT_EQ(target[63], 2.5F);
}

TEST(Append, CheckRefuses) {
  Case c(Shape{});
  const auto refuses = [&](auto change) {
    AppendArgs args = c.args;
    change(args);
    EXPECT_THROW(check(args), Error);
  };
  const std::vector<int64_t> outside{70};
  const std::vector<int64_t> negative{-1};
  EXPECT_NO_THROW(check(c.args));
  refuses([](AppendArgs& a) { a.cache.data = nullptr; });
  refuses([&](AppendArgs& a) { a.rows = outside; });
  refuses([&](AppendArgs& a) { a.src.num_rows = 1, a.rows = outside; });
  refuses([&](AppendArgs& a) { a.src.num_rows = 1, a.rows = negative; });
  refuses([](AppendArgs& a) { a.src.head_dim = 32; });
  refuses([](AppendArgs& a) { a.index.dims = nullptr; });
  refuses([](AppendArgs& a) { a.index.shape.num_fcs = 0; });
  refuses([](AppendArgs& a) { a.index.shape.num_planes = 3; });
  refuses([](AppendArgs& a) { a.index.shape.num_rows = 10; });
  c.dims[3] = 64;
  EXPECT_THROW(check(c.args), Error);
  c.dims[3] = -1;
  EXPECT_THROW(check(c.args), Error);
}

}  // namespace
}  // namespace fasa::ops
