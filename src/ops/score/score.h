// score: token importance prediction, TIP (FASA, section 3).
//
//   S[h, t] = sum over FCs i of plane(h):  q[h, dims[i]] . index[plane(h), t, i]      (+ bias[t])
//   shared by the group (kMax):  S[g, t] = max over the query heads h of KV head g
//
// With a basis, q[h, dims[i]] is basis[plane(h)][i] . q[h] instead; with weights, an FC's term is multiplied by its own.
// Unscaled: the model's 1/sqrt(d) does not change an order. plane(h) = h * num_planes /
// num_q_heads.
#pragma once

#include <span>

#include "fasa/index.h"
#include "fasa/tensor.h"
#include "src/ops/implementation.h"

namespace fasa::ops {

enum class GroupReduce : uint8_t {
  kNone,  // a row of scores for each query head
  kMax,   // a row of scores for each KV head
};

struct ScoreArgs {
  HeadsView q;  // [num_q_heads, head_dim] f32
  int64_t num_kv_heads = 0;
  IndexView index;
  int64_t num_rows = 0;         // scores rows 0..num_rows-1; <= index.shape.num_rows
  const float* bias = nullptr;  // [num_rows] added (0 or -inf), or null
  GroupReduce reduce = GroupReduce::kNone;
  float* scores = nullptr;    // [num_q_heads or num_kv_heads, scores_stride]
  int64_t scores_stride = 0;  // floats, >= num_rows
};

void check(const ScoreArgs& args);
int64_t bytes(const ScoreArgs& args);
std::span<const Implementation<ScoreArgs>> score_implementations();
void score(Context& context, const ScoreArgs& args);

// The same S from the keys themselves, all dims (the oracle's score): exact q.k in f32.
struct ExactScoreArgs {
  HeadsView q;
  CacheView k;                  // [num_rows, num_kv_heads, head_dim]
  const float* bias = nullptr;  // [num_rows] or null
  GroupReduce reduce = GroupReduce::kNone;
  float* scores = nullptr;
  int64_t scores_stride = 0;
  // Null: scores[.., t] is of row t. Else scores[.., i] is of rows[g * rows_stride + i], i < num_kept[g], for KV head g.
  const int32_t* rows = nullptr;
  int64_t rows_stride = 0;
  const int64_t* num_kept = nullptr;  // [num_kv_heads]
};
void check(const ExactScoreArgs& args);
int64_t bytes(const ExactScoreArgs& args);
std::span<const Implementation<ExactScoreArgs>> exact_score_implementations();
void exact_score(Context& context, const ExactScoreArgs& args);

// The same S from a copy of the keys with one run of rows for each dim, of which only chosen dims are read:
//   S[h, t] = sum over i < num_dims of  q[h, c_i] k[g, c_i, t]  (+ bias[t]),  c_i = dims[g * num_dims + i], g = KV head of h
struct ColumnScoreArgs {
  HeadsView q;
  const uint16_t* columns = nullptr;  // f16 [num_kv_heads, head_dim, columns_stride]
  int64_t columns_stride = 0;         // rows, a multiple of kIndexBlock
  int64_t num_kv_heads = 0;
  const int16_t* dims = nullptr;  // [num_kv_heads, num_dims]
  int64_t num_dims = 0;
  int64_t num_rows = 0;
  const float* bias = nullptr;
  float* scores = nullptr;    // [num_q_heads, scores_stride]
  int64_t scores_stride = 0;  // floats, >= num_rows
};
void check(const ColumnScoreArgs& args);
int64_t bytes(const ColumnScoreArgs& args);
std::span<const Implementation<ColumnScoreArgs>> column_score_implementations();
void column_score(Context& context, const ColumnScoreArgs& args);

}  // namespace fasa::ops
