// Calibration without an engine: what each frequency chunk (FC) says about a query's attention.
//
//   alpha_t = q . k_t = sum_i alpha_t^(i), alpha_t^(i) the part of it from FC i (after RoPE,
//   unscaled)
//
// A criterion maps the scores of one decode query, head and FC to a number; a measure is its mean
// over the queries.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fasa/context.h"
#include "fasa/rope.h"
#include "fasa/tensor.h"

namespace fasa::calibrate {

inline constexpr std::array<int64_t, 4> kAgreementSizes = {64, 256, 512, 1024};

// One decode query, query head and FC.
struct ChunkSample {
  std::span<const float> total;  // alpha_t, all visible rows
  std::span<const float> chunk;  // alpha_t^(i)
  std::span<const float> body;   // the part of `chunk` outside sinks and recent rows
  // |TopK(alpha) ∩ TopK(alpha^(i))| for each K of kAgreementSizes (ties: lower row); -1 where K >=
  // rows.
  std::array<int32_t, kAgreementSizes.size()> agreement;
};

struct Criterion {
  const char* name;
  const char* meaning;
  // Nothing: this query says nothing about it (too few rows) and is not counted.
  std::optional<double> (*value)(const ChunkSample& sample);
};
std::span<const Criterion> criteria();

struct StatisticsSettings {
  int64_t sinks = 4;    // rows at the start, and
  int64_t recent = 32;  // at the end, that variance and energy leave out (FASA always keeps them)
};

struct QuerySample {
  HeadsView q;           // [num_q_heads, head_dim]
  int64_t num_rows = 0;  // it sees rows 0..num_rows-1 of the cache, its own included
};

// The sums of one layer. Results do not depend on the number of threads.
class LayerStatistics {
 public:
  LayerStatistics(int32_t num_q_heads, int32_t num_kv_heads, const RopeSpec& rope,
                  const StatisticsSettings& settings = {});

  // k: [num_rows, num_kv_heads, head_dim] f32, f16 or bf16. Extra memory: a copy in f32 of one KV
  // head's keys per worker. Throws Error(kInvalidArgument) where shapes disagree or a score is not
  // finite.
  void add(Context& context, const CacheView& k, std::span<const QuerySample> queries);

  // Only criteria that counted at least one query.
  std::map<std::string, std::vector<float>> measures() const;
  // "abs_qk" -> [num_q_heads][head_dim]: mean over queries and their rows of |q_c k_c|. Empty without queries.
  std::map<std::string, std::vector<float>> channels() const;
  int64_t num_queries() const { return num_queries_; }

 private:
  struct Sum {
    double value = 0;
    int64_t count = 0;
  };
  struct Work;
  void check_arguments(const CacheView& k, std::span<const QuerySample> queries) const;
  bool add_head(Work& work, const QuerySample& query, int64_t q_head);
  void add_channels(const Work& work, const QuerySample& query, int64_t q_head);

  int32_t num_q_heads_;
  int32_t num_kv_heads_;
  RopeSpec rope_;
  int32_t num_fcs_;
  StatisticsSettings settings_;
  int64_t num_queries_ = 0;
  std::vector<Sum> sums_;             // [num_q_heads][num_fcs][criteria]
  std::vector<double> channel_sums_;  // [num_q_heads][head_dim]
};

}  // namespace fasa::calibrate
