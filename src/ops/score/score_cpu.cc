// score on the CPU.
//   formula   see score.h; the query is quantised to 16-bit integers (error below 2^-15 of its largest part), so the
//             sum over FCs is exact in int32: num_fcs * 2 * 127 * query limit < 2^31
//   mapping   a task is a KV head and a run of blocks; a block's FC is one contiguous load, unpacked to 16 bits once
//             for up to 4 query heads of the group, rows in lanes (no horizontal sums)
//   memory    the index once per 4 query heads of a plane (the run stays in L1/L2 for the next 4), scores written once
//   ordering  a row's score depends on nothing else: the same bits for any number of threads
#include <algorithm>
#include <cmath>

#include "src/core/dtype.h"
#include "src/core/math_util.h"
#include "src/core/scratch_slots.h"
#include "src/ops/score/score_impl.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/score/score_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#ifndef FASA_OPS_SCORE_SCORE_CPU_TYPES
#define FASA_OPS_SCORE_SCORE_CPU_TYPES
namespace fasa::ops {

// The queries of up to 4 heads that read one plane, and where their scores go.
struct ScoreJob {
  static constexpr int kMaxHeads = 4;
  const IndexShape* shape;
  const std::byte* block;  // the first block
  int64_t num_rows;        // from there
  int num_heads;
  const int32_t* q_pairs[kMaxHeads];  // [num_fcs] two int16 in one (integer index)
  const float* q_floats[kMaxHeads];   // [num_fcs * 2] (f16 index)
  float q_step[kMaxHeads];            // score = q_step * row scale * integer sum
  const float* bias;                  // [num_rows] or null
  float* out[kMaxHeads];              // [num_rows]
  bool keep_max[kMaxHeads];           // max with what is there
};

}  // namespace fasa::ops
#endif

HWY_BEFORE_NAMESPACE();
namespace fasa::ops::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DI16 = hn::CappedTag<int16_t, 32>;
using DI32 = hn::RepartitionToWide<DI16>;
using DF32 = hn::RebindToFloat<DI32>;

// Rows `row`.. of one FC as int16 pairs.
template <IndexType kType>
HWY_INLINE hn::Vec<DI16> LoadPairs(const std::byte* fc, int64_t row) {
  const DI16 d16;
  if constexpr (kType == IndexType::kI8) {
    const hn::Rebind<int8_t, DI16> d8;
    return hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const int8_t*>(fc + row * 2)));
  } else {
    const DI32 d32;
    const hn::Rebind<int8_t, DI32> d8;
    const auto bytes = hn::PromoteTo(d32, hn::LoadU(d8, reinterpret_cast<const int8_t*>(fc + row)));
    const auto low = hn::ShiftRight<28>(hn::ShiftLeft<28>(bytes));
    const auto first = hn::And(low, hn::Set(d32, 0xFFFF));
    const auto second = hn::ShiftLeft<16>(hn::ShiftRight<4>(bytes));
    return hn::BitCast(d16, hn::Or(first, second));
  }
}

template <class V>
HWY_INLINE void Finish(const ScoreJob& job, int head, int64_t row, V score, float* tail) {
  const DF32 df;
  float* out = tail != nullptr ? tail : job.out[head] + row;
  if (tail == nullptr) {
    if (job.bias != nullptr) score = hn::Add(score, hn::LoadU(df, job.bias + row));
    if (job.keep_max[head]) score = hn::Max(score, hn::LoadU(df, out));
  }
  hn::StoreU(score, df, out);
}

// A block that num_rows cuts: `tail` holds the scores of all its rows.
HWY_INLINE void FinishTail(const ScoreJob& job, int head, int64_t row, const float* tail) {
  for (int64_t i = row; i < std::min(job.num_rows, row + kIndexBlock); ++i) {
    const float value = tail[i - row] + (job.bias == nullptr ? 0.0F : job.bias[i]);
    job.out[head][i] = job.keep_max[head] ? std::max(value, job.out[head][i]) : value;
  }
}

template <IndexType kType, int kHeads>
HWY_INLINE void IntegerBlock(const ScoreJob& job, const std::byte* block, int64_t row0) {
  const DI16 d16;
  const DI32 d32;
  const DF32 df;
  const hn::Rebind<hwy::float16_t, DF32> dh;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d32));
  const int64_t num_fcs = job.shape->num_fcs;
  const int64_t fc_bytes = job.shape->fc_bytes();
  const bool is_tail = row0 + kIndexBlock > job.num_rows;
  HWY_ALIGN float tail[kHeads][kIndexBlock];
  const auto* scales = reinterpret_cast<const hwy::float16_t*>(block + num_fcs * fc_bytes);
  for (int64_t r = 0; r < kIndexBlock; r += 2 * lanes) {
    hn::Vec<DI32> a0[kHeads], a1[kHeads], b0[kHeads], b1[kHeads];
    for (int h = 0; h < kHeads; ++h) a0[h] = a1[h] = b0[h] = b1[h] = hn::Zero(d32);
    for (int64_t fc = 0; fc < num_fcs; ++fc) {
      const auto ka = LoadPairs<kType>(block + fc * fc_bytes, r);
      const auto kb = LoadPairs<kType>(block + fc * fc_bytes, r + lanes);
      for (int h = 0; h < kHeads; ++h) {
        const auto q = hn::BitCast(d16, hn::Set(d32, job.q_pairs[h][fc]));
        a0[h] = hn::ReorderWidenMulAccumulate(d32, ka, q, a0[h], a1[h]);
        b0[h] = hn::ReorderWidenMulAccumulate(d32, kb, q, b0[h], b1[h]);
      }
    }
    const auto scale_a = hn::PromoteTo(df, hn::LoadU(dh, scales + r));
    const auto scale_b = hn::PromoteTo(df, hn::LoadU(dh, scales + r + lanes));
    for (int h = 0; h < kHeads; ++h) {
      const auto step = hn::Set(df, job.q_step[h]);
      const auto sum_a = hn::ConvertTo(df, hn::RearrangeToOddPlusEven(a0[h], a1[h]));
      const auto sum_b = hn::ConvertTo(df, hn::RearrangeToOddPlusEven(b0[h], b1[h]));
      Finish(job, h, row0 + r, hn::Mul(sum_a, hn::Mul(scale_a, step)), is_tail ? tail[h] + r : nullptr);
      Finish(job, h, row0 + r + lanes, hn::Mul(sum_b, hn::Mul(scale_b, step)), is_tail ? tail[h] + r + lanes : nullptr);
    }
  }
  if (is_tail)
    for (int h = 0; h < kHeads; ++h) FinishTail(job, h, row0, tail[h]);
}

template <int kHeads>
HWY_INLINE void FloatBlock(const ScoreJob& job, const std::byte* block, int64_t row0) {
  const DF32 df;
  const hn::Rebind<hwy::float16_t, DF32> dh;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t num_fcs = job.shape->num_fcs;
  const int64_t fc_bytes = job.shape->fc_bytes();
  const bool is_tail = row0 + kIndexBlock > job.num_rows;
  HWY_ALIGN float tail[kHeads][kIndexBlock];
  for (int64_t r = 0; r < kIndexBlock; r += lanes) {
    hn::Vec<DF32> a[kHeads], b[kHeads];  // (first, second) pairs of lanes/2 rows each
    for (int h = 0; h < kHeads; ++h) a[h] = b[h] = hn::Zero(df);
    for (int64_t fc = 0; fc < num_fcs; ++fc) {
      const auto* values = reinterpret_cast<const hwy::float16_t*>(block + fc * fc_bytes) + r * 2;
      const auto ka = hn::PromoteTo(df, hn::LoadU(dh, values));
      const auto kb = hn::PromoteTo(df, hn::LoadU(dh, values + lanes));
      for (int h = 0; h < kHeads; ++h) {
        const auto q = hn::OddEven(hn::Set(df, job.q_floats[h][2 * fc + 1]), hn::Set(df, job.q_floats[h][2 * fc]));
        a[h] = hn::MulAdd(ka, q, a[h]);
        b[h] = hn::MulAdd(kb, q, b[h]);
      }
    }
    for (int h = 0; h < kHeads; ++h)
      Finish(job, h, row0 + r, hn::Add(hn::ConcatEven(df, b[h], a[h]), hn::ConcatOdd(df, b[h], a[h])),
             is_tail ? tail[h] + r : nullptr);
  }
  if (is_tail)
    for (int h = 0; h < kHeads; ++h) FinishTail(job, h, row0, tail[h]);
}

template <int kHeads>
void RunHeads(const ScoreJob& job) {
  const std::byte* block = job.block;
  for (int64_t row = 0; row < job.num_rows; row += kIndexBlock, block += job.shape->block_bytes()) {
    switch (job.shape->type) {
      case IndexType::kI8:
        IntegerBlock<IndexType::kI8, kHeads>(job, block, row);
        break;
      case IndexType::kI4:
        IntegerBlock<IndexType::kI4, kHeads>(job, block, row);
        break;
      case IndexType::kF16:
        FloatBlock<kHeads>(job, block, row);
        break;
    }
  }
}

void RunJob(const ScoreJob& job) {
  switch (job.num_heads) {
    case 1:
      return RunHeads<1>(job);
    case 2:
      return RunHeads<2>(job);
    case 3:
      return RunHeads<3>(job);
    default:
      return RunHeads<4>(job);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace fasa::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fasa::ops {
namespace {

HWY_EXPORT(RunJob);

constexpr int64_t kBlocksPerTask = 64;  // 2,048 rows: 36 KB of int8 index at 8 FCs

struct PackedQueries {
  int32_t* pairs;  // [num_q_heads, num_fcs]
  float* floats;   // [num_q_heads, num_fcs * 2]
  float* steps;    // [num_q_heads]
};

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Gathers each head's dominant dims and quantises them to 16 bits.
PackedQueries pack_queries(Context& context, const ScoreArgs& args) {
  const int64_t num_fcs = args.index.shape.num_fcs;
  const int64_t heads = args.q.num_heads;
  auto* base = static_cast<float*>(context.shared_scratch(kSlotScore, heads * (num_fcs * 3 + 1) * sizeof(float)));
  const PackedQueries packed{reinterpret_cast<int32_t*>(base), base + heads * num_fcs, base + heads * num_fcs * 3};
  const float limit = std::min(32767.0F, std::floor(2147483000.0F / (254.0F * static_cast<float>(num_fcs))));
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t plane = head * args.index.shape.num_planes / heads;
    const int64_t first = plane * num_fcs * 2;
    float* floats = packed.floats + head * num_fcs * 2;
    float max_abs = 0;
    for (int64_t i = 0; i < num_fcs * 2; ++i) {
      floats[i] = args.index.basis == nullptr
                      ? args.q.at(head)[args.index.dims[first + i]]
                      : dot(args.index.basis + (first + i) * args.q.head_dim, args.q.at(head), args.q.head_dim);
      if (args.index.weights != nullptr) floats[i] *= args.index.weights[(first + i) / 2];
      max_abs = std::max(max_abs, std::abs(floats[i]));
    }
    const bool usable = max_abs > 0 && std::isfinite(max_abs);
    const float inverse = usable ? limit / max_abs : 0.0F;
    packed.steps[head] = usable ? max_abs / limit : 0.0F;
    for (int64_t fc = 0; fc < num_fcs; ++fc) {
      const auto part = [&](int64_t i) {
        const float scaled = floats[i] * inverse;
        return std::isnan(scaled) ? 0 : static_cast<int32_t>(std::lrint(scaled));
      };
      packed.pairs[head * num_fcs + fc] = (part(2 * fc) & 0xFFFF) | (part(2 * fc + 1) << 16);
    }
  }
  return packed;
}

}  // namespace

std::string score_cpu_supports(const ScoreArgs& /*args*/) { return {}; }

void score_cpu(Context& context, const ScoreArgs& args) {
  if (args.num_rows == 0) return;
  const PackedQueries packed = pack_queries(context, args);
  const IndexShape& shape = args.index.shape;
  const int64_t num_fcs = shape.num_fcs;
  const int64_t group = args.q.num_heads / args.num_kv_heads;
  const int64_t heads_per_plane = args.q.num_heads / shape.num_planes;
  const int64_t runs = ceil_div(args.num_rows, kBlocksPerTask * kIndexBlock);
  context.parallel_for(args.num_kv_heads * runs, [&](int64_t task, int /*worker*/) {
    const int64_t kv_head = task / runs;
    const int64_t row0 = task % runs * kBlocksPerTask * kIndexBlock;
    ScoreJob job{};
    job.shape = &shape;
    job.num_rows = std::min(args.num_rows - row0, kBlocksPerTask * kIndexBlock);
    job.bias = args.bias == nullptr ? nullptr : args.bias + row0;
    for (int64_t first = kv_head * group; first < (kv_head + 1) * group; first += job.num_heads) {
      const int64_t plane = first / heads_per_plane;
      job.num_heads = static_cast<int>(std::min<int64_t>(ScoreJob::kMaxHeads, (plane + 1) * heads_per_plane - first));
      job.block = args.index.block(plane, row0 / kIndexBlock);
      for (int i = 0; i < job.num_heads; ++i) {
        const int64_t head = first + i;
        const int64_t set = args.reduce == GroupReduce::kNone ? head : kv_head;
        job.q_pairs[i] = packed.pairs + head * num_fcs;
        job.q_floats[i] = packed.floats + head * num_fcs * 2;
        job.q_step[i] = packed.steps[head];
        job.out[i] = args.scores + set * args.scores_stride + row0;
        job.keep_max[i] = args.reduce == GroupReduce::kMax && head > kv_head * group;
      }
      HWY_DYNAMIC_DISPATCH(RunJob)(job);
    }
  });
}

}  // namespace fasa::ops
#endif  // HWY_ONCE
