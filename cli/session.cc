#include "cli/session.h"

#include <algorithm>

#include "cli/paths.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

struct Wish {
  std::string policy;
  PolicySettings settings;
};

// Budgets mean nothing to `full`: it runs once.
std::vector<Wish> wishes(const CommonOptions& options) {
  std::vector<Wish> all;
  for (const std::string& policy : options.policies) {
    const bool full = parse_policy(policy) == PolicyKind::kFull;
    for (const int64_t budget : options.budgets) {
      all.push_back({policy, policy_settings(options, policy, budget)});
      if (full) break;
    }
  }
  return all;
}

}  // namespace

Session::Session(const CommonOptions& options, const std::function<ContextOptions(const Model&)>& size, Full full)
    : options_(options) {
  const std::vector<Wish> all = wishes(options);
  const bool sparse =
      std::any_of(all.begin(), all.end(), [](const Wish& wish) { return wish.settings.kind != PolicyKind::kFull; });
  const std::string path = find_model(options.model);
  if (sparse) profile_ = find_profile(options.profile, path);
  start_llama(options.verbose);
  model_ = std::make_unique<Model>(path);
  if (sparse) check_profile(profile_, *model_);
  size_ = size(*model_);
  const bool plain =
      std::any_of(all.begin(), all.end(), [](const Wish& wish) { return wish.settings.kind == PolicyKind::kFull; });
  if (plain || full != Full::kNoReference) reference_ = std::make_unique<LlamaContext>(*model_, size_);
  for (const Wish& wish : all) {  // plain contexts exist before the backend is loaded
    lanes_.push_back({wish.policy, wish.settings, nullptr, 0});
    if (wish.settings.kind != PolicyKind::kFull) continue;
    lanes_.back().context = reference_.get();
    if (full == Full::kOwn) {
      contexts_.push_back(std::make_unique<LlamaContext>(*model_, size_));
      lanes_.back().context = contexts_.back().get();
    }
  }
  if (!sparse) return;
  backend_.emplace();
  if (full == Full::kOnDemand) return;
  for (Lane& lane : lanes_) open(lane);
}

LlamaContext& Session::open(Lane& lane) {
  if (!lane.context) {
    backend_->configure(options_, lane.settings, profile_);
    contexts_.push_back(std::make_unique<LlamaContext>(*model_, size_));
    lane.context = contexts_.back().get();
  }
  return *lane.context;
}

void Session::close(Lane& lane) {
  const auto removed =
      std::erase_if(contexts_, [&](const std::unique_ptr<LlamaContext>& own) { return own.get() == lane.context; });
  if (removed > 0) lane.context = nullptr;
}

ReadBytes Session::measure(Lane& lane, const std::function<int64_t()>& decode) {
  const int64_t first = lane.context->size();
  fasa_ggml_stats before{};
  if (backend_) before = backend_->stats(true);
  const int64_t num_tokens = decode();
  const LlamaContext& context = *lane.context;
  // Every token reads itself and all before it: on average those at half the way.
  const double reads = static_cast<double>(first) + static_cast<double>(num_tokens + 1) / 2;
  const double full = context.kv_bytes_of(model(), reads);
  if (lane.settings.kind == PolicyKind::kFull || !backend_ || num_tokens == 0) return {full, 0};
  const fasa_ggml_stats stats = backend_->stats(true);
  lane.index_bytes += stats.index_bytes - before.index_bytes;
  const auto tokens = static_cast<double>(num_tokens);
  const double layers = llama_model_n_layer(model().get());
  const double claimed = static_cast<double>(stats.sparse_calls + stats.dense_calls) / tokens / layers;
  return {static_cast<double>(stats.kv_bytes_read) / tokens + full * std::max(0.0, 1 - claimed),
          static_cast<double>(stats.index_bytes_read) / tokens};
}

}  // namespace fasa::cli
