// column_score on the CPU: a task is a query head and a run of rows; rows lie in lanes, two vectors of sums stay in
// registers over the dims. The chosen columns are read once for each query head of the group (a run stays in L1).
#include <algorithm>

#include "src/core/dtype.h"
#include "src/core/math_util.h"
#include "src/ops/score/score_impl.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/score/column_score_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fasa::ops::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void ColumnRun(const ColumnScoreArgs& args, int64_t head, int64_t row0, int64_t row1) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t g = head * args.num_kv_heads / args.q.num_heads;
  const int16_t* dims = args.dims + g * args.num_dims;
  const float* q = args.q.at(head);
  HWY_ALIGN float sums[32];
  float* out = args.scores + head * args.scores_stride;
  for (int64_t row = row0; row < row1; row += 2 * lanes) {
    auto a = hn::Zero(df);
    auto b = hn::Zero(df);
    for (int64_t i = 0; i < args.num_dims; ++i) {
      const auto* column = reinterpret_cast<const hwy::float16_t*>(
          args.columns + (g * args.q.head_dim + dims[i]) * args.columns_stride + row);
      const auto part = hn::Set(df, q[dims[i]]);
      a = hn::MulAdd(hn::PromoteTo(df, hn::LoadU(dh, column)), part, a);
      b = hn::MulAdd(hn::PromoteTo(df, hn::LoadU(dh, column + lanes)), part, b);
    }
    hn::Store(a, df, sums);
    hn::Store(b, df, sums + lanes);
    for (int64_t i = 0; i < std::min(2 * lanes, row1 - row); ++i)
      out[row + i] = sums[i] + (args.bias == nullptr ? 0.0F : args.bias[row + i]);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace fasa::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fasa::ops {
namespace {

HWY_EXPORT(ColumnRun);

constexpr int64_t kRowsPerTask = 2048;

}  // namespace

std::string column_score_cpu_supports(const ColumnScoreArgs& /*args*/) { return {}; }

void column_score_cpu(Context& context, const ColumnScoreArgs& args) {
  const int64_t runs = ceil_div(args.num_rows, kRowsPerTask);
  context.parallel_for(args.q.num_heads * runs, [&](int64_t task, int /*worker*/) {
    const int64_t row0 = task % runs * kRowsPerTask;
    HWY_DYNAMIC_DISPATCH(ColumnRun)(args, task / runs, row0, std::min(args.num_rows, row0 + kRowsPerTask));
  });
}

}  // namespace fasa::ops
#endif  // HWY_ONCE
