// What one decode step does, and its settings.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fasa/index.h"

namespace fasa {

enum class PolicyKind : uint8_t {
  kFull,        // attention over every token
  kFasa,        // top tokens by the dominant FCs (the index)
  kOracle,      // top tokens by the exact score q.k: what any selector of this budget aims at
  kRandom,      // random tokens
  kStreaming,   // sinks and recent tokens
  kChannels,    // top tokens by single calibrated channels
  kLoki,        // top tokens by the first principal components of the keys
  kKvQuant,     // top tokens by the whole key in 4 bits
  kSparq,       // top tokens by the query's largest dims
  kQuest,       // top pages by bounds of their keys
  kQuickLlama,  // top pages by representative tokens, for the query and the prompt's end
  kActQkv,      // top pages by their mean keys, for a query made of the window's most active ones
  kH2o,         // the tokens that got most attention so far; others are dropped
  kSnapKv,      // the tokens that the last queries attend to; others are dropped
  kGraphKv,     // as kSnapKv, but tokens similar to the best ones count less
  kZeroMerge,   // as kH2o, but dropped tokens are merged into residual slots
};

// What a policy is, for reports and tables.
struct PolicyInfo {
  PolicyKind kind;
  const char* name;
  const char* paper;      // where the rule is from
  bool drops_tokens;      // a token that was left out may be lost for good
  bool observes_prefill;  // looks at the prompt's last queries (if it saw none, at the first decoded ones)
  // Bytes besides K and V, and bytes read for a decoded token, both for each KV head of a sparse layer. n tokens in
  // the context, d dims of a key, B the budget, kv = bytes of one K and one V row, r = 2 N_tip indexed dims of b bytes,
  // g query heads a KV head, W the window, p rows a page.
  const char* memory;
  const char* reads;
};
// In the order of PolicyKind.
std::span<const PolicyInfo> policy_infos();
const PolicyInfo& policy_info(PolicyKind kind);

struct PolicySettings {
  PolicyKind kind = PolicyKind::kFasa;
  int64_t budget = 256;              // N_fac: rows kept per query, sinks and recent included
  int64_t sinks = 4;                 // first tokens always kept
  int64_t recent = 32;               // last tokens always kept
  double fc_fraction = 0.5;          // N_tip as a fraction of the head's FCs, used when fc_count is 0
  int64_t fc_count = 0;              // N_tip as a count
  std::string criterion = "energy";  // which measure of the profile ranks the FCs
  bool share_fcs = true;             // one set of FCs for a KV group (a smaller index)
  bool share_tokens = false;         // one choice of tokens for a KV group (max of the heads' scores)
  int64_t dense_layers = 2;          // the first layers keep full attention
  std::vector<int32_t> dense_list;   // and so do these
  std::string weights;               // measure that multiplies an FC's score (mean of the plane's heads); empty: none
  bool n_tip_by_layer = false;       // layers share out N_tip times their number by what an FC adds
  // The first sparse layer's budget is 1 + slope times `budget`, the last 1 - slope, linear between; none: budget_slope_for.
  std::optional<double> budget_slope;
  // Of up to so many rows none is left out, whatever `budget`: layer_settings puts the budget here before it scales it.
  int64_t full_rows = 0;
  std::optional<IndexType> index_type;  // none: index_type_for
  int64_t page = 16;                    // rows of a page (policies that choose pages)
  int64_t window = 32;                  // last queries that are looked at (PolicyInfo::observes_prefill)
  std::string basis = "post";           // kLoki: principal components of the keys before ("pre") or after RoPE
  int64_t seed = 1;                     // kRandom
};

// Throws Error(kInvalidArgument) on a setting that cannot work (budget < sinks + recent + 1, ...).
void check(const PolicySettings& settings);

// By PolicyInfo::name; throws Error(kInvalidArgument) naming the known ones.
PolicyKind parse_policy(std::string_view name);
const char* policy_name(PolicyKind kind);
// "f16", "int8", "int4"; none for "auto". Throws Error(kInvalidArgument) on another.
std::optional<IndexType> parse_index_type(std::string_view name);

// What the settings say, else int4 for heads of up to 128 dims and int8 for larger ones: half of the FCs in 4 bits beat a
// quarter in 8 at 64 dims, while at 256 dims one scale is too coarse for so many values of 4 bits (docs/quality.md).
IndexType index_type_for(const PolicySettings& settings, int64_t head_dim);

// What the settings say, else 0.3 for kFasa, whose first sparse layers need more tokens than its last (docs/quality.md), and 0
// for the others, as their papers have it.
double budget_slope_for(const PolicySettings& settings);

bool is_dense_layer(const PolicySettings& settings, int32_t layer);

// N_tip for a head of `num_fcs` FCs: at least 1, at most num_fcs.
int64_t fcs_per_head(const PolicySettings& settings, int64_t num_fcs);

}  // namespace fasa
