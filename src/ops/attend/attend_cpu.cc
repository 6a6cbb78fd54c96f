// attend on the CPU.
//   formula   see attend.h; online softmax over tiles of 32 rows, f32 accumulation
//   mapping   a task is the rows of one split and the query heads that share them: dense, all heads of a KV head and
//             a fixed run of rows; sparse, one set and a fixed run of its kept rows. Keys are widened to f32 once a
//             tile; a step of QK holds one head and a vector's worth of rows in registers and sums across lanes by a
//             tree, a step of PV holds some vectors of the output of up to 4 heads. Splits are combined in order.
//   memory    dense: K and V once; sparse: the kept rows, prefetched one tile ahead
//   numerics  rows with bias -inf are never read, so what lies in them cannot leak
//   ordering  splits depend on the shape only: the same bits for any number of threads
//   bound     dense: multiply-adds from about 3 query heads a KV head on, else bandwidth; sparse: latency of cold rows
#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/core/dtype.h"
#include "src/core/math_util.h"
#include "src/core/scratch_slots.h"
#include "src/ops/attend/attend_impl.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/attend/attend_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/cache_control.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "src/core/simd-inl.h"

#ifndef FASA_OPS_ATTEND_ATTEND_CPU_TYPES
#define FASA_OPS_ATTEND_ATTEND_CPU_TYPES
namespace fasa::ops {

inline constexpr int64_t kTile = 32;

// One task: rows `begin`..`end`-1 of a list (or of the cache) for `num_heads` query heads of KV
// head `kv_head`.
struct AttendTask {
  const AttendArgs* args;
  int64_t kv_head, first_head, num_heads;
  const int32_t* rows;  // kept rows, or null: row i is i
  int64_t begin, end;
  // Scratch of the worker, f32.
  float* keys;    // [kTile, head_dim]
  float* logits;  // [num_heads, kTile], then the probabilities
  // Result, f32.
  float* acc;  // [num_heads, head_dim_v], scaled by exp(-max)
  float* max;  // [num_heads]
  float* sum;  // [num_heads]
};

}  // namespace fasa::ops
#endif

HWY_BEFORE_NAMESPACE();
namespace fasa::ops::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using fasa::HWY_NAMESPACE::LoadFloats;
using fasa::HWY_NAMESPACE::RowToFloat;

using DF = hn::CappedTag<float, 16>;
constexpr int64_t kMaxLanes = HWY_MIN(16, static_cast<int64_t>(HWY_MAX_BYTES / sizeof(float)));

// The rows of one tile that take part, with their bias.
struct Tile {
  int64_t count = 0;
  int64_t rows[kTile];
  float bias[kTile];
};

HWY_INLINE Tile MakeTile(const AttendTask& task, int64_t begin) {
  Tile tile;
  const float* bias = task.rows == nullptr ? task.args->bias : nullptr;
  for (int64_t i = begin; i < std::min(begin + kTile, task.end); ++i) {
    if (bias != nullptr && bias[i] == -INFINITY) continue;
    tile.rows[tile.count] = task.rows == nullptr ? i : task.rows[i];
    tile.bias[tile.count++] = bias == nullptr ? 0.0F : bias[i];
  }
  return tile;
}

HWY_INLINE void PrefetchRows(const AttendTask& task, int64_t begin) {
  if (task.rows == nullptr) return;  // the hardware follows a dense walk
  const AttendArgs& args = *task.args;
  const int64_t key_bytes = dtype_bytes(args.k.dtype, args.k.head_dim);
  const int64_t value_bytes = dtype_bytes(args.v.dtype, args.v.head_dim);
  for (int64_t i = begin; i < std::min(begin + kTile, task.end); ++i) {
    const std::byte* key = args.k.at(task.rows[i], task.kv_head);
    const std::byte* value = args.v.at(task.rows[i], task.kv_head);
    for (int64_t b = 0; b < key_bytes; b += 64) hwy::Prefetch(key + b);
    for (int64_t b = 0; b < value_bytes; b += 64) hwy::Prefetch(value + b);
  }
}

// Lane i of the result is the sum of the lanes of v[i]; v has Lanes(DF) vectors.
HWY_INLINE hn::Vec<DF> SumEach(hn::Vec<DF>* v) {
  const DF df;
  for (auto n = static_cast<int64_t>(hn::Lanes(df)); n > 1; n /= 2)
    for (int64_t i = 0; i < n / 2; ++i)
      v[i] = hn::Add(hn::ConcatEven(df, v[2 * i + 1], v[2 * i]), hn::ConcatOdd(df, v[2 * i + 1], v[2 * i]));
  return v[0];
}

// logits[r] = q . keys[r] for the kTile rows of `keys`.
HWY_INLINE void QueryKeys(const float* q, const float* keys, int64_t head_dim, float* logits) {
  const DF df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int64_t r = 0; r < kTile; r += lanes) {
    hn::Vec<DF> dots[kMaxLanes];
    for (int64_t i = 0; i < kMaxLanes; ++i) dots[i] = hn::Zero(df);
    const float* block = keys + r * head_dim;
    for (int64_t d = 0; d < head_dim; d += lanes) {
      const auto part = hn::LoadU(df, q + d);
      for (int64_t i = 0; i < kMaxLanes; ++i)
        dots[i] = hn::MulAdd(hn::LoadU(df, block + i * head_dim + d), part, dots[i]);
    }
    hn::StoreU(SumEach(dots), df, logits + r);
  }
}

// Turns the tile's dot products of one head into probabilities relative to the new maximum; returns
// the factor by which what was accumulated before shrinks.
// Keeps the logits in `kept` if that is not null.
HWY_INLINE float SoftmaxTile(const AttendArgs& args, const Tile& tile, float* logits, float* kept, float& max,
                             float& sum) {
  const DF df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto scale = hn::Set(df, args.scale);
  auto top = hn::Set(df, max);
  for (int64_t r = 0; r < kTile; r += lanes) {
    auto x = hn::Mul(hn::LoadU(df, logits + r), scale);
    if (args.softcap > 0) {
      const auto cap = hn::Set(df, args.softcap);
      x = hn::Mul(cap, hn::Tanh(df, hn::Div(x, cap)));
    }
    x = hn::Add(x, hn::LoadU(df, tile.bias + r));
    // Lanes past the count hold what was in the buffer.
    x = hn::IfThenElse(hn::FirstN(df, static_cast<size_t>(std::max<int64_t>(0, tile.count - r))), x,
                       hn::Set(df, -INFINITY));
    hn::StoreU(x, df, logits + r);
    top = hn::Max(top, x);
  }
  if (kept != nullptr) std::copy_n(logits, tile.count, kept);
  const float new_max = hn::GetLane(hn::MaxOfLanes(df, top));
  if (new_max == -INFINITY) {
    std::fill_n(logits, kTile, 0.0F);
    return 1.0F;
  }
  const auto reference = hn::Set(df, new_max);
  auto total = hn::Zero(df);
  for (int64_t r = 0; r < kTile; r += lanes) {
    const auto x = hn::LoadU(df, logits + r);
    // exp(-inf) is 0; the polynomial must not see it.
    const auto p = hn::IfThenElseZero(hn::Ne(x, hn::Set(df, -INFINITY)), hn::Exp(df, hn::Sub(x, reference)));
    hn::StoreU(p, df, logits + r);
    total = hn::Add(total, p);
  }
  const float shrink = max == -INFINITY ? 0.0F : std::exp(max - new_max);
  sum = sum * shrink + hn::GetLane(hn::SumOfLanes(df, total));
  max = new_max;
  return shrink;
}

// acc[h] = acc[h] * shrink[h] + sum over the tile's rows of p[h][r] * v[r], kVectors vectors of the
// output from `d` on.
template <DType kType, int kHeads, int kVectors>
HWY_INLINE void AddValues(const AttendTask& task, const Tile& tile, const float* p, const float* shrink, float* acc,
                          int64_t d) {
  const DF df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t width = task.args->v.head_dim;
  hn::Vec<DF> sums[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h)
    for (int c = 0; c < kVectors; ++c)
      sums[h][c] = hn::Mul(hn::LoadU(df, acc + h * width + d + c * lanes), hn::Set(df, shrink[h]));
  for (int64_t r = 0; r < tile.count; ++r) {
    const std::byte* row = task.args->v.at(tile.rows[r], task.kv_head);
    for (int c = 0; c < kVectors; ++c) {
      const auto value = LoadFloats<kType>(df, row, d + c * lanes);
      for (int h = 0; h < kHeads; ++h) sums[h][c] = hn::MulAdd(value, hn::Set(df, p[h * kTile + r]), sums[h][c]);
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int c = 0; c < kVectors; ++c) hn::StoreU(sums[h][c], df, acc + h * width + d + c * lanes);
}

template <DType kType, int kHeads>
void ValuesOfHeads(const AttendTask& task, const Tile& tile, int64_t head, const float* shrink) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(DF()));
  const int64_t width = task.args->v.head_dim;
  constexpr int kVectors = kHeads <= 2 ? 4 : 2;
  const float* p = task.logits + head * kTile;
  float* acc = task.acc + head * width;
  int64_t d = 0;
  for (; d + kVectors * lanes <= width; d += kVectors * lanes)
    AddValues<kType, kHeads, kVectors>(task, tile, p, shrink + head, acc, d);
  for (; d < width; d += lanes) AddValues<kType, kHeads, 1>(task, tile, p, shrink + head, acc, d);
}

template <DType kType>
HWY_INLINE void Values(const AttendTask& task, const Tile& tile, const float* shrink) {
  int64_t head = 0;
  for (; head + 4 <= task.num_heads; head += 4) ValuesOfHeads<kType, 4>(task, tile, head, shrink);
  switch (task.num_heads - head) {
    case 3:
      return ValuesOfHeads<kType, 3>(task, tile, head, shrink);
    case 2:
      return ValuesOfHeads<kType, 2>(task, tile, head, shrink);
    case 1:
      return ValuesOfHeads<kType, 1>(task, tile, head, shrink);
    default:
      return;
  }
}

void RunTask(const AttendTask& task) {
  const AttendArgs& args = *task.args;
  const int64_t head_dim = args.k.head_dim;
  std::fill_n(task.acc, task.num_heads * args.v.head_dim, 0.0F);
  std::fill_n(task.max, task.num_heads, -INFINITY);
  std::fill_n(task.sum, task.num_heads, 0.0F);
  float* shrink = task.logits + task.num_heads * kTile;
  PrefetchRows(task, task.begin);
  for (int64_t begin = task.begin; begin < task.end; begin += kTile) {
    PrefetchRows(task, begin + kTile);
    Tile tile = MakeTile(task, begin);
    if (tile.count == 0) continue;
    for (int64_t r = 0; r < tile.count; ++r)
      RowToFloat(args.k.dtype, args.k.at(tile.rows[r], task.kv_head), head_dim, task.keys + r * head_dim);
    std::fill(tile.bias + tile.count, tile.bias + kTile, 0.0F);
    for (int64_t h = 0; h < task.num_heads; ++h) {
      float* logits = task.logits + h * kTile;
      QueryKeys(args.q.at(task.first_head + h), task.keys, head_dim, logits);
      float* kept = args.logits == nullptr ? nullptr : args.logits + (task.first_head + h) * args.rows_stride + begin;
      shrink[h] = SoftmaxTile(args, tile, logits, kept, task.max[h], task.sum[h]);
    }
    switch (args.v.dtype) {
      case DType::kF32:
        Values<DType::kF32>(task, tile, shrink);
        break;
      case DType::kF16:
        Values<DType::kF16>(task, tile, shrink);
        break;
      case DType::kBF16:
        Values<DType::kBF16>(task, tile, shrink);
        break;
      case DType::kQ8_0:
        Values<DType::kQ8_0>(task, tile, shrink);
        break;
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace fasa::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fasa::ops {
namespace {

HWY_EXPORT(RunTask);

constexpr int64_t kSparseSplit = 128;
constexpr int64_t kDenseSplit = 512;
constexpr int64_t kMaxSplits = 64;

struct Splits {
  int64_t num_sets;  // lists of rows: sets, or KV heads when dense
  int64_t heads;     // query heads of each
  int64_t rows;      // rows of a split
  int64_t per_set;   // splits of a set
  float* partials;   // [num_sets * per_set][heads][head_dim_v + 2]: acc, then max and sum of every head
  int64_t stride;    // floats of one split

  float* acc(int64_t task) const { return partials + task * stride; }
  float* max(int64_t task, int64_t width) const { return acc(task) + heads * width; }
};

Splits make_splits(Context& context, const AttendArgs& args) {
  Splits s{};
  int64_t longest = args.num_rows;
  s.num_sets = args.k.num_heads;
  if (args.rows != nullptr) {
    s.num_sets = args.num_sets;
    longest = *std::max_element(args.num_kept, args.num_kept + args.num_sets);
  }
  s.heads = args.q.num_heads / s.num_sets;
  const int64_t least = args.rows == nullptr ? kDenseSplit : kSparseSplit;
  s.rows = std::max(least, round_up(ceil_div(longest, kMaxSplits), kTile));
  s.per_set = std::max<int64_t>(1, ceil_div(longest, s.rows));
  s.stride = s.heads * (args.v.head_dim + 2);
  s.partials =
      static_cast<float*>(context.shared_scratch(kSlotAttend, s.num_sets * s.per_set * s.stride * sizeof(float)));
  return s;
}

// Joins the splits of one query head by their maxima and sums, and adds the sink.
void combine(const AttendArgs& args, const Splits& s, int64_t head) {
  const int64_t width = args.v.head_dim;
  const int64_t local = head % s.heads;
  const int64_t first = head / s.heads * s.per_set;
  float max = args.sink_logits == nullptr ? -INFINITY : args.sink_logits[head];
  for (int64_t i = 0; i < s.per_set; ++i) max = std::max(max, s.max(first + i, width)[local]);
  float* out = args.out.at(head);
  std::fill_n(out, width, 0.0F);
  float sum = args.sink_logits == nullptr || max == -INFINITY ? 0.0F : std::exp(args.sink_logits[head] - max);
  for (int64_t i = 0; i < s.per_set; ++i) {
    const float* maxima = s.max(first + i, width);
    if (maxima[local] == -INFINITY) continue;
    const float weight = std::exp(maxima[local] - max);
    sum += weight * maxima[s.heads + local];
    const float* acc = s.acc(first + i) + local * width;
    for (int64_t d = 0; d < width; ++d) out[d] += weight * acc[d];
  }
  const float inverse = sum == 0 ? 0.0F : 1.0F / sum;
  for (int64_t d = 0; d < width; ++d) out[d] *= inverse;
  if (args.lse != nullptr) args.lse[head] = max + std::log(sum);
}

}  // namespace

std::string attend_cpu_supports(const AttendArgs& args) {
  if (args.k.dtype == DType::kQ8_0) return "keys in q8_0";
  if (args.k.head_dim % 16 != 0 || args.v.head_dim % 16 != 0) return "head_dim is not a multiple of 16";
  return {};
}

void attend_cpu(Context& context, const AttendArgs& args) {
  const Splits s = make_splits(context, args);
  const int64_t keys = kTile * args.k.head_dim;
  context.reserve_worker_scratch(kSlotAttendWork, (keys + s.heads * (kTile + 1)) * sizeof(float));
  context.parallel_for(s.num_sets * s.per_set, [&](int64_t index, int worker) {
    const int64_t set = index / s.per_set;
    const int64_t count = args.rows == nullptr ? args.num_rows : args.num_kept[set];
    AttendTask task{};
    task.args = &args;
    task.first_head = set * s.heads;
    task.num_heads = s.heads;
    task.kv_head = set * args.k.num_heads / s.num_sets;
    task.rows = args.rows == nullptr ? nullptr : args.rows + set * args.rows_stride;
    task.begin = std::min(count, index % s.per_set * s.rows);
    task.end = std::min(count, task.begin + s.rows);
    task.keys = static_cast<float*>(context.worker_scratch(kSlotAttendWork, worker));
    task.logits = task.keys + keys;
    task.acc = s.acc(index);
    task.max = s.max(index, args.v.head_dim);
    task.sum = task.max + s.heads;
    HWY_DYNAMIC_DISPATCH(RunTask)(task);
  });
  for (int64_t head = 0; head < args.q.num_heads; ++head) combine(args, s, head);
}

}  // namespace fasa::ops
#endif  // HWY_ONCE
