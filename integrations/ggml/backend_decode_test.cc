// The backend inside a real libllama: what it takes, what it leaves, and that the logits are llama.cpp's
// wherever nothing is left out.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#include "integrations/ggml/test_support.h"
#include "integrations/ggml/tiny_model.h"

namespace fasa::ggml::test {
namespace {

constexpr int kPrompt = 300;
constexpr int kSteps = 4;
constexpr int kLayers = kTinyLayers;
constexpr int kDenseLayers = 2;
constexpr double kRounding = 0.01;  // llama.cpp accumulates in F16, we in F32

const Setup& setup() { return tiny_llama(); }

// The logits of the steps that follow a prompt.
std::vector<std::vector<float>> run(const ContextOptions& options = {}, int prompt_length = kPrompt) {
  const ContextPtr context = make_context(setup().model(), options);
  const std::vector<llama_token> prompt = random_tokens(setup().model(), prompt_length, 1);
  const std::vector<llama_token> next = random_tokens(setup().model(), kSteps, 2);
  std::vector<std::vector<float>> logits = {prefill(context.get(), prompt)};
  for (int i = 0; i < kSteps; ++i) {
    logits.push_back(step(context.get(), next[i], prompt_length + i));
  }
  EXPECT_EQ(backend().check_index(), 0);
  return logits;
}

std::vector<std::vector<float>> run_without(const ContextOptions& options = {}, int prompt_length = kPrompt) {
  configure("");
  auto logits = run(options, prompt_length);
  const fasa_ggml_stats stats = take_stats();
  EXPECT_EQ(stats.sparse_calls + stats.dense_calls, 0);
  return logits;
}

void expect_near(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_LE(relative_difference(a[i], b[i]), tolerance) << i;
}

TEST(BackendDecode, SparseDecodeCountsAndKeepsItsIndex) {
  setup().use("budget=32 sinks=4 recent=16");
  const auto logits = run();
  const fasa_ggml_stats stats = take_stats();
  EXPECT_EQ(stats.sparse_calls, (kLayers - kDenseLayers) * kSteps);
  EXPECT_EQ(stats.dense_calls, kDenseLayers * kSteps);
  EXPECT_EQ(stats.rows_rebuilt, 0);
  EXPECT_GT(stats.index_bytes_read, 0);
  EXPECT_EQ(stats.index_bytes, 0) << "the context is gone";
  const auto dense = run_without();
  EXPECT_EQ(max_difference(logits[0], dense[0]), 0) << "prefill is llama.cpp's own";
  for (int i = 1; i <= kSteps; ++i) {
    EXPECT_GT(relative_difference(logits[i], dense[i]), kRounding) << "random FCs must change something";
  }
}

TEST(BackendDecode, FullPolicyEqualsLlama) {
  setup().use("policy=full budget=64");
  const auto ours = run();
  EXPECT_EQ(take_stats().dense_calls, kLayers * kSteps);
  expect_near(ours, run_without(), kRounding);
}

TEST(BackendDecode, BudgetOfTheContextEqualsLlama) {
  for (const char* policy : {"fasa", "oracle"}) {
    setup().use(std::string("budget=511 policy=") + policy);
    const auto ours = run();
    const fasa_ggml_stats stats = take_stats();
    EXPECT_EQ(stats.dense_calls, kLayers * kSteps) << policy;
    EXPECT_EQ(stats.sparse_calls, 0) << policy;
    expect_near(ours, run_without(), kRounding);
  }
}

TEST(BackendDecode, ContextWithinBudgetIsLeftToLlama) {
  setup().use("budget=512");
  const auto ours = run();
  EXPECT_EQ(take_stats().dense_calls, 0);
  expect_near(ours, run_without(), 0);
}

TEST(BackendDecode, EverySettingDecodes) {
  for (const char* settings : {"policy=oracle", "index=f16", "index=int8", "share_fcs=0", "share_tokens=1", "n_tip=4",
                               "n_tip=100%", "dense_layers=0", "sinks=0 recent=0", "policy=oracle share_tokens=1"}) {
    setup().use(std::string("budget=64 ") + settings);
    for (const auto& logits : run()) {
      for (const float value : logits) ASSERT_TRUE(std::isfinite(value)) << settings;
    }
    EXPECT_GT(take_stats().sparse_calls, 0) << settings;
  }
}

TEST(BackendDecode, CacheTypes) {
  for (const auto& [k, v] : {std::pair{GGML_TYPE_BF16, GGML_TYPE_BF16}, std::pair{GGML_TYPE_F16, GGML_TYPE_BF16},
                             std::pair{GGML_TYPE_F16, GGML_TYPE_Q8_0}}) {
    ContextOptions options;
    options.type_k = k;
    options.type_v = v;
    setup().use("budget=64 policy=full");
    const auto ours = run(options);
    EXPECT_GT(take_stats().dense_calls, 0);
    expect_near(ours, run_without(options), 0.06);
    setup().use("budget=64");
    run(options);
    EXPECT_GT(take_stats().sparse_calls, 0);
  }
}

TEST(BackendDecode, QuantisedKeysAreRefusedWithTheReason) {
  setup().use("budget=64");
  take_log();
  ContextOptions options;
  options.type_k = GGML_TYPE_Q8_0;
  options.type_v = GGML_TYPE_Q8_0;
  const auto ours = run(options);
  EXPECT_EQ(take_stats().sparse_calls, 0);
  EXPECT_NE(take_log().find("quantised K cache"), std::string::npos);
  expect_near(ours, run_without(options), 0);
}

TEST(BackendDecode, FlashAttentionAutoStaysOn) {
  setup().use("budget=64");
  ContextOptions options;
  options.flash_attn = LLAMA_FLASH_ATTN_TYPE_AUTO;
  take_log();
  run(options);
  EXPECT_GT(take_stats().sparse_calls, 0);
  EXPECT_EQ(take_log().find("not supported, set to disabled"), std::string::npos);
}

TEST(BackendDecode, WithoutFlashAttentionEverythingIsLlamas) {
  setup().use("budget=64");
  ContextOptions options;
  options.flash_attn = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  const auto ours = run(options);
  EXPECT_EQ(take_stats().sparse_calls, 0);
  expect_near(ours, run_without(options), 0);
}

TEST(BackendDecode, NoProfileIsSaidOnce) {
  configure("");
  take_log();
  run();
  run();
  const std::string log = take_log();
  const size_t first = log.find("FASA_PROFILE is not set");
  ASSERT_NE(first, std::string::npos);
  EXPECT_NE(log.find("fasa calibrate", first), std::string::npos);
  EXPECT_EQ(log.find("FASA_PROFILE is not set", first + 1), std::string::npos);
}

TEST(BackendDecode, ProfileOfAnotherModelIsRefused) {
  Profile other = load_profile(setup().profile_path());
  for (LayerProfile& layer : other.layers) layer.fingerprint ^= 1;
  const TempFile file(".fasa.json");
  save_profile(other, file.path());
  configure("budget=64 profile=" + file.path());
  take_stats();
  take_log();
  const auto ours = run();
  EXPECT_EQ(take_stats().sparse_calls, 0);
  EXPECT_NE(take_log().find("belongs to another model"), std::string::npos);
  expect_near(ours, run_without(), 0);
}

TEST(BackendDecode, BadSettingsAreRefusedAndChangeNothing) {
  setup().use("budget=64");
  const TempFile broken(".fasa.json");
  std::ofstream(broken.path()) << "{";
  for (const std::string& settings :
       {std::string("budget=8 sinks=4 recent=4"), std::string("budget=-1"), std::string("budget="),
        std::string("policy=best"), std::string("index=int3"), std::string("n_tip=0"), std::string("n_tip=150%"),
        std::string("n_tip=x%"), std::string("share_fcs=2"), std::string("color=red"), std::string("budget"),
        std::string("profile=/nowhere/p.json"), "profile=" + setup().profile_path() + " criterion=none",
        "profile=" + broken.path()}) {
    const char* message = nullptr;
    EXPECT_NE(backend().configure(settings.c_str(), &message), 0) << settings;
    ASSERT_NE(message, nullptr) << settings;
    EXPECT_GT(std::string(message).size(), 20U) << settings;
  }
  run();
  EXPECT_GT(take_stats().sparse_calls, 0);
}

TEST(BackendDecode, ThreadsGiveTheSameLogits) {
  setup().use("budget=64");
  ContextOptions one;
  one.n_threads = 1;
  ContextOptions three;
  three.n_threads = 3;
  expect_near(run(one), run(three), kRounding);
}

TEST(BackendDecode, ContextsInSeveralThreads) {
  setup().use("budget=64");
  const auto expected = run();
  std::vector<std::vector<std::vector<float>>> got(3);
  std::vector<std::thread> threads;
  for (auto& logits : got) threads.emplace_back([&logits] { logits = run(); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& logits : got) expect_near(logits, expected, 0);
}

TEST(BackendDecode, ContextsKeepTheSettingsTheyWereMadeWith) {
  setup().use("budget=64");
  const ContextPtr small = make_context(setup().model());
  setup().use("budget=128");
  const ContextPtr large = make_context(setup().model());
  const auto prompt = random_tokens(setup().model(), kPrompt, 1);
  prefill(small.get(), prompt);
  prefill(large.get(), prompt);
  take_stats();
  step(small.get(), 5, kPrompt);
  const int64_t bytes_small = take_stats().kv_bytes_read;
  step(large.get(), 5, kPrompt);
  EXPECT_GT(take_stats().kv_bytes_read, bytes_small);
  EXPECT_EQ(backend().check_index(), 0);
}

}  // namespace
}  // namespace fasa::ggml::test
