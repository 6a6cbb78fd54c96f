#include "src/calibrate/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "fasa/error.h"
#include "src/calibrate/top_sets.h"
#include "src/core/dtype.h"

namespace fasa::calibrate {
namespace {

// keys[2 * fc], keys[2 * fc + 1]: the two dims of an FC, each over all rows, so that FCs stream.
void transpose_keys(const CacheView& k, int64_t kv_head, int64_t rows, const RopeSpec& rope, float* keys) {
  const int32_t fcs = num_fcs(rope);
  std::vector<DimPair> dims(fcs);
  for (int32_t fc = 0; fc < fcs; ++fc) dims[fc] = fc_dims(rope, fc);
  constexpr int64_t kTile = 16;  // rows whose values fill whole cache lines of the result
  for (int64_t t0 = 0; t0 < rows; t0 += kTile) {
    const int64_t t1 = std::min(rows, t0 + kTile);
    for (int32_t fc = 0; fc < fcs; ++fc) {
      for (int64_t t = t0; t < t1; ++t) {
        const std::byte* row = k.at(t, kv_head);
        keys[(2 * fc) * rows + t] = load_value(k.dtype, row, dims[fc].first);
        keys[(2 * fc + 1) * rows + t] = load_value(k.dtype, row, dims[fc].second);
      }
    }
  }
}

}  // namespace

// One worker's buffers.
struct LayerStatistics::Work {
  const float* keys = nullptr;  // of the current KV head, [2 * num_fcs][stride]
  int64_t stride = 0;
  std::vector<float> total;
  std::vector<float> chunk;
  TopSetsScratch top;
  std::vector<int32_t> top_rows[kAgreementSizes.size()];  // rows of TopK(alpha) not in a smaller K
};

LayerStatistics::LayerStatistics(int32_t num_q_heads, int32_t num_kv_heads, const RopeSpec& rope,
                                 const StatisticsSettings& settings)
    : num_q_heads_(num_q_heads),
      num_kv_heads_(num_kv_heads),
      rope_(rope),
      num_fcs_(num_fcs(rope)),
      settings_(settings) {
  check(rope);
  if (num_q_heads < 1 || num_kv_heads < 1 || num_q_heads % num_kv_heads != 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("Calibration needs query heads that are a multiple of the KV heads, "
                            "not {} and {}.",
                            num_q_heads, num_kv_heads));
  }
  sums_.resize(static_cast<size_t>(num_q_heads) * num_fcs_ * criteria().size());
  channel_sums_.resize(static_cast<size_t>(num_q_heads) * static_cast<size_t>(rope.head_dim));
}

void LayerStatistics::check_arguments(const CacheView& k, std::span<const QuerySample> queries) const {
  const auto fail = [](const std::string& what) {
    throw Error(ErrorCode::kInvalidArgument, "Calibration: " + what + ".");
  };
  if (k.dtype == DType::kQ8_0) fail("keys must be f32, f16 or bf16, not quantised");
  if (k.num_heads != num_kv_heads_ || k.head_dim != rope_.head_dim) {
    fail(fmt::format("the keys have {} heads of {} dims, the layer {} of {}", k.num_heads, k.head_dim, num_kv_heads_,
                     rope_.head_dim));
  }
  for (const QuerySample& query : queries) {
    if (query.q.num_heads != num_q_heads_ || query.q.head_dim != rope_.head_dim) {
      fail(fmt::format("the query has {} heads of {} dims, the layer {} of {}", query.q.num_heads, query.q.head_dim,
                       num_q_heads_, rope_.head_dim));
    }
    if (query.num_rows < 1 || query.num_rows > k.num_rows) {
      fail(fmt::format("a query sees {} rows of a cache of {}", query.num_rows, k.num_rows));
    }
  }
}

void LayerStatistics::add(Context& context, const CacheView& k, std::span<const QuerySample> queries) {
  check_arguments(k, queries);
  int64_t rows = 0;
  for (const QuerySample& query : queries) rows = std::max(rows, query.num_rows);
  const int64_t head_size = static_cast<int64_t>(num_fcs_) * 2 * rows;
  std::vector<float> keys(static_cast<size_t>(num_kv_heads_ * head_size));
  context.parallel_for(num_kv_heads_, [&](int64_t kv_head, int) {
    transpose_keys(k, kv_head, rows, rope_, keys.data() + kv_head * head_size);
  });
  std::vector<Work> workers(context.num_workers());
  for (Work& work : workers) {
    work.total.resize(rows);
    work.chunk.resize(rows);
    work.stride = rows;
  }
  std::atomic<bool> finite = true;
  context.parallel_for(num_q_heads_, [&](int64_t q_head, int worker) {
    Work& work = workers[worker];
    work.keys = keys.data() + kv_head_of(q_head, num_q_heads_, num_kv_heads_) * head_size;
    for (const QuerySample& query : queries) {
      if (!add_head(work, query, q_head)) finite = false;
      add_channels(work, query, q_head);
    }
  });
  if (!finite) {
    throw Error(ErrorCode::kInvalidArgument,
                "Calibration: the model computed scores that are not finite numbers: is its file "
                "damaged?");
  }
  num_queries_ += static_cast<int64_t>(queries.size());
}

// Adds every FC of one query head; false if a score is not finite.
bool LayerStatistics::add_head(Work& work, const QuerySample& query, int64_t q_head) {
  const int64_t rows = query.num_rows;
  const float* q = query.q.at(q_head);
  const std::span<float> total(work.total.data(), rows);
  const std::span<float> chunk(work.chunk.data(), rows);
  std::fill(total.begin(), total.end(), 0.0F);
  const auto chunk_scores = [&](int32_t fc, auto store) {
    const DimPair pair = fc_dims(rope_, fc);
    const float q0 = q[pair.first];
    const float q1 = q[pair.second];
    const float* k0 = work.keys + (2 * fc) * work.stride;
    const float* k1 = k0 + work.stride;
    for (int64_t t = 0; t < rows; ++t) store(t, q0 * k0[t] + q1 * k1[t]);
  };
  float* sum = total.data();
  for (int32_t fc = 0; fc < num_fcs_; ++fc) {
    chunk_scores(fc, [sum](int64_t t, float score) { sum[t] += score; });
  }
  for (const float score : total) {
    if (!std::isfinite(score)) return false;
  }

  std::array<TopThreshold, kAgreementSizes.size()> thresholds;
  top_thresholds(total, work.top, thresholds);
  for (auto& list : work.top_rows) list.clear();
  for (int64_t t = 0; t < rows; ++t) {
    for (size_t i = 0; i < kAgreementSizes.size() && kAgreementSizes[i] < rows; ++i) {
      if (!thresholds[i].contains(total[t], t)) continue;
      work.top_rows[i].push_back(static_cast<int32_t>(t));
      break;
    }
  }

  const int64_t first = std::min(settings_.sinks, rows);
  const int64_t last = std::max(first, rows - settings_.recent);
  ChunkSample sample{.total = total, .chunk = chunk, .body = chunk.subspan(first, last - first), .agreement = {}};
  float* out = chunk.data();
  for (int32_t fc = 0; fc < num_fcs_; ++fc) {
    chunk_scores(fc, [out](int64_t t, float score) { out[t] = score; });
    top_thresholds(chunk, work.top, thresholds);
    for (size_t i = 0; i < kAgreementSizes.size(); ++i) {
      sample.agreement[i] = kAgreementSizes[i] < rows ? 0 : -1;
      for (size_t list = 0; list <= i && kAgreementSizes[i] < rows; ++list) {
        for (const int32_t t : work.top_rows[list]) {
          sample.agreement[i] += thresholds[i].contains(chunk[t], t) ? 1 : 0;
        }
      }
    }
    Sum* sums = sums_.data() + (q_head * num_fcs_ + fc) * static_cast<int64_t>(criteria().size());
    for (size_t c = 0; c < criteria().size(); ++c) {
      const std::optional<double> value = criteria()[c].value(sample);
      if (!value) continue;
      sums[c].value += *value;
      ++sums[c].count;
    }
  }
  return true;
}

void LayerStatistics::add_channels(const Work& work, const QuerySample& query, int64_t q_head) {
  constexpr int64_t kLanes = 8;  // a fixed order of summation that SIMD can follow
  const int64_t rows = query.num_rows;
  for (int32_t fc = 0; fc < num_fcs_; ++fc) {
    const DimPair pair = fc_dims(rope_, fc);
    for (const int32_t second : {0, 1}) {
      const float* k = work.keys + (2 * fc + second) * work.stride;
      float lane[kLanes] = {};
      for (int64_t t = 0; t + kLanes <= rows; t += kLanes) {
        for (int64_t i = 0; i < kLanes; ++i) lane[i] += std::abs(k[t + i]);
      }
      double sum = 0;
      for (int64_t t = rows / kLanes * kLanes; t < rows; ++t) sum += static_cast<double>(std::abs(k[t]));
      for (const float l : lane) sum += static_cast<double>(l);
      const int32_t c = second == 0 ? pair.first : pair.second;
      channel_sums_[q_head * rope_.head_dim + c] +=
          static_cast<double>(std::abs(query.q.at(q_head)[c])) * sum / static_cast<double>(rows);
    }
  }
}

std::map<std::string, std::vector<float>> LayerStatistics::channels() const {
  std::map<std::string, std::vector<float>> result;
  if (num_queries_ == 0) return result;
  std::vector<float>& values = result["abs_qk"];
  for (const double sum : channel_sums_) values.push_back(static_cast<float>(sum / static_cast<double>(num_queries_)));
  return result;
}

std::map<std::string, std::vector<float>> LayerStatistics::measures() const {
  std::map<std::string, std::vector<float>> result;
  const size_t per_fc = criteria().size();
  for (size_t c = 0; c < per_fc; ++c) {
    std::vector<float> values;
    for (size_t i = c; i < sums_.size(); i += per_fc) {
      if (sums_[i].count == 0) break;
      values.push_back(static_cast<float>(sums_[i].value / static_cast<double>(sums_[i].count)));
    }
    if (values.size() * per_fc == sums_.size()) result[criteria()[c].name] = std::move(values);
  }
  return result;
}

}  // namespace fasa::calibrate
