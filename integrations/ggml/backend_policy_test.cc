// Every policy inside a real libllama: that it runs, what it reads, and that it follows what happens to the cache.
#include <gtest/gtest.h>

#include <cmath>

#include "fasa/policy.h"
#include "integrations/ggml/test_support.h"
#include "integrations/ggml/tiny_model.h"

namespace fasa {
// For GoogleTest's messages.
void PrintTo(const PolicyInfo& info, std::ostream* out) { *out << info.name; }
}  // namespace fasa

namespace fasa::ggml::test {
namespace {

constexpr int kPrompt = 150;
constexpr int kSteps = 2;
constexpr int kLayers = kTinyLayers;
constexpr int kDenseLayers = 2;
constexpr int64_t kKvHeads = kTinyKvHeads;
constexpr int64_t kRowBytes = 2 * 64 * 2;  // K and V
constexpr double kRounding = 0.01;         // llama.cpp accumulates in F16, we in F32

const Setup& setup() { return tiny_llama(); }

std::vector<PolicyInfo> sparse_policies() {
  std::vector<PolicyInfo> infos;
  for (const PolicyInfo& info : policy_infos()) {
    if (info.kind != PolicyKind::kFull) infos.push_back(info);
  }
  return infos;
}

class BackendPolicy : public testing::TestWithParam<PolicyInfo> {
 protected:
  static void use(const std::string& settings) {
    setup().use(std::string("sinks=4 recent=16 policy=") + GetParam().name + " " + settings);
  }
  static std::vector<llama_token> tokens(int count, uint32_t seed) {
    return random_tokens(setup().model(), count, seed);
  }
  // The logits of a prompt and of the steps after it.
  static std::vector<std::vector<float>> run(llama_context* context, int prompt = kPrompt, uint32_t seed = 1) {
    std::vector<std::vector<float>> logits = {prefill(context, tokens(prompt, seed))};
    const auto next = tokens(kSteps, seed + 100);
    for (int i = 0; i < kSteps; ++i) logits.push_back(step(context, next[i], prompt + i));
    EXPECT_EQ(backend().check_index(), 0);
    return logits;
  }
  // The same by llama.cpp alone.
  static const std::vector<std::vector<float>>& plain() {
    static const auto logits = [] {
      configure("");
      return run(make_context(setup().model()).get());
    }();
    return logits;
  }
  static void expect_finite(const std::vector<float>& logits) {
    for (const float value : logits) ASSERT_TRUE(std::isfinite(value));
  }
};

TEST_P(BackendPolicy, DecodesSparselyAfterLlamasOwnPrefill) {
  use("budget=64");
  const ContextPtr context = make_context(setup().model());
  const auto logits = run(context.get());
  const fasa_ggml_stats stats = take_stats();
  EXPECT_EQ(stats.sparse_calls, (kLayers - kDenseLayers) * kSteps);
  EXPECT_EQ(stats.dense_calls, kDenseLayers * kSteps);
  // The dense layers read everything; the others at most every key and what all heads keep of K and V, but for the first
  // step of a policy that looks at its window.
  const int64_t dense = kDenseLayers * kSteps * kKvHeads * (kPrompt + kSteps) * kRowBytes;
  const int64_t sparse =
      (kLayers - kDenseLayers) * kSteps * (kTinyHeads * 64 * kRowBytes + kKvHeads * (kPrompt + kSteps) * 128);
  if (GetParam().drops_tokens) {
    EXPECT_LE(stats.kv_bytes_read, dense + sparse + (kLayers - kDenseLayers) * kKvHeads * 45 * (kPrompt + 1) * 128);
  } else {
    EXPECT_LE(stats.kv_bytes_read, dense + sparse);
  }
  EXPECT_LE(relative_difference(logits[0], plain()[0]), 1e-6) << "prefill is llama.cpp's own";
  for (const auto& row : logits) expect_finite(row);
}

TEST_P(BackendPolicy, BudgetOfTheContextEqualsLlama) {
  use("budget=255");
  const auto ours = run(make_context(setup().model()).get());
  EXPECT_EQ(take_stats().sparse_calls, 0);
  for (size_t i = 0; i < ours.size(); ++i) EXPECT_LE(relative_difference(ours[i], plain()[i]), kRounding) << i;
}

TEST_P(BackendPolicy, ClearForgetsTheFormerSequence) {
  use("budget=64");
  const ContextPtr fresh = make_context(setup().model());
  const auto expected = run(fresh.get(), 100, 3);
  const ContextPtr used = make_context(setup().model());
  run(used.get());
  llama_memory_clear(llama_get_memory(used.get()), true);
  const auto got = run(used.get(), 100, 3);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_difference(got[i], expected[i]), 1e-6) << i;
}

// Tokens are removed from the middle and the end, the cells reused, and the rest shifted.
TEST_P(BackendPolicy, SequenceRemovalAndShift) {
  use("budget=64");
  const ContextPtr context = make_context(setup().model());
  run(context.get());
  llama_memory_t memory = llama_get_memory(context.get());
  llama_memory_seq_rm(memory, 0, kPrompt - 20, -1);
  llama_memory_seq_rm(memory, 0, 40, 50);
  const auto next = tokens(8, 9);
  for (int i = 0; i < 4; ++i) expect_finite(step(context.get(), next[i], kPrompt - 20 + i));
  EXPECT_EQ(backend().check_index(), 0);
  llama_memory_seq_add(memory, 0, 50, -1, -10);
  take_stats();
  for (int i = 4; i < 8; ++i) expect_finite(step(context.get(), next[i], kPrompt - 30 + i));
  EXPECT_EQ(take_stats().sparse_calls, (kLayers - kDenseLayers) * 4);
  EXPECT_EQ(backend().check_index(), 0);
}

// A state that was prefilled elsewhere: a policy that looks at queries does with the ones it gets.
TEST_P(BackendPolicy, LoadedStateDecodes) {
  configure("");
  const ContextPtr other = make_context(setup().model());
  prefill(other.get(), tokens(kPrompt, 1));
  std::vector<uint8_t> state(llama_state_get_size(other.get()));
  state.resize(llama_state_get_data(other.get(), state.data(), state.size()));
  use("budget=64 window=2");
  const ContextPtr context = make_context(setup().model());
  ASSERT_EQ(llama_state_set_data(context.get(), state.data(), state.size()), state.size());
  const auto next = tokens(4, 5);
  for (int i = 0; i < 4; ++i) {
    take_stats();
    expect_finite(step(context.get(), next[i], kPrompt + i));
  }
  const fasa_ggml_stats stats = take_stats();
  EXPECT_EQ(stats.sparse_calls, kLayers - kDenseLayers);
  const int64_t dense = kDenseLayers * kKvHeads * (kPrompt + 4) * kRowBytes;
  EXPECT_LE(stats.kv_bytes_read,
            dense + (kLayers - kDenseLayers) * (kTinyHeads * 64 * kRowBytes + kKvHeads * (kPrompt + 4) * 128));
  EXPECT_EQ(backend().check_index(), 0);
}

INSTANTIATE_TEST_SUITE_P(All, BackendPolicy, testing::ValuesIn(sparse_policies()),
                         [](const auto& param) { return std::string(param.param.name); });

// What a prompt's last queries look at is kept: without seeing them the choice is another.
TEST(BackendPolicies, TheWindowOfThePromptDecides) {
  const auto logits_of = [](const char* window) {
    setup().use(std::string("sinks=4 recent=16 budget=64 policy=snapkv window=") + window);
    const ContextPtr context = make_context(setup().model());
    prefill(context.get(), random_tokens(setup().model(), kPrompt, 1));
    return step(context.get(), 7, kPrompt);
  };
  EXPECT_GT(relative_difference(logits_of("4"), logits_of("32")), 1e-3);
}

TEST(BackendPolicies, FlashAttentionAutoStaysOnWhereThePrefillIsSeen) {
  setup().use("budget=64 policy=snapkv");
  ContextOptions options;
  options.flash_attn = LLAMA_FLASH_ATTN_TYPE_AUTO;
  take_log();
  const ContextPtr context = make_context(setup().model(), options);
  prefill(context.get(), random_tokens(setup().model(), kPrompt, 1));
  step(context.get(), 7, kPrompt);
  EXPECT_EQ(take_stats().sparse_calls, kLayers - kDenseLayers);
  EXPECT_EQ(take_log().find("not supported, set to disabled"), std::string::npos);
}

// What ablations vary: which layers are dense, and the totals of N_tip and budget shared out over the others.
TEST(BackendPolicies, SettingsOfLayers) {
  const auto read = [](const std::string& settings) {
    setup().use("sinks=4 recent=16 budget=64 n_tip=8 " + settings);
    const ContextPtr context = make_context(setup().model());
    prefill(context.get(), random_tokens(setup().model(), kPrompt, 1));
    step(context.get(), 7, kPrompt);
    return take_stats();
  };
  const fasa_ggml_stats usual = read("");
  EXPECT_EQ(read("dense_list=5+7+11").dense_calls, kDenseLayers + 3);
  const fasa_ggml_stats by_layer = read("n_tip_by_layer=1");
  EXPECT_NEAR(static_cast<double>(by_layer.index_bytes_read), static_cast<double>(usual.index_bytes_read),
              0.01 * static_cast<double>(usual.index_bytes_read));
  const fasa_ggml_stats level = read("budget_slope=0");
  EXPECT_NEAR(static_cast<double>(level.kv_bytes_read), static_cast<double>(usual.kv_bytes_read),
              0.01 * static_cast<double>(usual.kv_bytes_read));
  EXPECT_EQ(read("weights=energy").sparse_calls, kLayers - kDenseLayers);
  for (const char* bad : {"dense_list=5+x", "budget_slope=2", "budget_slope=a", "weights=none"}) {
    const char* message = nullptr;
    const std::string all = "profile=" + setup().profile_path() + " " + bad;
    EXPECT_NE(backend().configure(all.c_str(), &message), 0) << bad;
  }
}

// Contexts of several policies in one process prefill and decode each as they were made.
TEST(BackendPolicies, SideBySide) {
  const auto prompt = random_tokens(setup().model(), kPrompt, 1);
  std::vector<ContextPtr> contexts;
  std::vector<std::vector<float>> alone;
  for (const char* policy : {"snapkv", "fasa"}) {
    setup().use(std::string("budget=64 policy=") + policy);
    const ContextPtr context = make_context(setup().model());
    prefill(context.get(), prompt);
    alone.push_back(step(context.get(), 7, kPrompt));
    contexts.push_back(make_context(setup().model()));
  }
  for (size_t i = 0; i < 2; ++i) {
    prefill(contexts[i].get(), prompt);
    EXPECT_LE(relative_difference(step(contexts[i].get(), 7, kPrompt), alone[i]), 1e-6) << i;
  }
}

}  // namespace
}  // namespace fasa::ggml::test
