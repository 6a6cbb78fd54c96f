#include "integrations/ggml/config.h"

#include <ggml-impl.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <set>
#include <string_view>

#include "fasa/error.h"
#include "src/policy/decode_step.h"

namespace fasa::ggml {
namespace {

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

int64_t parse_count(const std::string& key, std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    fail("FASA setting " + key + "='" + std::string(text) + "' is not a whole number of 0 or more.");
  }
  return value;
}

bool parse_flag(const std::string& key, std::string_view text) {
  if (text == "1" || text == "true" || text == "on") return true;
  if (text == "0" || text == "false" || text == "off") return false;
  fail("FASA setting " + key + "='" + std::string(text) + "' is not a switch: give 0 or 1.");
}

void parse_n_tip(const std::string& key, std::string_view text, PolicySettings& settings) {
  if (text.ends_with('%')) {
    const std::string number(text.substr(0, text.size() - 1));
    char* end = nullptr;
    const double percent = std::strtod(number.c_str(), &end);
    if (number.empty() || *end != '\0') {
      fail("FASA setting " + key + "='" + std::string(text) + "' is not a percentage such as 25%.");
    }
    settings.fc_fraction = percent / 100;
    settings.fc_count = 0;
    return;
  }
  settings.fc_count = parse_count(key, text);
  if (settings.fc_count == 0) fail("FASA setting " + key + " is 0: give 1 FC or more.");
}

// "5+7+29"
void parse_layers(const std::string& key, std::string_view text, PolicySettings& settings) {
  settings.dense_list.clear();
  while (!text.empty()) {
    const std::string_view item = text.substr(0, text.find('+'));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    settings.dense_list.push_back(static_cast<int32_t>(std::min<int64_t>(parse_count(key, item), 1 << 20)));
  }
}

double parse_number(const std::string& key, std::string_view text) {
  const std::string number(text);
  char* end = nullptr;
  const double value = std::strtod(number.c_str(), &end);
  if (number.empty() || *end != '\0') fail("FASA setting " + key + "='" + number + "' is not a number such as 0.5.");
  return value;
}

struct Key {
  const char* name;
  const char* variable;
  void (*set)(const std::string& name, std::string_view value, Config& config);
};

constexpr std::array kKeys = {
    Key{"profile", "FASA_PROFILE", [](const std::string&, std::string_view v, Config& c) { c.profile_path = v; }},
    Key{"policy", "FASA_POLICY",
        [](const std::string&, std::string_view v, Config& c) { c.settings.kind = parse_policy(v); }},
    Key{"budget", "FASA_BUDGET",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.budget = parse_count(k, v); }},
    Key{"sinks", "FASA_SINKS",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.sinks = parse_count(k, v); }},
    Key{"recent", "FASA_RECENT",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.recent = parse_count(k, v); }},
    Key{"n_tip", "FASA_N_TIP",
        [](const std::string& k, std::string_view v, Config& c) { parse_n_tip(k, v, c.settings); }},
    Key{"criterion", "FASA_CRITERION",
        [](const std::string&, std::string_view v, Config& c) { c.settings.criterion = v; }},
    Key{"share_fcs", "FASA_SHARE_FCS",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.share_fcs = parse_flag(k, v); }},
    Key{"share_tokens", "FASA_SHARE_TOKENS",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.share_tokens = parse_flag(k, v); }},
    Key{"dense_layers", "FASA_DENSE_LAYERS",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.dense_layers = parse_count(k, v); }},
    Key{"index", "FASA_INDEX",
        [](const std::string&, std::string_view v, Config& c) { c.settings.index_type = parse_index_type(v); }},
    Key{"dense_list", "FASA_DENSE_LIST",
        [](const std::string& k, std::string_view v, Config& c) { parse_layers(k, v, c.settings); }},
    Key{"weights", "FASA_WEIGHTS", [](const std::string&, std::string_view v, Config& c) { c.settings.weights = v; }},
    Key{"n_tip_by_layer", "FASA_N_TIP_BY_LAYER",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.n_tip_by_layer = parse_flag(k, v); }},
    Key{"budget_slope", "FASA_BUDGET_SLOPE",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.budget_slope = parse_number(k, v); }},
    Key{"page", "FASA_PAGE",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.page = parse_count(k, v); }},
    Key{"window", "FASA_WINDOW",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.window = parse_count(k, v); }},
    Key{"basis", "FASA_BASIS", [](const std::string&, std::string_view v, Config& c) { c.settings.basis = v; }},
    Key{"seed", "FASA_SEED",
        [](const std::string& k, std::string_view v, Config& c) { c.settings.seed = parse_count(k, v); }},
    Key{"verbose", "FASA_VERBOSE",
        [](const std::string& k, std::string_view v, Config& c) { c.verbose = parse_flag(k, v); }},
};

void load(Config& config) {
  check(config.settings);
  if (config.profile_path.empty()) {
    config.problem =
        "FASA does nothing: FASA_PROFILE is not set; make a profile of this model with "
        "`fasa calibrate` and set FASA_PROFILE to its path.";
    return;
  }
  auto profile = std::make_shared<Profile>(load_profile(config.profile_path));
  const Policy& policy = find_policy(config.settings.kind);
  for (const LayerProfile& layer : profile->layers) {
    if (layer.measures.empty() || policy.index == nullptr) continue;
    policy.index(layer, layer_settings(*profile, config.settings, layer.layer));  // throws: no such data
  }
  config.profile = std::move(profile);
}

std::shared_ptr<const Config> from_environment() {
  auto config = std::make_shared<Config>();
  try {
    for (const Key& key : kKeys) {
      const char* value = std::getenv(key.variable);
      if (value != nullptr && *value != '\0') key.set(key.variable, value, *config);
    }
    load(*config);
  } catch (const std::exception& error) {
    config->profile = nullptr;
    config->problem = std::string("FASA does nothing: ") + error.what();
  }
  return config;
}

struct State {
  std::mutex mutex;
  std::shared_ptr<const Config> config;
  std::set<std::string> said;
};

// Never destroyed: buffers outlive static objects.
State& state() {
  static State* const instance = new State;
  return *instance;
}

}  // namespace

const LayerProfile* Config::sparse_layer(int layer) const {
  if (profile == nullptr) return nullptr;
  const LayerProfile* found = profile->find(layer);
  if (found == nullptr || found->sliding_window || found->measures.empty()) return nullptr;
  return found;
}

std::shared_ptr<const Config> current_config() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (s.config == nullptr) s.config = from_environment();
  return s.config;
}

void configure(const std::string& pairs) {
  auto config = std::make_shared<Config>();
  size_t at = 0;
  while ((at = pairs.find_first_not_of(" ,\t\n", at)) != std::string::npos) {
    const size_t end = std::min(pairs.find_first_of(" ,\t\n", at), pairs.size());
    const std::string pair = pairs.substr(at, end - at);
    at = end;
    const size_t equals = pair.find('=');
    const std::string name = pair.substr(0, equals);
    const auto* key = std::ranges::find_if(kKeys, [&](const Key& k) { return name == k.name; });
    if (equals == std::string::npos || key == kKeys.end()) {
      std::string known;
      for (const Key& k : kKeys) known += std::string(known.empty() ? "" : ", ") + k.name;
      fail("FASA setting '" + pair + "' is not key=value with a known key (" + known + ").");
    }
    key->set(name, std::string_view(pair).substr(equals + 1), *config);
  }
  load(*config);
  State& s = state();
  const std::lock_guard lock(s.mutex);
  s.config = std::move(config);
  s.said.clear();
}

void warn_once(const std::string& message) {
  State& s = state();
  {
    const std::lock_guard lock(s.mutex);
    if (!s.said.insert(message).second) return;
  }
  GGML_LOG_WARN("%s\n", message.c_str());
}

}  // namespace fasa::ggml
