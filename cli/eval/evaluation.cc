#include "cli/eval/evaluation.h"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "cli/progress.h"
#include "cli/text_file.h"
#include "fasa/error.h"
#include "fasa/profile.h"
#include "src/policy/decode_step.h"

namespace fasa::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kGib = 1024.0 * 1024 * 1024;

// Samples of the file, because hashing gigabytes takes longer than a short evaluation.
std::string key_of_model(const std::string& path) {
  constexpr int64_t kSample = 1 << 16;
  constexpr int64_t kSamples = 16;
  std::error_code ignored;
  const auto size = static_cast<int64_t>(fs::file_size(path, ignored));
  std::ifstream file(path, std::ios::binary);
  std::string sample(kSample, '\0');
  std::string all = std::to_string(size) + " " + llama_version();
  for (int64_t i = 0; i < kSamples; ++i) {
    file.clear();
    file.seekg(size / kSamples * i);
    file.read(sample.data(), kSample);
    all.append(sample.data(), static_cast<size_t>(file.gcount()));
  }
  return hash_hex(all);
}

// Whether a policy reads a setting: rows of one that does not are the same whatever the setting is.
bool concerns(const Policy& policy, const std::string& key) {
  const PolicyKind kind = policy.info.kind;
  if (key == "policy" || key == "verbose") return false;
  if (key == "n_tip") return policy.index != nullptr || kind == PolicyKind::kSparq;
  if (key == "criterion" || key == "share_fcs" || key == "index") return policy.index != nullptr;
  if (key == "page") {
    return kind == PolicyKind::kQuest || kind == PolicyKind::kQuickLlama || kind == PolicyKind::kActQkv;
  }
  if (key == "window") return policy.info.observes_prefill;
  if (key == "basis") return kind == PolicyKind::kLoki;
  if (key == "seed") return kind == PolicyKind::kRandom;
  return true;
}

}  // namespace

void add_eval_options(CLI::App& command, EvalOptions& options, const std::string& default_policies) {
  add_common_options(command, options.common, Arity::kList, Arity::kList, default_policies);
  add_row_options(command, options.rows);
  command.get_option("--out")->description(
      "Append the rows to this JSONL file; a row that is there already, made with the same settings, is not made "
      "again");
  command.add_option("--cache", options.cache_dir,
                     "Folder of prefilled states and reference logits, which policies, budgets and later runs share "
                     "(default: FASA_CACHE_DIR, else ~/.cache/fasa)");
  command
      .add_option("--cache-gib", options.cache_gib,
                  "Most that the folder may hold, in GiB; the longest unused file goes first")
      ->check(CLI::Range(0.0, 1e6))
      ->default_str("16");
}

std::string lane_label(const Json& row) {
  const int64_t budget = row.value("budget", int64_t{0});
  return row.value("policy", std::string()) + (budget > 0 ? " " + std::to_string(budget) : "");
}

std::string hash_tokens(std::span<const llama_token> tokens) {
  return hash_hex(std::string(reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()));
}

Evaluation::Evaluation(const EvalOptions& options, const std::function<ContextOptions(const Model&)>& size)
    : options_(options),
      cache_(options.cache_dir, static_cast<int64_t>(options.cache_gib * kGib)),
      results_(options.rows),
      session_(options.common, size, Session::Full::kOnDemand),
      model_key_(key_of_model(session_.model().path())) {
  if (session_.profile_path().empty()) return;
  profile_key_ = hash_hex(read_text(session_.profile_path()));
  head_dim_ = load_profile(session_.profile_path()).layers.front().rope.head_dim;
}

Json Evaluation::lane_settings(const Lane& lane) const {
  Json row = {{"policy", lane.policy}};
  if (lane.settings.kind == PolicyKind::kFull) {
    row["budget"] = 0;
    return row;
  }
  const Policy& policy = find_policy(lane.settings.kind);
  for (const auto& [key, value] : backend_settings(options_.common, lane.settings)) {
    if (!concerns(policy, key)) continue;
    if (key == "budget_slope" && value == "0") continue;  // the same in every layer goes without saying
    char* end = nullptr;
    const int64_t number = std::strtoll(value.c_str(), &end, 10);
    if (key == "seed") {  // the evaluations' own seed is of the prompts
      row["policy_seed"] = number;
    } else if (key.starts_with("share_")) {
      row[key] = value == "1";
    } else if (key == "index") {
      row[key] = index_type_name(index_type_for(lane.settings, head_dim_));
    } else if (key == "n_tip" || value.empty() || *end != '\0') {
      row[key] = value;
    } else {
      row[key] = number;
    }
  }
  if (policy.index != nullptr) row["profile"] = profile_key_;
  return row;
}

PrefilledState Evaluation::prefill(std::span<const llama_token> tokens, const PrefillProgress& progress) {
  PrefilledState state{{}, {tokens.begin(), tokens.end()}};
  const std::string key = fmt::format("state-{}-{}-{}", model_key_, tokens.size(), hash_tokens(tokens));
  if (const fs::path path = cache_.find(key); !path.empty()) {
    std::ifstream file(path, std::ios::binary);
    state.bytes.resize(fs::file_size(path));
    file.read(reinterpret_cast<char*>(state.bytes.data()), static_cast<std::streamsize>(state.bytes.size()));
    if (file) {
      if (progress) progress(static_cast<int64_t>(tokens.size()));
      return state;
    }
  }
  LlamaContext& reference = session_.reference();
  reference.clear();
  reference.prefill(tokens, progress);
  state.bytes = reference.state();
  std::ofstream file(cache_.reserve(key), std::ios::binary);
  file.write(reinterpret_cast<const char*>(state.bytes.data()), static_cast<std::streamsize>(state.bytes.size()));
  file.close();
  if (!file) {
    throw Error(ErrorCode::kIo,
                fmt::format("the state of {} tokens ({}) cannot be written to {}: is the disk full?", tokens.size(),
                            human_bytes(static_cast<double>(state.bytes.size())), cache_.dir().string()));
  }
  cache_.commit(key);
  return state;
}

void Evaluation::start(Lane& lane, const PrefilledState& state) {
  LlamaContext& context = session_.open(lane);
  if (policy_info(lane.settings.kind).observes_prefill) {
    context.clear();
    context.prefill(state.tokens);
  } else {
    context.restore(state.bytes, static_cast<int64_t>(state.tokens.size()));
  }
}

}  // namespace fasa::cli
