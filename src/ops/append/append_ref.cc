// append, scalar. See append.h for the formula.
#include <algorithm>
#include <array>
#include <cmath>

#include "src/core/dtype.h"
#include "src/ops/append/append_impl.h"

namespace fasa::ops {
namespace {

float finite(float x) {
  if (std::isnan(x)) return 0.0F;
  return std::clamp(x, -65504.0F, 65504.0F);
}

// The values of one index row before quantisation.
void project_key(const AppendArgs& args, int64_t plane, const std::byte* key, float* values) {
  const int64_t count = args.index.shape.num_fcs * 2;
  const int64_t head_dim = args.cache.head_dim;
  for (int64_t i = 0; i < count; ++i) {
    if (args.index.basis == nullptr) {
      values[i] = finite(load_value(args.cache.dtype, key, args.index.dims[plane * count + i]));
      continue;
    }
    const float* axis = args.index.basis + (plane * count + i) * head_dim;
    float sum = 0;
    for (int64_t d = 0; d < head_dim; ++d) sum += axis[d] * load_value(args.cache.dtype, key, d);
    values[i] = finite(sum);
  }
}

void index_row(const AppendArgs& args, int64_t plane, int64_t row) {
  const IndexShape& shape = args.index.shape;
  const std::byte* key = args.cache.at(row, plane * args.cache.num_heads / shape.num_planes);
  std::byte* block = args.index.block(plane, row / kIndexBlock);
  const int64_t lane = row % kIndexBlock;
  // At most 2 * kMaxFcs values, each needed twice.
  std::array<float, 2 * kMaxFcs> values;
  project_key(args, plane, key, values.data());
  const auto value = [&](int64_t i) { return values[i]; };

  if (shape.type == IndexType::kF16) {
    for (int64_t i = 0; i < shape.num_fcs * 2; ++i)
      store_value(DType::kF16, block + i / 2 * shape.fc_bytes(), lane * 2 + i % 2, value(i));
    return;
  }
  const float limit = shape.type == IndexType::kI8 ? 127.0F : 7.0F;
  float max_abs = 0;
  for (int64_t i = 0; i < shape.num_fcs * 2; ++i) max_abs = std::max(max_abs, std::abs(value(i)));
  const uint16_t scale = index_scale(max_abs, limit);
  std::memcpy(block + shape.num_fcs * shape.fc_bytes() + lane * 2, &scale, 2);
  const float inverse = 1.0F / f16_to_f32(scale);
  const auto quantise = [&](int64_t i) {
    return static_cast<int>(std::clamp(std::nearbyint(value(i) * inverse), -limit, limit));
  };
  for (int64_t fc = 0; fc < shape.num_fcs; ++fc) {
    std::byte* out = block + fc * shape.fc_bytes();
    const int first = quantise(2 * fc);
    const int second = quantise(2 * fc + 1);
    if (shape.type == IndexType::kI8) {
      out[lane * 2] = static_cast<std::byte>(first);
      out[lane * 2 + 1] = static_cast<std::byte>(second);
    } else {
      out[lane] = static_cast<std::byte>((first & 15) | (second & 15) << 4);
    }
  }
}

}  // namespace

void index_rows(const AppendArgs& args, std::span<const int64_t> rows) {
  for (const int64_t row : rows)
    for (int64_t plane = 0; plane < args.index.shape.num_planes; ++plane) index_row(args, plane, row);
}

uint16_t index_scale(float max_abs, float limit) {
  const float wanted = std::min(max_abs, 65504.0F) / limit;
  uint16_t scale = std::max<uint16_t>(f32_to_f16(wanted), 1);
  if (f16_to_f32(scale) < wanted) ++scale;  // the next f16 up
  return scale;
}

std::string append_ref_supports(const AppendArgs& args) {
  if (args.cache.dtype == DType::kQ8_0 && args.index.data != nullptr) return "no index over a q8_0 cache of K";
  if (args.cache.dtype == DType::kQ8_0 && args.src.data != nullptr) return "writing a q8_0 cache is the engine's";
  return {};
}

void append_ref(Context& /*context*/, const AppendArgs& args) {
  for (size_t i = 0; i < args.rows.size(); ++i) {
    const int64_t row = args.rows[i];
    if (args.src.data != nullptr)
      for (int64_t head = 0; head < args.cache.num_heads; ++head)
        for (int64_t d = 0; d < args.cache.head_dim; ++d)
          store_value(args.cache.dtype, args.cache.at(row, head), d,
                      load_value(args.src.dtype, args.src.at(static_cast<int64_t>(i), head), d));
  }
  if (args.index.data != nullptr) index_rows(args, args.rows);
}

}  // namespace fasa::ops
