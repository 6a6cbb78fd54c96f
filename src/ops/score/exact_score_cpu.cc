// exact_score on the CPU: a task is a KV head and a run of rows; each key is converted once for its
// group's heads. Bound by conversion and multiply-adds for groups > 1; it serves the policies that score whole keys
// (or summaries of pages), not the fast path.
#include <algorithm>

#include "src/core/dtype.h"
#include "src/core/math_util.h"
#include "src/core/scratch_slots.h"
#include "src/ops/score/score_impl.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/score/exact_score_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "src/core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fasa::ops::HWY_NAMESPACE {
using fasa::HWY_NAMESPACE::Dot;
using fasa::HWY_NAMESPACE::RowToFloat;

void ExactRun(const ExactScoreArgs& args, int64_t kv_head, int64_t row0, int64_t row1, float* key) {
  const int64_t group = args.q.num_heads / args.k.num_heads;
  const int32_t* rows = args.rows == nullptr ? nullptr : args.rows + kv_head * args.rows_stride;
  for (int64_t at = row0; at < row1; ++at) {
    const int64_t row = rows == nullptr ? at : rows[at];
    RowToFloat(args.k.dtype, args.k.at(row, kv_head), args.k.head_dim, key);
    for (int64_t i = 0; i < group; ++i) {
      const int64_t head = kv_head * group + i;
      float value = Dot(args.q.at(head), key, args.k.head_dim) + (args.bias == nullptr ? 0.0F : args.bias[row]);
      if (args.reduce == GroupReduce::kNone) {
        args.scores[head * args.scores_stride + at] = value;
      } else {
        float& out = args.scores[kv_head * args.scores_stride + at];
        out = i == 0 ? value : std::max(out, value);
      }
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace fasa::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fasa::ops {
namespace {

HWY_EXPORT(ExactRun);

constexpr int64_t kRowsPerTask = 512;

}  // namespace

std::string exact_score_cpu_supports(const ExactScoreArgs& /*args*/) { return {}; }

void exact_score_cpu(Context& context, const ExactScoreArgs& args) {
  const auto count = [&](int64_t kv_head) { return args.rows == nullptr ? args.k.num_rows : args.num_kept[kv_head]; };
  int64_t longest = 0;
  for (int64_t g = 0; g < args.k.num_heads; ++g) longest = std::max(longest, count(g));
  const int64_t runs = ceil_div(longest, kRowsPerTask);
  context.reserve_worker_scratch(kSlotScore, args.k.head_dim * sizeof(float));
  context.parallel_for(args.k.num_heads * runs, [&](int64_t task, int worker) {
    const int64_t row0 = task % runs * kRowsPerTask;
    HWY_DYNAMIC_DISPATCH(ExactRun)
    (args, task / runs, row0, std::min(count(task / runs), row0 + kRowsPerTask),
     static_cast<float*>(context.worker_scratch(kSlotScore, worker)));
  });
}

}  // namespace fasa::ops
#endif  // HWY_ONCE
