#include "src/ops/score/score.h"

#include <numeric>
#include <string>

#include "src/ops/score/score_impl.h"

namespace fasa::ops {
namespace {

[[noreturn]] void bad(const char* op, const std::string& what) {
  throw Error(ErrorCode::kInvalidArgument, std::string(op) + ": " + what);
}

void check_heads(const char* op, const HeadsView& q, int64_t num_kv_heads) {
  if (q.data == nullptr) bad(op, "q has no data");
  if (num_kv_heads < 1 || q.num_heads % num_kv_heads != 0)
    bad(op, "query heads (" + std::to_string(q.num_heads) + ") must be a multiple of KV heads (" +
                std::to_string(num_kv_heads) + ")");
}

int64_t score_sets(const HeadsView& q, int64_t num_kv_heads, GroupReduce reduce) {
  return reduce == GroupReduce::kNone ? q.num_heads : num_kv_heads;
}

}  // namespace

void check(const ScoreArgs& args) {
  check_heads("score", args.q, args.num_kv_heads);
  if (args.scores == nullptr || args.index.data == nullptr) bad("score", "scores or index has no data");
  if (args.index.dims == nullptr && args.index.basis == nullptr) bad("score", "the index has neither dims nor a basis");
  const IndexShape& shape = args.index.shape;
  if (shape.num_planes != args.num_kv_heads && shape.num_planes != args.q.num_heads)
    bad("score", "the index must have a plane for each KV head or for each query head");
  if (args.num_rows < 0 || args.num_rows > shape.num_rows) bad("score", "num_rows exceeds the index");
  if (args.scores_stride < args.num_rows) bad("score", "scores_stride is less than num_rows");
}

int64_t bytes(const ScoreArgs& args) {
  const double index = args.index.shape.row_bytes() * static_cast<double>(args.index.shape.num_planes);
  const int64_t out = score_sets(args.q, args.num_kv_heads, args.reduce) * 4;
  return static_cast<int64_t>(static_cast<double>(args.num_rows) * (index + static_cast<double>(out)));
}

std::span<const Implementation<ScoreArgs>> score_implementations() {
  static constexpr Implementation<ScoreArgs> kTable[] = {
      {"cpu", score_cpu_supports, score_cpu},
      {"ref", score_ref_supports, score_ref},
  };
  return kTable;
}

void score(Context& context, const ScoreArgs& args) {
  check(args);
  choose<ScoreArgs>("score", score_implementations(), args).run(context, args);
}

void check(const ExactScoreArgs& args) {
  check_heads("exact_score", args.q, args.k.num_heads);
  if (args.scores == nullptr || args.k.data == nullptr) bad("exact_score", "scores or k has no data");
  if (args.q.head_dim != args.k.head_dim) bad("exact_score", "q and k differ in head_dim");
  if (args.rows == nullptr) {
    if (args.scores_stride < args.k.num_rows) bad("exact_score", "scores_stride is less than num_rows");
    return;
  }
  if (args.num_kept == nullptr) bad("exact_score", "num_kept is null");
  for (int64_t g = 0; g < args.k.num_heads; ++g) {
    if (args.num_kept[g] < 0 || args.num_kept[g] > args.rows_stride || args.num_kept[g] > args.scores_stride)
      bad("exact_score", "num_kept exceeds rows_stride or scores_stride");
  }
}

int64_t bytes(const ExactScoreArgs& args) {
  const int64_t row = dtype_bytes(args.k.dtype, args.k.head_dim) +
                      score_sets(args.q, args.k.num_heads, args.reduce) / args.k.num_heads * 4;
  if (args.rows == nullptr) return args.k.num_rows * args.k.num_heads * row;
  return std::accumulate(args.num_kept, args.num_kept + args.k.num_heads, int64_t{0}) * row;
}

std::span<const Implementation<ExactScoreArgs>> exact_score_implementations() {
  static constexpr Implementation<ExactScoreArgs> kTable[] = {
      {"cpu", exact_score_cpu_supports, exact_score_cpu},
      {"ref", exact_score_ref_supports, exact_score_ref},
  };
  return kTable;
}

void exact_score(Context& context, const ExactScoreArgs& args) {
  check(args);
  choose<ExactScoreArgs>("exact_score", exact_score_implementations(), args).run(context, args);
}

void check(const ColumnScoreArgs& args) {
  check_heads("column_score", args.q, args.num_kv_heads);
  if (args.scores == nullptr || args.columns == nullptr || args.dims == nullptr)
    bad("column_score", "scores, columns or dims has no data");
  if (args.num_rows < 0 || args.columns_stride < args.num_rows || args.scores_stride < args.num_rows)
    bad("column_score", "columns_stride or scores_stride is less than num_rows");
  if (args.columns_stride % kIndexBlock != 0) bad("column_score", "columns_stride must be a multiple of 32");
  for (int64_t i = 0; i < args.num_kv_heads * args.num_dims; ++i)
    if (args.dims[i] < 0 || args.dims[i] >= args.q.head_dim) bad("column_score", "a dim lies outside of the head");
}

int64_t bytes(const ColumnScoreArgs& args) {
  return args.num_rows * (args.num_kv_heads * args.num_dims * 2 + args.q.num_heads * 4);
}

std::span<const Implementation<ColumnScoreArgs>> column_score_implementations() {
  static constexpr Implementation<ColumnScoreArgs> kTable[] = {
      {"cpu", column_score_cpu_supports, column_score_cpu},
      {"ref", column_score_ref_supports, column_score_ref},
  };
  return kTable;
}

void column_score(Context& context, const ColumnScoreArgs& args) {
  check(args);
  choose<ColumnScoreArgs>("column_score", column_score_implementations(), args).run(context, args);
}

}  // namespace fasa::ops
