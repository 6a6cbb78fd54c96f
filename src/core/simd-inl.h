// SIMD pieces that several operations share; included once for each Highway target (no include
// guard of the usual kind).
#include <cstdint>

#include "hwy/highway.h"
#include "src/core/dtype.h"

#if defined(FASA_CORE_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FASA_CORE_SIMD_INL_H_
#undef FASA_CORE_SIMD_INL_H_
#else
#define FASA_CORE_SIMD_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fasa::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Lanes(df) consecutive values of a row as f32, from value `i`; q8_0 needs i and the lanes within
// one block.
template <DType kType, class DF>
HWY_INLINE hn::Vec<DF> LoadFloats(DF df, const std::byte* row, int64_t i) {
  if constexpr (kType == DType::kF32) {
    return hn::LoadU(df, reinterpret_cast<const float*>(row) + i);
  } else if constexpr (kType == DType::kF16) {
    const hn::Rebind<hwy::float16_t, DF> dh;
    return hn::PromoteTo(df, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(row) + i));
  } else if constexpr (kType == DType::kBF16) {
    const hn::Rebind<hwy::bfloat16_t, DF> dh;
    return hn::PromoteTo(df, hn::LoadU(dh, reinterpret_cast<const hwy::bfloat16_t*>(row) + i));
  } else {
    const hn::Rebind<int8_t, DF> d8;
    const hn::RebindToSigned<DF> di;
    const std::byte* block = row + i / kQ8Block * static_cast<int64_t>(sizeof(Q8Block));
    uint16_t scale = 0;
    std::memcpy(&scale, block, 2);
    const auto values = hn::LoadU(d8, reinterpret_cast<const int8_t*>(block + 2 + i % kQ8Block));
    return hn::Mul(hn::ConvertTo(df, hn::PromoteTo(di, values)), hn::Set(df, f16_to_f32(scale)));
  }
}

template <DType kType>
HWY_INLINE void RowToFloatAs(const std::byte* row, int64_t n, float* out) {
  const hn::CappedTag<float, 32> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(LoadFloats<kType>(df, row, i), df, out + i);
  for (; i < n; ++i) out[i] = load_value(kType, row, i);
}

// A row of n values as f32.
HWY_INLINE void RowToFloat(DType type, const std::byte* row, int64_t n, float* out) {
  switch (type) {
    case DType::kF32:
      return RowToFloatAs<DType::kF32>(row, n, out);
    case DType::kF16:
      return RowToFloatAs<DType::kF16>(row, n, out);
    case DType::kBF16:
      return RowToFloatAs<DType::kBF16>(row, n, out);
    case DType::kQ8_0:
      return RowToFloatAs<DType::kQ8_0>(row, n, out);
  }
}

HWY_INLINE float Dot(const float* a, const float* b, int64_t n) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  auto sum = hn::Zero(df);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) sum = hn::MulAdd(hn::LoadU(df, a + i), hn::LoadU(df, b + i), sum);
  float total = hn::GetLane(hn::SumOfLanes(df, sum));
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace fasa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
