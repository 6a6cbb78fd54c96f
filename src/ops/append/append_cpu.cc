// append on the CPU.
//   mapping   a task is a run of new rows; within it every row is converted head by head (Highway),
//   then indexed memory    reads src once, writes cache and index once numerics  the same bytes as
//   the reference: the index is made from the rounded cache ordering  rows are independent;
//   deterministic
// The index part is a gather of single dims from one hot row (a few ns a plane); SIMD was not
// tried, since at decode one row a layer is written.
#include <algorithm>
#include <cmath>

#include "src/core/dtype.h"
#include "src/core/math_util.h"
#include "src/ops/append/append_impl.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/append/append_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fasa::ops::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// n f32 -> f16 or bf16, round to nearest even.
void Demote(const float* from, uint16_t* to, int64_t n, bool bf16) {
  const hn::ScalableTag<float> df;
  int64_t i = 0;
  if (bf16) {
    for (; i < n; ++i) to[i] = f32_to_bf16(from[i]);
    return;
  }
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::DemoteTo(dh, hn::LoadU(df, from + i)), dh, reinterpret_cast<hwy::float16_t*>(to + i));
  for (; i < n; ++i) to[i] = f32_to_f16(from[i]);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace fasa::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fasa::ops {
namespace {

HWY_EXPORT(Demote);

constexpr int64_t kRowsPerTask = 16;

// Heads of a row that follow one another without a gap are copied as one.
bool is_dense_row(const CacheView& view) { return view.head_stride == dtype_bytes(view.dtype, view.head_dim); }

void write_row(const AppendArgs& args, int64_t i) {
  const bool whole = is_dense_row(args.src) && is_dense_row(args.cache);
  const int64_t num_runs = whole ? 1 : args.cache.num_heads;
  const int64_t values = whole ? args.cache.num_heads * args.cache.head_dim : args.cache.head_dim;
  for (int64_t run = 0; run < num_runs; ++run) {
    const std::byte* from = args.src.at(i, run);
    std::byte* to = args.cache.at(args.rows[i], run);
    if (args.src.dtype == args.cache.dtype) {
      std::memcpy(to, from, dtype_bytes(args.cache.dtype, values));
    } else if (args.src.dtype == DType::kF32) {
      HWY_DYNAMIC_DISPATCH(Demote)
      (reinterpret_cast<const float*>(from), reinterpret_cast<uint16_t*>(to), values, args.cache.dtype == DType::kBF16);
    } else {
      for (int64_t d = 0; d < values; ++d) store_value(args.cache.dtype, to, d, load_value(args.src.dtype, from, d));
    }
  }
}

}  // namespace

std::string append_cpu_supports(const AppendArgs& args) { return append_ref_supports(args); }

void append_cpu(Context& context, const AppendArgs& args) {
  const auto num_rows = static_cast<int64_t>(args.rows.size());
  const auto rows = [&](int64_t begin, int64_t end) {
    if (args.src.data != nullptr)
      for (int64_t i = begin; i < end; ++i) write_row(args, i);
    if (args.index.data != nullptr) index_rows(args, args.rows.subspan(begin, end - begin));
  };
  if (num_rows <= kRowsPerTask) return rows(0, num_rows);
  context.parallel_for(ceil_div(num_rows, kRowsPerTask), [&](int64_t task, int /*worker*/) {
    rows(task * kRowsPerTask, std::min(num_rows, (task + 1) * kRowsPerTask));
  });
}

}  // namespace fasa::ops
#endif  // HWY_ONCE
