// Everything that moves keys behind the backend's back: shifts, copies, removal, clear, saved states.
#include <gtest/gtest.h>

#include "integrations/ggml/test_support.h"
#include "integrations/ggml/tiny_model.h"

namespace fasa::ggml::test {
namespace {

constexpr int kPrompt = 320;
constexpr int kSparseLayers = kTinyLayers - 2;
constexpr double kRounding = 0.05;  // of the logits, where it may change which tokens are read

const Setup& setup() { return tiny_llama(); }

std::vector<llama_token> tokens(int count, uint32_t seed) { return random_tokens(setup().model(), count, seed); }

// Decodes `next` one by one behind a prompt in a context of its own.
std::vector<std::vector<float>> fresh(const std::vector<llama_token>& prompt, const std::vector<llama_token>& next) {
  const ContextPtr context = make_context(setup().model());
  prefill(context.get(), prompt);
  std::vector<std::vector<float>> logits;
  auto pos = static_cast<llama_pos>(prompt.size());
  for (const llama_token token : next) logits.push_back(step(context.get(), token, pos++));
  return logits;
}

void expect_fresh_index() { EXPECT_EQ(backend().check_index(), 0); }

TEST(BackendMemory, SequencesOfDifferentLengthInOneBatch) {
  for (const bool unified : {true, false}) {
    setup().use("budget=80 recent=16");
    ContextOptions options;
    options.n_ctx = 2048;
    options.n_seq_max = 3;
    options.kv_unified = unified;
    const ContextPtr context = make_context(setup().model(), options);
    const int lengths[] = {kPrompt, 160, 200};  // above every layer's budget
    for (int s = 0; s < 3; ++s) prefill(context.get(), tokens(lengths[s], 10 + s), 0, s);
    const auto next = tokens(6, 20);
    std::vector<std::vector<std::vector<float>>> expected;
    for (int s = 0; s < 3; ++s) {
      expected.push_back(fresh(tokens(lengths[s], 10 + s), {next[s], next[s + 3]}));
    }
    take_stats();
    for (int i = 0; i < 2; ++i) {
      std::vector<Token> batch;
      for (int s = 0; s < 3; ++s) batch.push_back({next[s + 3 * i], lengths[s] + i, s});
      const auto logits = decode(context.get(), batch);
      for (int s = 0; s < 3; ++s) {
        EXPECT_LE(relative_difference(logits[s], expected[s][i]), kRounding) << unified << s << i;
      }
    }
    EXPECT_EQ(take_stats().sparse_calls, kSparseLayers * 3 * 2) << unified;
    expect_fresh_index();
  }
}

TEST(BackendMemory, SmallPrefillIsDense) {
  setup().use("budget=64 recent=16");
  const ContextPtr context = make_context(setup().model());
  const auto prompt = tokens(kPrompt, 1);
  prefill(context.get(), prompt);
  take_stats();
  const auto more = tokens(8, 2);
  const auto ours = prefill(context.get(), more, kPrompt);
  EXPECT_EQ(take_stats().sparse_calls, 0);
  configure("");
  const ContextPtr plain = make_context(setup().model());
  prefill(plain.get(), prompt);
  EXPECT_LE(relative_difference(ours, prefill(plain.get(), more, kPrompt)), kRounding);
}

TEST(BackendMemory, ContextShift) {
  setup().use("budget=64 recent=16");
  const ContextPtr context = make_context(setup().model());
  prefill(context.get(), tokens(kPrompt, 1));
  step(context.get(), 7, kPrompt);
  llama_memory_t memory = llama_get_memory(context.get());
  llama_memory_seq_rm(memory, 0, 4, 104);
  llama_memory_seq_add(memory, 0, 104, -1, -100);
  take_stats();
  for (int i = 0; i < 3; ++i) step(context.get(), 8 + i, kPrompt + 1 - 100 + i);
  const fasa_ggml_stats stats = take_stats();
  EXPECT_EQ(stats.sparse_calls, kSparseLayers * 3);
  EXPECT_GT(stats.rows_rebuilt, 0);
  expect_fresh_index();
}

// The freed cells in front are taken by the newest tokens: rows are not in order of age.
TEST(BackendMemory, RemovalAndReuseOfCells) {
  setup().use("budget=64 sinks=4 recent=16");
  ContextOptions options;
  options.n_ctx = 512;
  options.n_seq_max = 2;
  const ContextPtr context = make_context(setup().model(), options);
  prefill(context.get(), tokens(150, 5), 0, 1);
  const auto prompt = tokens(kPrompt, 1);
  prefill(context.get(), prompt);
  llama_memory_seq_rm(llama_get_memory(context.get()), 1, -1, -1);
  std::vector<llama_token> next = tokens(60, 2);
  const auto expected = fresh(prompt, next);
  // Rows in another order are summed in another: single steps differ by more than rounding where that changes a choice.
  double mean_difference = 0;
  for (size_t i = 0; i < next.size(); ++i) {
    const auto logits = step(context.get(), next[i], kPrompt + static_cast<llama_pos>(i));
    mean_difference += relative_difference(logits, expected[i]) / static_cast<double>(next.size());
  }
  EXPECT_LE(mean_difference, kRounding);
  expect_fresh_index();
}

TEST(BackendMemory, SequenceCopy) {
  for (const bool unified : {true, false}) {
    setup().use("budget=64 recent=16");
    ContextOptions options;
    options.n_ctx = 2048;
    options.n_seq_max = 2;
    options.kv_unified = unified;
    const ContextPtr context = make_context(setup().model(), options);
    const auto prompt = tokens(kPrompt, 1);
    prefill(context.get(), tokens(100, 9), 0, 1);
    prefill(context.get(), prompt);
    step(context.get(), 7, kPrompt);
    llama_memory_t memory = llama_get_memory(context.get());
    llama_memory_seq_rm(memory, 1, -1, -1);
    llama_memory_seq_cp(memory, 0, 1, -1, -1);
    const auto a = step(context.get(), 9, kPrompt + 1, 1);
    const auto b = step(context.get(), 9, kPrompt + 1, 0);
    EXPECT_LE(relative_difference(a, b), kRounding) << unified;
    EXPECT_LE(relative_difference(a, fresh(prompt, {7, 9})[1]), kRounding) << unified;
    expect_fresh_index();
  }
}

TEST(BackendMemory, ClearAndReuse) {
  setup().use("budget=64 recent=16");
  const ContextPtr context = make_context(setup().model());
  prefill(context.get(), tokens(kPrompt, 1));
  step(context.get(), 7, kPrompt);
  llama_memory_clear(llama_get_memory(context.get()), true);
  expect_fresh_index();
  const auto prompt = tokens(kPrompt, 3);
  prefill(context.get(), prompt);
  EXPECT_LE(relative_difference(step(context.get(), 7, kPrompt), fresh(prompt, {7})[0]), kRounding);
  expect_fresh_index();
}

TEST(BackendMemory, StateSaveAndLoad) {
  setup().use("budget=64 recent=16");
  const ContextPtr context = make_context(setup().model());
  const auto prompt = tokens(kPrompt, 1);
  prefill(context.get(), prompt);
  std::vector<uint8_t> state(llama_state_get_size(context.get()));
  state.resize(llama_state_get_data(context.get(), state.data(), state.size()));
  const auto expected = step(context.get(), 7, kPrompt);

  // Into a context that has seen other tokens, and into one that has seen none.
  const ContextPtr used = make_context(setup().model());
  prefill(used.get(), tokens(kPrompt + 40, 4));
  step(used.get(), 3, kPrompt + 40);
  const ContextPtr unused = make_context(setup().model());
  for (llama_context* other : {used.get(), unused.get()}) {
    ASSERT_EQ(llama_state_set_data(other, state.data(), state.size()), state.size());
    take_stats();
    EXPECT_LE(relative_difference(step(other, 7, kPrompt), expected), kRounding);
    const fasa_ggml_stats stats = take_stats();
    EXPECT_EQ(stats.sparse_calls, kSparseLayers);
    EXPECT_GT(stats.rows_rebuilt, 0);
    expect_fresh_index();
  }
}

TEST(BackendMemory, SequenceStateSaveAndLoad) {
  setup().use("budget=64 recent=16");
  ContextOptions options;
  options.n_ctx = 2048;
  options.n_seq_max = 2;
  options.kv_unified = false;
  const ContextPtr context = make_context(setup().model(), options);
  prefill(context.get(), tokens(kPrompt, 1));
  prefill(context.get(), tokens(kPrompt, 2), 0, 1);
  step(context.get(), 7, kPrompt, 1);
  std::vector<uint8_t> state(llama_state_seq_get_size(context.get(), 0));
  llama_state_seq_get_data(context.get(), state.data(), state.size(), 0);
  const auto expected = step(context.get(), 7, kPrompt, 0);
  ASSERT_GT(llama_state_seq_set_data(context.get(), state.data(), state.size(), 1), 0U);
  EXPECT_LE(relative_difference(step(context.get(), 7, kPrompt, 1), expected), kRounding);
  expect_fresh_index();
}

}  // namespace
}  // namespace fasa::ggml::test
