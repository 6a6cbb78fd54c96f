#include "integrations/ggml/tiny_model.h"

#include <ggml.h>
#include <gguf.h>
#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>
#include <random>
#include <string_view>

namespace fasa::ggml::test {
namespace {

constexpr int64_t kWidth = 128;
constexpr int64_t kFeedForward = 64;
constexpr int64_t kVocabulary = 256;
constexpr int64_t kExperts = 2;
// Scores far enough from one another that attention is peaked: what is wrong with a score then shows in the logits.
constexpr float kPeak = 2.0F;
// Scores then have a standard deviation of 4; the largest of 300 tokens is near this, and so a sink has to be.
constexpr float kLargeScore = 10.0F;

class Writer {
 public:
  Writer(std::string architecture, uint32_t seed) : architecture_(std::move(architecture)), random_(seed) {
    gguf_set_val_str(file_, "general.architecture", architecture_.c_str());
    gguf_set_val_str(file_, "general.name", "tiny");
    gguf_set_val_str(file_, "tokenizer.ggml.model", "none");
  }
  ~Writer() {
    gguf_free(file_);
    ggml_free(memory_);
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  void number(const char* key, int64_t value) {
    gguf_set_val_u32(file_, (architecture_ + "." + key).c_str(), static_cast<uint32_t>(value));
  }
  void real(const char* key, float value) { gguf_set_val_f32(file_, (architecture_ + "." + key).c_str(), value); }

  // Values normal around `mean`; ne[0] is the input width.
  void tensor(const std::string& name, std::initializer_list<int64_t> shape, float mean, float deviation) {
    ggml_tensor* t = ggml_new_tensor(memory_, GGML_TYPE_F32, static_cast<int>(shape.size()), shape.begin());
    std::normal_distribution<float> value(mean, deviation);
    auto* data = static_cast<float*>(t->data);
    for (int64_t i = 0; i < ggml_nelements(t); ++i) data[i] = value(random_);
    ggml_set_name(t, name.c_str());
    gguf_add_tensor(file_, t);
  }
  void norm(const std::string& name, int64_t width, float mean = 1) { tensor(name + ".weight", {width}, mean, 0.1F); }
  void matrix(const std::string& name, int64_t in, int64_t out, float gain = 1) {
    tensor(name + ".weight", {in, out}, 0, gain / std::sqrt(static_cast<float>(in)));
  }

  void save(const std::string& path) const { ASSERT_TRUE(gguf_write_to_file(file_, path.c_str(), false)) << path; }

 private:
  std::string architecture_;
  std::mt19937 random_;
  gguf_context* file_ = gguf_init_empty();
  ggml_context* memory_ = ggml_init({.mem_size = size_t{64} << 20, .mem_buffer = nullptr, .no_alloc = false});
};

void write_feed_forward(Writer& out, const std::string& layer) {
  out.norm(layer + "ffn_norm", kWidth);
  out.matrix(layer + "ffn_gate", kWidth, kFeedForward);
  out.matrix(layer + "ffn_up", kWidth, kFeedForward);
  out.matrix(layer + "ffn_down", kFeedForward, kWidth);
}

void write_experts(Writer& out, const std::string& layer) {
  const float deviation = 1 / std::sqrt(static_cast<float>(kWidth));
  out.tensor(layer + "attn_sinks.weight", {kTinyHeads}, kLargeScore, 1);
  out.tensor(layer + "attn_output.bias", {kWidth}, 0, 0.1F);
  out.matrix(layer + "ffn_gate_inp", kWidth, kExperts);
  out.tensor(layer + "ffn_gate_inp.bias", {kExperts}, 0, 0.1F);
  for (const char* name : {"ffn_gate_exps", "ffn_up_exps"}) {
    out.tensor(layer + name + ".weight", {kWidth, kFeedForward, kExperts}, 0, deviation);
    out.tensor(layer + name + ".bias", {kFeedForward, kExperts}, 0, 0.1F);
  }
  out.tensor(layer + "ffn_down_exps.weight", {kFeedForward, kWidth, kExperts}, 0, deviation);
  out.tensor(layer + "ffn_down_exps.bias", {kWidth, kExperts}, 0, 0.1F);
}

}  // namespace

void write_tiny_model(const TinyModel& model, uint32_t seed, const std::string& path) {
  Writer out(model.architecture, seed);
  const bool experts = std::string_view(model.architecture) == "gpt-oss";
  const bool plain = std::string_view(model.architecture) == "llama";
  const bool normed = std::string_view(model.architecture) == "gemma3";
  out.number("vocab_size", kVocabulary);
  out.number("context_length", 4096);
  out.number("embedding_length", kWidth);
  out.number("block_count", model.num_layers);
  out.number("feed_forward_length", kFeedForward);
  out.number("attention.head_count", kTinyHeads);
  out.number("attention.head_count_kv", kTinyKvHeads);
  out.number("attention.key_length", kTinyHeadDim);
  out.number("attention.value_length", kTinyHeadDim);
  if (!plain) {
    out.number("attention.sliding_window", kTinyWindow);
    out.number("attention.sliding_window_pattern", model.swa_period);
  }
  out.real("attention.layer_norm_rms_epsilon", 1e-6F);
  out.real("rope.freq_base", 10000);
  if (model.softcap > 0) out.real("attn_logit_softcapping", model.softcap);
  if (experts) {
    out.number("expert_count", kExperts);
    out.number("expert_used_count", 1);
    out.number("expert_feed_forward_length", kFeedForward);
  }

  out.tensor("token_embd.weight", {kWidth, kVocabulary}, 0, 1);
  out.norm("output_norm", kWidth);
  if (experts) out.matrix("output", kWidth, kVocabulary);
  for (int l = 0; l < model.num_layers; ++l) {
    const std::string layer = "blk." + std::to_string(l) + ".";
    out.norm(layer + "attn_norm", kWidth);
    out.matrix(layer + "attn_q", kWidth, kTinyHeads * kTinyHeadDim, kPeak);
    out.matrix(layer + "attn_k", kWidth, kTinyKvHeads * kTinyHeadDim, kPeak);
    out.matrix(layer + "attn_v", kWidth, kTinyKvHeads * kTinyHeadDim);
    out.matrix(layer + "attn_output", kTinyHeads * kTinyHeadDim, kWidth);
    if (!plain) out.norm(layer + "post_attention_norm", kWidth);
    if (normed) {
      out.norm(layer + "attn_q_norm", kTinyHeadDim, kPeak);
      out.norm(layer + "attn_k_norm", kTinyHeadDim, kPeak);
    }
    if (experts) {
      write_experts(out, layer);
    } else {
      write_feed_forward(out, layer);
      if (!plain) out.norm(layer + "post_ffw_norm", kWidth);
    }
  }
  out.save(path);
}

const Setup& tiny_llama() {
  static const TempFile file(".gguf");
  static const Setup setup = [] {
    backend();
    write_tiny_model({.architecture = "llama", .num_layers = kTinyLayers, .swa_period = 1}, 1, file.path());
    return Setup(file.path());
  }();
  return setup;
}

}  // namespace fasa::ggml::test
