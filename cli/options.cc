#include "cli/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "fasa/error.h"

namespace fasa::cli {
namespace {

void parse_n_tip(const std::string& text, PolicySettings& settings) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const std::string rest = end;
  const bool percent = rest == "%";
  if (end == text.c_str() || !(value > 0) || (!percent && (!rest.empty() || value != std::floor(value))) ||
      (percent && value > 100) || value > 4096) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--n-tip {} is neither a share of a head's frequency chunks (25%) nor "
                            "a count of them (8)",
                            text));
  }
  settings.fc_count = percent ? 0 : static_cast<int64_t>(value);
  if (percent) settings.fc_fraction = value / 100;
}

int physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 1;
  std::set<std::string> cores;  // CPUs of one core list the same siblings
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    std::string siblings;
    std::getline(file, siblings);
    cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
  }
  return std::max<int>(1, static_cast<int>(cores.size()));
}

}  // namespace

void add_common_options(CLI::App& command, CommonOptions& options, Arity policies, Arity budgets,
                        const std::string& default_policies) {
  options.policies = CLI::detail::split(default_policies, ',');
  options.budgets = {options.defaults.budget};
  command.add_option("-m,--model", options.model, "GGUF model (default: FASA_MODEL, else the demo's SmolLM2-135M)");
  command.add_option("--profile", options.profile,
                     "Profile from `fasa calibrate` (default: MODEL.fasa.json beside the model, "
                     "else in the current directory)");
  command.add_option("-t,--threads", options.threads, "Threads (default: the physical cores)")
      ->check(CLI::Range(1, 1024));
  std::string names;
  for (const PolicyInfo& info : policy_infos()) names += (names.empty() ? "" : ", ") + std::string(info.name);
  auto* policy =
      command.add_option("--policy", options.policies,
                         "Which tokens a query attends to: full is llama.cpp's own attention, oracle the top "
                         "tokens by the exact score; docs/policies.md tells of all: " +
                             names);
  auto* budget =
      command.add_option("--budget", options.budgets, "Tokens that a query attends to, sinks and recent included");
  policy->default_str(default_policies)->delimiter(',')->expected(1, policies == Arity::kOne ? 1 : 32);
  budget->default_str(std::to_string(options.defaults.budget))
      ->delimiter(',')
      ->expected(1, budgets == Arity::kOne ? 1 : 32);
  const std::string group = "Selection";
  command
      .add_option("--n-tip", options.n_tip,
                  "Frequency chunks that predict importance: a share of the head's (25%) or a count")
      ->default_str(options.n_tip)
      ->group(group);
  command
      .add_option("--criterion", options.defaults.criterion,
                  "Measure of the profile that ranks the chunks: energy, variance, ca64, ca256, ...")
      ->default_str(options.defaults.criterion)
      ->group(group);
  command.add_option("--sinks", options.defaults.sinks, "First tokens that are always kept")
      ->default_str(std::to_string(options.defaults.sinks))
      ->group(group);
  command.add_option("--recent", options.defaults.recent, "Last tokens that are always kept")
      ->default_str(std::to_string(options.defaults.recent))
      ->group(group);
  command
      .add_flag("--share-fcs,!--no-share-fcs", options.defaults.share_fcs,
                "One set of chunks for a KV group: a smaller index (default) or one a query head")
      ->group(group);
  command
      .add_flag("--share-tokens,!--no-share-tokens", options.defaults.share_tokens,
                "One choice of tokens for a KV group, or one a query head (default)")
      ->group(group);
  command.add_option("--dense-layers", options.defaults.dense_layers, "First layers that keep full attention")
      ->default_str(std::to_string(options.defaults.dense_layers))
      ->group(group);
  command
      .add_option("--dense-list", options.defaults.dense_list,
                  "Further layers that keep full attention, by their numbers")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command
      .add_option("--weights", options.defaults.weights,
                  "Measure of the profile that weighs the chunks' scores (slope); default: all weigh the same")
      ->group(group);
  command
      .add_flag("--n-tip-by-layer", options.defaults.n_tip_by_layer,
                "Share the total of --n-tip out over the layers by what a chunk adds by the criterion")
      ->group(group);
  command
      .add_option("--budget-slope", options.defaults.budget_slope,
                  "Budget of the first sparse layer is 1 + slope times --budget, of the last 1 - slope, linear between "
                  "(default: 0.3 for fasa, 0 for the others)")
      ->check(CLI::Range(-1.0, 1.0))
      ->group(group);
  command.add_option("--page", options.defaults.page, "Rows of a page (quest, quickllama, actqkv)")
      ->default_str(std::to_string(options.defaults.page))
      ->group(group);
  command
      .add_option("--window", options.defaults.window,
                  "Last queries that are looked at (h2o, snapkv, graphkv, zeromerge, quickllama, actqkv)")
      ->default_str(std::to_string(options.defaults.window))
      ->group(group);
  command
      .add_option("--basis", options.defaults.basis, "loki: components of the keys before (pre) or after RoPE (post)")
      ->default_str(options.defaults.basis)
      ->group(group);
  command.add_option("--policy-seed", options.defaults.seed, "random: seed of the draw")
      ->check(CLI::NonNegativeNumber)
      ->default_str(std::to_string(options.defaults.seed))
      ->group(group);
  command
      .add_option("--index", options.index,
                  "Type of the index: f16, int8, int4, or auto: int4 for heads of up to 128 dims, else int8")
      ->default_str(options.index)
      ->group(group);
  command.add_flag("-v,--verbose", options.verbose, "Show llama.cpp's own messages");
}

int num_threads(const CommonOptions& options) { return options.threads > 0 ? options.threads : physical_cores(); }

PolicySettings policy_settings(const CommonOptions& options, const std::string& policy, int64_t budget) {
  PolicySettings settings = options.defaults;
  settings.kind = parse_policy(policy);
  settings.budget = budget;
  settings.index_type = parse_index_type(options.index);
  parse_n_tip(options.n_tip, settings);
  check(settings);
  return settings;
}

void check_policies(const CommonOptions& options) {
  for (const std::string& policy : options.policies) {
    for (const int64_t budget : options.budgets) policy_settings(options, policy, budget);
  }
}

std::vector<Setting> backend_settings(const CommonOptions& options, const PolicySettings& settings) {
  std::vector<Setting> all = {{"policy", policy_name(settings.kind)},
                              {"budget", std::to_string(settings.budget)},
                              {"sinks", std::to_string(settings.sinks)},
                              {"recent", std::to_string(settings.recent)},
                              {"n_tip", options.n_tip},
                              {"criterion", settings.criterion},
                              {"share_fcs", settings.share_fcs ? "1" : "0"},
                              {"share_tokens", settings.share_tokens ? "1" : "0"},
                              {"dense_layers", std::to_string(settings.dense_layers)},
                              {"index", settings.index_type ? index_type_name(*settings.index_type) : "auto"},
                              {"page", std::to_string(settings.page)},
                              {"window", std::to_string(settings.window)},
                              {"basis", settings.basis},
                              {"seed", std::to_string(settings.seed)},
                              {"verbose", options.verbose ? "1" : "0"}};
  // Named only where they are used, so that what was made without them keeps its settings.
  if (!settings.dense_list.empty())
    all.push_back({"dense_list", fmt::format("{}", fmt::join(settings.dense_list, "+"))});
  if (!settings.weights.empty()) all.push_back({"weights", settings.weights});
  if (settings.n_tip_by_layer) all.push_back({"n_tip_by_layer", "1"});
  all.push_back({"budget_slope", fmt::format("{}", budget_slope_for(settings))});
  return all;
}

}  // namespace fasa::cli
