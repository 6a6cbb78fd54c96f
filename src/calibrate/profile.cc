#include "fasa/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "fasa/error.h"
#include "src/calibrate/profile_check.h"

namespace fasa {

const LayerProfile* Profile::find(int32_t layer) const {
  const auto at = std::lower_bound(layers.begin(), layers.end(), layer,
                                   [](const LayerProfile& l, int32_t wanted) { return l.layer < wanted; });
  return at != layers.end() && at->layer == layer ? &*at : nullptr;
}

uint64_t fingerprint(const void* bytes, size_t size) {
  uint64_t hash = 0xcbf29ce484222325U;
  const auto* p = static_cast<const unsigned char*>(bytes);
  for (size_t i = 0; i < size; ++i) hash = (hash ^ p[i]) * 0x100000001b3U;
  return hash;
}

std::string layer_problem(const LayerProfile& layer) {
  if (layer.layer < 0 || layer.layer >= kMaxLayers) {
    return fmt::format("a layer has the number {}, outside 0..{}", layer.layer, kMaxLayers - 1);
  }
  const auto problem = [&](const std::string& what) { return fmt::format("layer {} has {}", layer.layer, what); };
  if (layer.num_q_heads < 1 || layer.num_q_heads > kMaxHeads || layer.num_kv_heads < 1 ||
      layer.num_q_heads % layer.num_kv_heads != 0) {
    return problem(fmt::format("{} query heads and {} KV heads, not a multiple within 1..{}", layer.num_q_heads,
                               layer.num_kv_heads, kMaxHeads));
  }
  try {
    check(layer.rope);
  } catch (const Error& e) {
    return problem(std::string("a bad rope: ") + e.what());
  }
  if (!std::isfinite(layer.rope.freq_base) || layer.rope.freq_base <= 0) {
    return problem("a rope freq_base that is not a positive number");
  }
  // At most kMaxHeads * 2048, so no overflow.
  const auto expected = static_cast<size_t>(layer.num_q_heads) * num_fcs(layer.rope);
  for (const auto& [name, values] : layer.measures) {
    if (values.size() != expected) {
      return problem(fmt::format("{} values of '{}' where its heads and FCs make {}", values.size(), name, expected));
    }
    for (const float v : values) {
      if (!std::isfinite(v) || v < 0) {
        return problem(fmt::format("a value of '{}' that is negative or not finite", name));
      }
    }
  }
  for (const auto& [name, values] : layer.channels) {
    const auto channels = static_cast<size_t>(layer.num_q_heads) * static_cast<size_t>(layer.rope.head_dim);
    if (values.size() != channels) {
      return problem(fmt::format("{} channel values of '{}' where its heads make {}", values.size(), name, channels));
    }
    if (!std::ranges::all_of(values, [](float v) { return std::isfinite(v) && v >= 0; })) {
      return problem(fmt::format("a channel value of '{}' that is negative or not finite", name));
    }
  }
  for (const auto& [name, values] : layer.bases) {
    const auto axis = static_cast<size_t>(layer.num_kv_heads) * static_cast<size_t>(layer.rope.head_dim);
    if (values.empty() || values.size() % axis != 0 ||
        values.size() / axis > static_cast<size_t>(layer.rope.head_dim)) {
      return problem(fmt::format("a basis '{}' of {} values, not 1 to {} axes for each KV head", name, values.size(),
                                 layer.rope.head_dim));
    }
    if (!std::ranges::all_of(values, [](float v) { return std::isfinite(v); })) {
      return problem(fmt::format("a value of the basis '{}' that is not finite", name));
    }
  }
  if (layer.sliding_window && !(layer.measures.empty() && layer.channels.empty() && layer.bases.empty())) {
    return problem("measures though it is a sliding-window layer");
  }
  if (!layer.sliding_window && layer.measures.empty()) return problem("no measures");
  return "";
}

std::string profile_problem(const Profile& profile) {
  if (profile.layers.empty()) return "it has no layers";
  const LayerProfile* first_measured = nullptr;
  int32_t previous = -1;
  for (const LayerProfile& layer : profile.layers) {
    if (std::string problem = layer_problem(layer); !problem.empty()) return problem;
    if (layer.layer == previous) return fmt::format("layer {} occurs twice", layer.layer);
    if (layer.layer < previous) {
      return fmt::format("layer {} comes after layer {}", layer.layer, previous);
    }
    previous = layer.layer;
    if (layer.sliding_window) continue;
    if (first_measured == nullptr) first_measured = &layer;
    for (const auto& [name, values] : first_measured->measures) {
      if (!layer.measures.contains(name)) {
        return fmt::format("layer {} lacks the measure '{}' that layer {} has", layer.layer, name,
                           first_measured->layer);
      }
    }
    for (const auto& [name, values] : layer.measures) {
      if (!first_measured->measures.contains(name)) {
        return fmt::format("layer {} lacks the measure '{}' that layer {} has", first_measured->layer, name,
                           layer.layer);
      }
    }
  }
  return "";
}

namespace {

std::vector<int32_t> best(const std::vector<double>& values, int64_t count) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  order.resize(static_cast<size_t>(count));
  return order;
}

const std::vector<float>& measure_of(const LayerProfile& layer, const std::string& criterion) {
  const auto at = layer.measures.find(criterion);
  if (at != layer.measures.end()) return at->second;
  std::string known;
  for (const auto& [name, values] : layer.measures) known += (known.empty() ? "" : ", ") + name;
  throw Error(ErrorCode::kInvalidArgument,
              known.empty() ? fmt::format("Layer {} has no measures, so no dominant FCs: leave it dense.", layer.layer)
                            : fmt::format("The profile has no criterion '{}' for layer {}: choose one of {}.",
                                          criterion, layer.layer, known));
}

}  // namespace

std::vector<std::vector<double>> fc_shares(const LayerProfile& layer, const PolicySettings& settings) {
  const std::vector<float>& measure = measure_of(layer, settings.criterion);
  const int64_t fcs = num_fcs(layer.rope);
  const int64_t planes = settings.share_fcs ? layer.num_kv_heads : layer.num_q_heads;
  const int64_t group = layer.num_q_heads / planes;
  std::vector<std::vector<double>> result;
  for (int64_t plane = 0; plane < planes; ++plane) {
    std::vector<double> value(fcs, 0.0);
    for (int64_t head = plane * group; head < (plane + 1) * group; ++head) {
      const float* row = measure.data() + head * fcs;
      const double sum = std::accumulate(row, row + fcs, 0.0);
      if (sum == 0) continue;
      for (int64_t fc = 0; fc < fcs; ++fc) value[fc] = std::max(value[fc], row[fc] / sum);
    }
    result.push_back(std::move(value));
  }
  return result;
}

std::vector<std::vector<int32_t>> dominant_fcs(const LayerProfile& layer, const PolicySettings& settings) {
  const int64_t n_tip = fcs_per_head(settings, num_fcs(layer.rope));
  std::vector<std::vector<int32_t>> result;
  for (const auto& shares : fc_shares(layer, settings)) result.push_back(best(shares, n_tip));
  return result;
}

std::vector<float> fc_weights(const LayerProfile& layer, const PolicySettings& settings) {
  std::vector<float> weights;
  if (settings.weights.empty()) return weights;
  const std::vector<float>& measure = measure_of(layer, settings.weights);
  const auto planes = dominant_fcs(layer, settings);
  const int64_t fcs = num_fcs(layer.rope);
  const auto group = layer.num_q_heads / static_cast<int64_t>(planes.size());
  for (size_t plane = 0; plane < planes.size(); ++plane) {
    for (const int32_t fc : planes[plane]) {
      float sum = 0;
      for (int64_t i = 0; i < group; ++i) sum += measure[(static_cast<int64_t>(plane) * group + i) * fcs + fc];
      weights.push_back(sum / static_cast<float>(group));
    }
  }
  return weights;
}

namespace {

// The gains of an FC more in one layer: the mean over planes of the n-th best share, n from 0.
std::vector<double> gains(const LayerProfile& layer, const PolicySettings& settings) {
  const auto shares = fc_shares(layer, settings);
  std::vector<double> result(shares.front().size(), 0.0);
  for (std::vector<double> plane : shares) {
    std::ranges::sort(plane, std::greater<>());
    for (size_t n = 0; n < plane.size(); ++n) result[n] += plane[n] / static_cast<double>(shares.size());
  }
  return result;
}

// Gives every layer one FC, then each further one to the layer where it adds most (ties: the lower layer).
int64_t shared_out(const std::vector<const LayerProfile*>& layers, const PolicySettings& settings, size_t wanted) {
  std::vector<std::vector<double>> gain;
  int64_t left = 0;
  for (const LayerProfile* layer : layers) {
    gain.push_back(gains(*layer, settings));
    left += fcs_per_head(settings, num_fcs(layer->rope)) - 1;
  }
  std::vector<size_t> count(layers.size(), 1);
  for (; left > 0; --left) {
    size_t most = layers.size();
    for (size_t l = 0; l < layers.size(); ++l) {
      if (count[l] == gain[l].size()) continue;
      if (most == layers.size() || gain[l][count[l]] > gain[most][count[most]]) most = l;
    }
    if (most == layers.size()) break;
    ++count[most];
  }
  return static_cast<int64_t>(count[wanted]);
}

}  // namespace

PolicySettings layer_settings(const Profile& profile, const PolicySettings& settings, int32_t layer) {
  PolicySettings result = settings;
  std::vector<const LayerProfile*> sparse;
  size_t at = profile.layers.size();
  for (const LayerProfile& l : profile.layers) {
    if (l.measures.empty() || is_dense_layer(settings, l.layer)) continue;
    if (l.layer == layer) at = sparse.size();
    sparse.push_back(&l);
  }
  if (at >= sparse.size()) return result;
  if (settings.n_tip_by_layer) result.fc_count = shared_out(sparse, settings, at);
  if (const double slope = budget_slope_for(settings); slope != 0 && sparse.size() > 1) {
    const double place = 1 - 2 * static_cast<double>(at) / static_cast<double>(sparse.size() - 1);
    const auto scaled = std::llround(static_cast<double>(settings.budget) * (1 + slope * place));
    result.budget = std::max<int64_t>(scaled, settings.sinks + settings.recent + 1);
    result.full_rows = settings.budget;
  }
  return result;
}

std::vector<int16_t> dominant_dims(const LayerProfile& layer, const PolicySettings& settings) {
  std::vector<int16_t> dims;
  for (const auto& plane : dominant_fcs(layer, settings)) {
    for (const int32_t fc : plane) {
      const DimPair pair = fc_dims(layer.rope, fc);
      dims.push_back(static_cast<int16_t>(pair.first));
      dims.push_back(static_cast<int16_t>(pair.second));
    }
  }
  return dims;
}

}  // namespace fasa
