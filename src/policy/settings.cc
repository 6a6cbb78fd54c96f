#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "fasa/error.h"
#include "fasa/policy.h"
#include "src/policy/decode_step.h"

namespace fasa {

void check(const PolicySettings& settings) {
  const auto fail = [](const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); };
  if (settings.sinks < 0) fail(fmt::format("sinks is {}: give 0 or more.", settings.sinks));
  if (settings.recent < 0) fail(fmt::format("recent is {}: give 0 or more.", settings.recent));
  constexpr int64_t kMaxRows = int64_t{1} << 31;
  if (settings.budget >= kMaxRows || settings.sinks >= kMaxRows || settings.recent >= kMaxRows) {
    fail("budget, sinks or recent is 2^31 or more: give fewer tokens.");
  }
  if (settings.budget < settings.sinks + settings.recent + 1) {
    fail(fmt::format("budget is {}, but sinks ({}) and recent ({}) are counted inside it: give at least {}.",
                     settings.budget, settings.sinks, settings.recent, settings.sinks + settings.recent + 1));
  }
  if (settings.fc_count < 0) fail(fmt::format("n_tip is {}: give 1 or more.", settings.fc_count));
  if (settings.fc_count == 0 && !(settings.fc_fraction > 0 && settings.fc_fraction <= 1)) {
    fail(
        fmt::format("n_tip is {}% of the head's FCs: give more than 0% and at most 100%.", 100 * settings.fc_fraction));
  }
  if (settings.criterion.empty()) fail("criterion is empty: name a measure of the profile.");
  if (settings.dense_layers < 0) {
    fail(fmt::format("dense_layers is {}: give 0 or more.", settings.dense_layers));
  }
  if (const double slope = budget_slope_for(settings); !(slope >= -1 && slope <= 1)) {
    fail(fmt::format("budget_slope is {}: give -1 to 1.", slope));
  }
  if (settings.page < 1 || settings.page > 65536) {
    fail(fmt::format("page is {} rows: give 1 to 65536.", settings.page));
  }
  if (settings.window < 1 || settings.window > 65536) {
    fail(fmt::format("window is {} queries: give 1 to 65536.", settings.window));
  }
  if (settings.basis != "pre" && settings.basis != "post") {
    fail(fmt::format("basis is '{}': give pre or post.", settings.basis));
  }
}

int64_t forced_recent(const PolicySettings& settings) {
  return settings.kind == PolicyKind::kStreaming ? settings.budget - settings.sinks : settings.recent;
}

std::optional<IndexType> parse_index_type(std::string_view name) {
  if (name == "auto") return std::nullopt;
  if (name == "f16") return IndexType::kF16;
  if (name == "int8") return IndexType::kI8;
  if (name == "int4") return IndexType::kI4;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("index type '{}' is not known: choose one of auto, f16, int8, int4.", name));
}

IndexType index_type_for(const PolicySettings& settings, int64_t head_dim) {
  constexpr int64_t kLargestForInt4 = 128;
  return settings.index_type.value_or(head_dim <= kLargestForInt4 ? IndexType::kI4 : IndexType::kI8);
}

double budget_slope_for(const PolicySettings& settings) {
  return settings.budget_slope.value_or(settings.kind == PolicyKind::kFasa ? 0.3 : 0.0);
}

bool is_dense_layer(const PolicySettings& settings, int32_t layer) {
  return layer < settings.dense_layers || std::ranges::find(settings.dense_list, layer) != settings.dense_list.end();
}

int64_t fcs_per_head(const PolicySettings& settings, int64_t num_fcs) {
  const int64_t wanted =
      settings.fc_count > 0 ? settings.fc_count : std::llround(settings.fc_fraction * static_cast<double>(num_fcs));
  return std::clamp<int64_t>(wanted, 1, num_fcs);
}

}  // namespace fasa
