// The options that run, bench, eval and serve share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "fasa/policy.h"

namespace fasa::cli {

struct CommonOptions {
  std::string model;
  std::string profile;
  int threads = 0;  // 0: the physical cores
  std::vector<std::string> policies;
  std::vector<int64_t> budgets;
  std::string n_tip = "50%";
  std::string index = "auto";
  PolicySettings defaults;  // the rest, written by the parser
  bool verbose = false;
};

// What a command takes of --policy and --budget: one value, or a list.
enum class Arity { kOne, kList };

void add_common_options(CLI::App& command, CommonOptions& options, Arity policies, Arity budgets,
                        const std::string& default_policies);

// Threads to use: as given, else the physical cores that this process may run on.
int num_threads(const CommonOptions& options);

// The checked settings of one policy and budget; throws Error(kInvalidArgument).
PolicySettings policy_settings(const CommonOptions& options, const std::string& policy, int64_t budget);
// All policies, each checked with each budget, so that a mistake shows before any work.
void check_policies(const CommonOptions& options);

struct Setting {
  std::string key;
  std::string value;
};
// The settings as libggml-fasa.so names them (ggml-fasa.h), without the profile.
std::vector<Setting> backend_settings(const CommonOptions& options, const PolicySettings& settings);

}  // namespace fasa::cli
