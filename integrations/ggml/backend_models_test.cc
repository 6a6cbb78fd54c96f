// Models with what the test model lacks: sliding windows, soft-capped scores, attention sinks. Small ones with random weights,
// run by real llama.cpp code.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "integrations/ggml/test_support.h"
#include "integrations/ggml/tiny_model.h"

namespace fasa::ggml::test {
namespace {

constexpr int kPrompt = 300;
constexpr int kSteps = 4;
constexpr double kRounding = 0.01;

struct Case {
  const char* name;
  TinyModel model;
  int num_global;
};

class BackendModels : public testing::TestWithParam<Case> {
 protected:
  BackendModels() : file_(".gguf") {
    backend();
    write_tiny_model(GetParam().model, 1, file_.path());
    setup_ = std::make_unique<test::Setup>(file_.path());
  }

  std::vector<std::vector<float>> run(const std::string& settings) const {
    if (settings.empty()) {
      configure("");
    } else {
      setup_->use("dense_layers=0 " + settings);
    }
    const ContextPtr context = make_context(setup_->model());
    const std::vector<llama_token> next = random_tokens(setup_->model(), kSteps, 2);
    prefill(context.get(), random_tokens(setup_->model(), kPrompt, 1));
    std::vector<std::vector<float>> logits;
    for (int i = 0; i < kSteps; ++i) logits.push_back(step(context.get(), next[i], kPrompt + i));
    EXPECT_EQ(backend().check_index(), 0);
    return logits;
  }

  // The largest of the steps' differences from llama.cpp's own attention.
  double difference(const std::string& settings) const {
    const auto full = run("");
    take_stats();
    const auto ours = run(settings);
    double most = 0;
    for (int i = 0; i < kSteps; ++i) most = std::max(most, relative_difference(ours[i], full[i]));
    return most;
  }

  TempFile file_;
  std::unique_ptr<test::Setup> setup_;
};

TEST_P(BackendModels, EveryTokenKeptEqualsLlama) {
  EXPECT_LE(difference("policy=full budget=64"), kRounding);
  const fasa_ggml_stats stats = take_stats();
  EXPECT_EQ(stats.dense_calls, GetParam().num_global * kSteps) << "windowed layers are llama.cpp's";
  EXPECT_EQ(stats.sparse_calls, 0);
}

TEST_P(BackendModels, AlmostEveryTokenKeptIsNearLlama) {
  // The 20 tokens of the lowest exact scores weigh next to nothing.
  EXPECT_LE(difference("policy=oracle budget=284"), 5 * kRounding);
  const fasa_ggml_stats stats = take_stats();
  EXPECT_EQ(stats.sparse_calls, GetParam().num_global * kSteps);
  EXPECT_EQ(stats.dense_calls, 0);
}

TEST_P(BackendModels, OnlyGlobalLayersAreSparse) {
  EXPECT_GT(difference("budget=40 sinks=4 recent=16"), kRounding) << "random FCs must change something";
  const fasa_ggml_stats stats = take_stats();
  EXPECT_EQ(stats.sparse_calls, GetParam().num_global * kSteps);
  EXPECT_EQ(stats.dense_calls, 0);
}

INSTANTIATE_TEST_SUITE_P(Tiny, BackendModels,
                         testing::Values(Case{"SlidingWindow", {"gemma3", 6, 6}, 1},
                                         Case{"SoftCap", {"gemma2", 4, 2, 3.0F}, 2},
                                         Case{"AttentionSinks", {"gpt-oss", 4, 2}, 2}),
                         [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace fasa::ggml::test
