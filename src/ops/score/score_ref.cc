// score and exact_score, scalar, f64. See score.h for the formulas.
#include <algorithm>
#include <limits>
#include <vector>

#include "fasa/rope.h"
#include "src/core/dtype.h"
#include "src/ops/score/score_impl.h"

namespace fasa::ops {
namespace {

int nibble(std::byte b, bool high) {
  const int value = high ? std::to_integer<int>(b) >> 4 : std::to_integer<int>(b) & 15;
  return value < 8 ? value : value - 16;
}

// Value `i` (0..2*num_fcs-1) of a row of a plane.
float index_value(const IndexView& index, int64_t plane, int64_t row, int64_t i) {
  const IndexShape& shape = index.shape;
  const std::byte* block = index.block(plane, row / kIndexBlock);
  const int64_t lane = row % kIndexBlock;
  const std::byte* fc = block + i / 2 * shape.fc_bytes();
  if (shape.type == IndexType::kF16) return load_value(DType::kF16, fc, lane * 2 + i % 2);
  const float scale = load_value(DType::kF16, block + shape.num_fcs * shape.fc_bytes(), lane);
  if (shape.type == IndexType::kI8) {
    const auto value = static_cast<int8_t>(std::to_integer<int>(fc[lane * 2 + i % 2]));
    return scale * static_cast<float>(value);
  }
  return scale * static_cast<float>(nibble(fc[lane], i % 2 == 1));
}

// What value `i` of an index row is multiplied by.
double query_value(const ScoreArgs& args, int64_t head, int64_t plane, int64_t i) {
  const int64_t at = plane * args.index.shape.num_fcs * 2 + i;
  double value = 0;
  if (args.index.basis == nullptr) {
    value = args.q.at(head)[args.index.dims[at]];
  } else {
    const float* axis = args.index.basis + at * args.q.head_dim;
    for (int64_t d = 0; d < args.q.head_dim; ++d) value += static_cast<double>(axis[d]) * args.q.at(head)[d];
  }
  return args.index.weights == nullptr ? value : value * args.index.weights[at / 2];
}

// Stores a score for every row, reduced over the query heads of a KV head where asked.
template <class ScoreOf>
void write_scores(int64_t num_q_heads, int64_t num_kv_heads, GroupReduce reduce, int64_t num_rows, const float* bias,
                  float* scores, int64_t stride, const ScoreOf& score_of) {
  const int64_t group = num_q_heads / num_kv_heads;
  for (int64_t head = 0; head < num_q_heads; ++head)
    for (int64_t row = 0; row < num_rows; ++row) {
      const auto value = static_cast<float>(score_of(head, row) + (bias == nullptr ? 0.0 : bias[row]));
      float& out = scores[(reduce == GroupReduce::kNone ? head : head / group) * stride + row];
      const bool first = reduce == GroupReduce::kNone || head % group == 0;
      out = first ? value : std::max(out, value);
    }
}

}  // namespace

std::string score_ref_supports(const ScoreArgs& /*args*/) { return {}; }

void score_ref(Context& /*context*/, const ScoreArgs& args) {
  const IndexShape& shape = args.index.shape;
  write_scores(args.q.num_heads, args.num_kv_heads, args.reduce, args.num_rows, args.bias, args.scores,
               args.scores_stride, [&](int64_t head, int64_t row) {
                 const int64_t plane = head * shape.num_planes / args.q.num_heads;
                 double sum = 0;
                 for (int64_t i = 0; i < shape.num_fcs * 2; ++i)
                   sum += query_value(args, head, plane, i) * index_value(args.index, plane, row, i);
                 return sum;
               });
}

namespace {

void exact_score_rows_ref(Context& context, const ExactScoreArgs& args) {
  const int64_t sets = args.reduce == GroupReduce::kNone ? args.q.num_heads : args.k.num_heads;
  std::vector<float> all(static_cast<size_t>(sets * args.k.num_rows));
  ExactScoreArgs dense = args;
  dense.rows = nullptr;
  dense.scores = all.data();
  dense.scores_stride = args.k.num_rows;
  exact_score_ref(context, dense);
  for (int64_t set = 0; set < sets; ++set) {
    const int64_t g = set * args.k.num_heads / sets;
    for (int64_t i = 0; i < args.num_kept[g]; ++i) {
      args.scores[set * args.scores_stride + i] = all[set * args.k.num_rows + args.rows[g * args.rows_stride + i]];
    }
  }
}

}  // namespace

std::string exact_score_ref_supports(const ExactScoreArgs& /*args*/) { return {}; }

void exact_score_ref(Context& context, const ExactScoreArgs& args) {
  if (args.rows != nullptr) return exact_score_rows_ref(context, args);
  write_scores(args.q.num_heads, args.k.num_heads, args.reduce, args.k.num_rows, args.bias, args.scores,
               args.scores_stride, [&](int64_t head, int64_t row) {
                 const std::byte* key = args.k.at(row, kv_head_of(head, args.q.num_heads, args.k.num_heads));
                 double sum = 0;
                 for (int64_t d = 0; d < args.k.head_dim; ++d)
                   sum += static_cast<double>(args.q.at(head)[d]) * load_value(args.k.dtype, key, d);
                 return sum;
               });
}

std::string column_score_ref_supports(const ColumnScoreArgs& /*args*/) { return {}; }

void column_score_ref(Context& /*context*/, const ColumnScoreArgs& args) {
  write_scores(args.q.num_heads, args.num_kv_heads, GroupReduce::kNone, args.num_rows, args.bias, args.scores,
               args.scores_stride, [&](int64_t head, int64_t row) {
                 const int64_t g = kv_head_of(head, args.q.num_heads, args.num_kv_heads);
                 double sum = 0;
                 for (int64_t i = 0; i < args.num_dims; ++i) {
                   const int64_t c = args.dims[g * args.num_dims + i];
                   const uint16_t k = args.columns[(g * args.q.head_dim + c) * args.columns_stride + row];
                   sum += static_cast<double>(args.q.at(head)[c]) * f16_to_f32(k);
                 }
                 return sum;
               });
}

}  // namespace fasa::ops
