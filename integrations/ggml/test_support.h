// What the tests of the backend share: profiles made of random measures, contexts, logits.
#pragma once

#include <ggml-backend.h>
#include <llama.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fasa/profile.h"
#include "integrations/ggml/ggml-fasa.h"

namespace fasa::ggml::test {

// The profile of a GGUF file with measures drawn from `seed` and the file's own fingerprints.
Profile random_profile(const std::string& gguf_path, uint64_t seed);

// A file that is removed when the object goes.
class TempFile {
 public:
  explicit TempFile(const std::string& suffix);
  ~TempFile();
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The backend as a program gets it: loaded by path, its functions by name. One a process.
struct Backend {
  fasa_ggml_configure_t configure = nullptr;
  fasa_ggml_stats_t stats = nullptr;
  fasa_ggml_check_index_t check_index = nullptr;
};
const Backend& backend();  // loads ggml's CPU backend, then ours
// Fails the test if the settings are refused.
void configure(const std::string& settings);
fasa_ggml_stats take_stats();  // and resets them
// What ggml and llama.cpp logged since the last call.
std::string take_log();

struct FreeModel {
  void operator()(llama_model* model) const { llama_model_free(model); }
};
struct FreeContext {
  void operator()(llama_context* context) const { llama_free(context); }
};
using ModelPtr = std::unique_ptr<llama_model, FreeModel>;
using ContextPtr = std::unique_ptr<llama_context, FreeContext>;

ModelPtr load_model(const std::string& path);

struct ContextOptions {
  uint32_t n_ctx = 1024;
  uint32_t n_batch = 512;
  uint32_t n_seq_max = 1;
  bool kv_unified = true;
  ggml_type type_k = GGML_TYPE_F16;
  ggml_type type_v = GGML_TYPE_F16;
  llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  int n_threads = 2;
};
ContextPtr make_context(llama_model* model, const ContextOptions& options = {});

struct Token {
  llama_token id;
  llama_pos pos;
  llama_seq_id seq = 0;
};
// Decodes one batch; all tokens have logits. [tokens][vocabulary]
std::vector<std::vector<float>> decode(llama_context* context, const std::vector<Token>& tokens);
// One batch for the tokens from `first` on, for sequence `seq`; the last token's logits.
std::vector<float> prefill(llama_context* context, const std::vector<llama_token>& tokens, llama_pos first = 0,
                           llama_seq_id seq = 0);
std::vector<float> step(llama_context* context, llama_token token, llama_pos pos, llama_seq_id seq = 0);
std::vector<llama_token> random_tokens(const llama_model* model, int count, uint32_t seed);

float max_difference(const std::vector<float>& a, const std::vector<float>& b);
// |a - b| / |b|
double relative_difference(const std::vector<float>& a, const std::vector<float>& b);

// Sets it up for one model: a profile file and settings.
class Setup {
 public:
  explicit Setup(const std::string& gguf_path, uint64_t seed = 1);
  // profile=... and then `settings`.
  void use(const std::string& settings) const;
  llama_model* model() const { return model_.get(); }
  const std::string& profile_path() const { return profile_.path(); }

 private:
  TempFile profile_;
  ModelPtr model_;
};

}  // namespace fasa::ggml::test
