// What one decode step does, and its settings.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "fasa/index.h"

namespace fasa {

enum class PolicyKind : uint8_t {
  kFull,    // attention over every token
  kFasa,    // top tokens by the dominant FCs (the index)
  kOracle,  // top tokens by the exact score q.k: what any selector of this budget aims at
};

struct PolicySettings {
  PolicyKind kind = PolicyKind::kFasa;
  int64_t budget = 256;                // N_fac: rows kept per query, sinks and recent included
  int64_t sinks = 4;                   // first tokens always kept
  int64_t recent = 32;                 // last tokens always kept
  double fc_fraction = 0.25;           // N_tip as a fraction of the head's FCs, used when fc_count is 0
  int64_t fc_count = 0;                // N_tip as a count
  std::string criterion = "variance";  // which measure of the profile ranks the FCs
  bool share_fcs = true;               // one set of FCs for a KV group (a smaller index)
  bool share_tokens = false;           // one choice of tokens for a KV group (max of the heads' scores)
  int64_t dense_layers = 2;            // the first layers keep full attention
  IndexType index_type = IndexType::kI8;
};

// Throws Error(kInvalidArgument) on a setting that cannot work (budget < sinks + recent + 1, ...).
void check(const PolicySettings& settings);

// "full", "fasa", "oracle"; throws Error(kInvalidArgument) naming the known ones.
PolicyKind parse_policy(std::string_view name);
const char* policy_name(PolicyKind kind);
IndexType parse_index_type(std::string_view name);  // "f16", "int8", "int4"

// N_tip for a head of `num_fcs` FCs: at least 1, at most num_fcs.
int64_t fcs_per_head(const PolicySettings& settings, int64_t num_fcs);

}  // namespace fasa
