// llama.cpp for the commands: models and contexts that free themselves, and FASA's backend in it.
#pragma once

#include <llama.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/options.h"
#include "fasa/policy.h"
#include "integrations/ggml/ggml-fasa.h"

namespace fasa::cli {

// Loads llama.cpp's own backends, once; its messages go to stderr if `verbose`.
void start_llama(bool verbose);

class Model {
 public:
  // Throws Error(kBadFormat) if llama.cpp cannot load it.
  explicit Model(const std::string& path);

  const std::string& path() const { return path_; }
  llama_model* get() const { return model_.get(); }
  const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }
  int32_t vocab_size() const { return llama_vocab_n_tokens(vocab()); }
  int32_t trained_context() const { return llama_model_n_ctx_train(model_.get()); }
  // Bytes of f16 K and V of one token in all layers; 0 if layers differ.
  int64_t kv_bytes_per_token() const;

  // `special`: the text holds control tokens (a chat template's); `bos`: begin as the model wants.
  std::vector<llama_token> tokenize(const std::string& text, bool bos, bool special) const;
  std::string piece(llama_token token) const;
  std::string text(std::span<const llama_token> tokens) const;
  std::string meta(const char* key) const;

 private:
  std::string path_;
  std::unique_ptr<llama_model, decltype(&llama_model_free)> model_{nullptr, llama_model_free};
};

// Called with the tokens prefilled so far.
using PrefillProgress = std::function<void(int64_t done)>;

struct ContextOptions {
  int64_t num_tokens = 0;  // capacity
  int threads = 1;
  int32_t outputs = 1;  // most logits rows of one decode_batch
};

// A llama.cpp context with one sequence, flash attention on and f16 K and V.
class LlamaContext {
 public:
  LlamaContext(const Model& model, const ContextOptions& options);

  llama_context* get() const { return context_.get(); }
  int64_t size() const { return size_; }
  int64_t capacity() const { return llama_n_ctx(context_.get()); }

  // Appends tokens; logits() is the last one's afterwards. Returns false if stopped.
  bool prefill(std::span<const llama_token> tokens, const PrefillProgress& progress = {});
  // Appends one token, by the decode path.
  bool decode(llama_token token);
  // Appends at most `outputs` tokens in one batch, with logits for each.
  void decode_batch(std::span<const llama_token> tokens);
  const float* logits(int32_t i = -1) const;

  void truncate(int64_t num_tokens);
  void clear() { truncate(0); }
  // What the context holds (K, V and positions), as bytes that restore() of another context takes.
  std::vector<uint8_t> state() const;
  // Throws Error(kUnsupported) if llama.cpp refuses; `num_tokens` are in the state.
  void restore(std::span<const uint8_t> state, int64_t num_tokens);
  void copy_from(const LlamaContext& other) { restore(other.state(), other.size()); }
  // Bytes of K and V that `num_tokens` tokens take; from the state's size where layers differ.
  double kv_bytes_of(const Model& model, double num_tokens) const;

  // Set from a signal handler or another thread: stops prefill and decode.
  static std::atomic<bool> stop;

 private:
  bool submit(std::span<const llama_token> tokens, bool all_logits);

  std::unique_ptr<llama_context, decltype(&llama_free)> context_{nullptr, llama_free};
  int64_t size_ = 0;
};

// libggml-fasa.so in this process. Contexts that exist before it is loaded stay plain llama.cpp;
// those created after configure() decode as configured.
class FasaBackend {
 public:
  FasaBackend();
  // Throws Error(kInvalidArgument) with the backend's own sentence.
  void configure(const CommonOptions& options, const PolicySettings& settings, const std::string& profile);
  fasa_ggml_stats stats(bool reset) const;
  // Contextual agreement and attention mass of the steps that `decode` makes, by layer and head.
  std::vector<fasa_ggml_agreement> agreement(const std::function<void()>& decode) const;

 private:
  fasa_ggml_configure_t configure_ = nullptr;
  fasa_ggml_stats_t stats_ = nullptr;
  fasa_ggml_probe_t probe_ = nullptr;
  fasa_ggml_agreement_t agreement_ = nullptr;
};

// Throws Error(kMismatch) unless the profile was made from this model (layers' fingerprints).
void check_profile(const std::string& profile, const Model& model);

int64_t peak_rss_bytes();

}  // namespace fasa::cli
