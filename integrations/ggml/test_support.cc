#include "integrations/ggml/test_support.h"

#include <ggml-cpu.h>
#include <gguf.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>

namespace fasa::ggml::test {
namespace {

std::mutex log_mutex;
std::string log_text;

void keep_log(ggml_log_level /*level*/, const char* text, void* /*data*/) {
  const std::lock_guard lock(log_mutex);
  log_text += text;
}

uint32_t number(const gguf_context* file, const std::string& key) {
  const int64_t id = gguf_find_key(file, key.c_str());
  if (id < 0) return 0;
  return gguf_get_kv_type(file, id) == GGUF_TYPE_UINT32 ? gguf_get_val_u32(file, id) : 0;
}

std::string text(const gguf_context* file, const char* key) {
  const int64_t id = gguf_find_key(file, key);
  return id < 0 ? "" : gguf_get_val_str(file, id);
}

}  // namespace

Profile random_profile(const std::string& gguf_path, uint64_t seed) {
  gguf_context* file = gguf_init_from_file(gguf_path.c_str(), {.no_alloc = true, .ctx = nullptr});
  EXPECT_NE(file, nullptr) << gguf_path;
  Profile profile;
  profile.architecture = text(file, "general.architecture");
  profile.model_name = text(file, "general.name");
  const std::string prefix = profile.architecture + ".";
  const uint32_t num_layers = number(file, prefix + "block_count");
  const uint32_t heads = number(file, prefix + "attention.head_count");
  const uint32_t kv_heads = number(file, prefix + "attention.head_count_kv");
  const uint32_t width = number(file, prefix + "embedding_length");
  const uint32_t key_length = number(file, prefix + "attention.key_length");
  const bool windowed = number(file, prefix + "attention.sliding_window") > 0;
  // Gemma 3, which need not say so: every sixth layer is global.
  const uint32_t said = number(file, prefix + "attention.sliding_window_pattern");
  const uint32_t period = said > 0 ? said : 6;
  std::ifstream bytes(gguf_path, std::ios::binary);
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> measure(0.0F, 1.0F);
  for (uint32_t l = 0; l < num_layers; ++l) {
    LayerProfile layer;
    layer.layer = static_cast<int32_t>(l);
    const std::string name = "blk." + std::to_string(l) + ".attn_norm.weight";
    const int64_t id = gguf_find_tensor(file, name.c_str());
    std::vector<char> weights(gguf_get_tensor_size(file, id));
    bytes.seekg(static_cast<std::streamoff>(gguf_get_data_offset(file) + gguf_get_tensor_offset(file, id)));
    bytes.read(weights.data(), static_cast<std::streamsize>(weights.size()));
    layer.fingerprint = fingerprint(weights.data(), weights.size());
    layer.num_q_heads = static_cast<int32_t>(heads);
    layer.num_kv_heads = static_cast<int32_t>(kv_heads);
    const bool interleaved = profile.architecture == "llama";
    layer.rope.layout = interleaved ? RopeLayout::kInterleaved : RopeLayout::kHalf;
    layer.rope.head_dim = static_cast<int32_t>(key_length > 0 ? key_length : width / heads);
    layer.rope.rotary_dim = layer.rope.head_dim;
    layer.sliding_window = windowed && l % period != period - 1;
    if (!layer.sliding_window) {
      std::vector<float>& values = layer.measures["energy"];
      values.resize(static_cast<size_t>(layer.num_q_heads) * static_cast<size_t>(num_fcs(layer.rope)));
      std::ranges::generate(values, [&] { return measure(random); });
      const auto head_dim = static_cast<size_t>(layer.rope.head_dim);
      layer.channels["abs_qk"].resize(heads * head_dim);
      std::ranges::generate(layer.channels["abs_qk"], [&] { return measure(random); });
      layer.bases["pca_post"].resize(kv_heads * head_dim / 2 * head_dim);
      std::ranges::generate(layer.bases["pca_post"], [&] { return measure(random) - 0.5F; });
    }
    profile.layers.push_back(std::move(layer));
  }
  profile.provenance["texts"] = "random measures";
  gguf_free(file);
  return profile;
}

TempFile::TempFile(const std::string& suffix) {
  const std::string unique(6, 'X');  // mkstemps replaces them
  std::string name = (std::filesystem::temp_directory_path() / ("fasa_test_" + unique)).string() + suffix;
  const int fd = mkstemps(name.data(), static_cast<int>(suffix.size()));
  EXPECT_GE(fd, 0);
  if (fd >= 0) close(fd);
  path_ = name;
}

TempFile::~TempFile() { std::filesystem::remove(path_); }

const Backend& backend() {
  static const Backend loaded = [] {
    llama_log_set(keep_log, nullptr);
    EXPECT_NE(ggml_backend_load(FASA_CPU_BACKEND), nullptr) << FASA_CPU_BACKEND;
    ggml_backend_reg_t reg = ggml_backend_load(FASA_GGML_BACKEND);
    EXPECT_NE(reg, nullptr) << FASA_GGML_BACKEND;
    llama_backend_init();
    const auto find = [&](const char* name) { return ggml_backend_reg_get_proc_address(reg, name); };
    Backend b;
    b.configure = reinterpret_cast<fasa_ggml_configure_t>(find("fasa_ggml_configure"));
    b.stats = reinterpret_cast<fasa_ggml_stats_t>(find("fasa_ggml_stats"));
    b.check_index = reinterpret_cast<fasa_ggml_check_index_t>(find("fasa_ggml_check_index"));
    return b;
  }();
  return loaded;
}

void configure(const std::string& settings) {
  const char* message = "";
  ASSERT_EQ(backend().configure(settings.c_str(), &message), 0) << message;
}

fasa_ggml_stats take_stats() {
  fasa_ggml_stats stats;
  backend().stats(&stats, 1);
  return stats;
}

std::string take_log() {
  const std::lock_guard lock(log_mutex);
  return std::exchange(log_text, "");
}

ModelPtr load_model(const std::string& path) {
  backend();
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  // Repacked weights (AMX) quantise activations in another way for batches than for one token.
  params.use_extra_bufts = false;
  ModelPtr model(llama_model_load_from_file(path.c_str(), params));
  EXPECT_NE(model, nullptr) << path << "\n" << take_log();
  return model;
}

ContextPtr make_context(llama_model* model, const ContextOptions& options) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = options.n_ctx;
  params.n_batch = options.n_batch;
  params.n_ubatch = options.n_batch;
  params.n_seq_max = options.n_seq_max;
  params.kv_unified = options.kv_unified;
  params.type_k = options.type_k;
  params.type_v = options.type_v;
  params.flash_attn_type = options.flash_attn;
  params.n_threads = options.n_threads;
  params.n_threads_batch = options.n_threads;
  params.no_perf = true;
  ContextPtr context(llama_init_from_model(model, params));
  EXPECT_NE(context, nullptr) << take_log();
  return context;
}

namespace {

// Decodes one batch, with logits of its last token or of all.
void decode_batch(llama_context* context, const std::vector<Token>& tokens, bool all_logits) {
  llama_batch batch = llama_batch_init(static_cast<int32_t>(tokens.size()), 0, 1);
  for (size_t i = 0; i < tokens.size(); ++i) {
    batch.token[i] = tokens[i].id;
    batch.pos[i] = tokens[i].pos;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = tokens[i].seq;
    batch.logits[i] = static_cast<int8_t>(all_logits || i + 1 == tokens.size());
  }
  batch.n_tokens = static_cast<int32_t>(tokens.size());
  EXPECT_EQ(llama_decode(context, batch), 0) << take_log();
  llama_batch_free(batch);
}

std::vector<float> logits_of(llama_context* context, int32_t index) {
  const float* row = llama_get_logits_ith(context, index);
  EXPECT_NE(row, nullptr);
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
  return row == nullptr ? std::vector<float>() : std::vector<float>(row, row + vocabulary);
}

}  // namespace

std::vector<std::vector<float>> decode(llama_context* context, const std::vector<Token>& tokens) {
  decode_batch(context, tokens, true);
  std::vector<std::vector<float>> logits;
  for (size_t i = 0; i < tokens.size(); ++i) logits.push_back(logits_of(context, static_cast<int32_t>(i)));
  return logits;
}

std::vector<float> prefill(llama_context* context, const std::vector<llama_token>& tokens, llama_pos first,
                           llama_seq_id seq) {
  const size_t step_size = llama_n_batch(context);
  for (size_t at = 0; at < tokens.size(); at += step_size) {
    std::vector<Token> batch;
    for (size_t i = at; i < std::min(at + step_size, tokens.size()); ++i) {
      batch.push_back({tokens[i], first + static_cast<llama_pos>(i), seq});
    }
    decode_batch(context, batch, false);
  }
  return logits_of(context, -1);
}

std::vector<float> step(llama_context* context, llama_token token, llama_pos pos, llama_seq_id seq) {
  return decode(context, {{token, pos, seq}}).front();
}

std::vector<llama_token> random_tokens(const llama_model* model, int count, uint32_t seed) {
  std::mt19937 random(seed);
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::uniform_int_distribution<llama_token> token(std::min(100, vocabulary / 2), vocabulary - 1);
  std::vector<llama_token> tokens(static_cast<size_t>(count));
  std::ranges::generate(tokens, [&] { return token(random); });
  return tokens;
}

float max_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  float largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

Setup::Setup(const std::string& gguf_path, uint64_t seed) : profile_(".fasa.json") {
  save_profile(random_profile(gguf_path, seed), profile_.path());
  model_ = load_model(gguf_path);
}

void Setup::use(const std::string& settings) const {
  configure("profile=" + profile_.path() + " " + settings);
  take_stats();
}

}  // namespace fasa::ggml::test
