#include "cli/eval/single_ca.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/numbers.h"
#include "fasa/error.h"

namespace fasa::cli {

Json single_agreement(const Profile& profile, const std::string& criterion) {
  std::vector<double> best;
  std::vector<double> median;
  std::vector<double> above;
  Json layers = Json::array();
  Json heatmap = Json::array();
  for (const LayerProfile& layer : profile.layers) {
    if (layer.measures.empty()) continue;
    const auto at = layer.measures.find(criterion);
    if (at == layer.measures.end()) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("the profile has no measure '{}': choose ca64, ca256, ca512 or ca1024", criterion));
    }
    const auto fcs = static_cast<size_t>(num_fcs(layer.rope));
    std::vector<double> row(fcs, 0.0);
    for (int32_t head = 0; head < layer.num_q_heads; ++head) {
      const auto* first = at->second.data() + static_cast<size_t>(head) * fcs;
      const std::vector<double> values(first, first + fcs);
      best.push_back(*std::ranges::max_element(values));
      median.push_back(quantile(values, 0.5));
      const auto high = std::ranges::count_if(values, [&](double value) { return value > best.back() / 2; });
      above.push_back(static_cast<double>(high) / static_cast<double>(fcs));
      for (size_t fc = 0; fc < fcs; ++fc) row[fc] += values[fc] / layer.num_q_heads;
    }
    for (double& value : row) value = std::round(value * 1e4) / 1e4;
    layers.push_back(layer.layer);
    heatmap.push_back(row);
  }
  return {{"heads", best.size()}, {"best", mean(best)}, {"median", mean(median)}, {"share_above_half", mean(above)},
          {"layers", layers},     {"heatmap", heatmap}};
}

}  // namespace fasa::cli
