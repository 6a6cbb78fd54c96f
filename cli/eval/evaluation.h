// What the evaluations share: a session whose lanes open one after another, prefill that happens once, results that stay.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/eval/disk_cache.h"
#include "cli/eval/results.h"
#include "cli/options.h"
#include "cli/session.h"

namespace fasa::cli {

// Prefill is this many times as fast as decoding, roughly.
inline constexpr int64_t kPrefillShare = 20;

struct EvalOptions {
  CommonOptions common;
  RowOptions rows;
  std::string cache_dir;
  double cache_gib = 16;
};

// Model, profile, policies, budgets; --json, --out; --cache. `default_policies` as in add_common_options.
void add_eval_options(CLI::App& command, EvalOptions& options, const std::string& default_policies);

// A prompt that was prefilled once.
struct PrefilledState {
  std::vector<uint8_t> bytes;
  std::vector<llama_token> tokens;
};

class Evaluation {
 public:
  Evaluation(const EvalOptions& options, const std::function<ContextOptions(const Model&)>& size);

  Session& session() { return session_; }
  const Model& model() const { return session_.model(); }
  ResultStore& results() { return results_; }
  const DiskCache& cache() const { return cache_; }

  // The settings of a lane as they stand in rows and keys: policy, budget, and all others that this policy reads.
  Json lane_settings(const Lane& lane) const;

  // The state after `tokens`, by plain llama.cpp: from the cache, else computed in the reference context and kept there.
  PrefilledState prefill(std::span<const llama_token> tokens, const PrefillProgress& progress);
  // Puts the lane there. A policy that watches the prefill does one of its own.
  void start(Lane& lane, const PrefilledState& state);

  // Identifies model file and engine in keys of the cache and of results.
  const std::string& model_key() const { return model_key_; }

 private:
  EvalOptions options_;
  DiskCache cache_;
  ResultStore results_;
  Session session_;
  std::string model_key_;
  std::string profile_key_;
  int64_t head_dim_ = 0;  // of the profile
};

// A row's policy and budget in tables: "fasa 256".
std::string lane_label(const Json& row);

// FNV-1a 64 of tokens, in hex.
std::string hash_tokens(std::span<const llama_token> tokens);

}  // namespace fasa::cli
