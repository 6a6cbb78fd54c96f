#include "cli/engine.h"

#include <fmt/format.h>
#include <ggml-backend.h>
#include <gguf.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "cli/paths.h"
#include "cli/progress.h"
#include "fasa/error.h"
#include "fasa/profile.h"

namespace fasa::cli {
namespace {

constexpr int32_t kUbatch = 512;

struct Log {
  bool verbose = false;
  std::string last_error;  // what to add to our own sentence
};

Log& log() {
  static Log instance;  // llama.cpp's log callback is itself one a process
  return instance;
}

void on_log(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) log().last_error = text;
  if (log().verbose) std::fputs(text, stderr);
}

std::string last_log_error() {
  std::string text = log().last_error;
  while (!text.empty() && (text.back() == '\n' || text.back() == '.')) text.pop_back();
  return text.empty() ? "no reason given, try --verbose" : text;
}

int64_t to_int(const std::string& text, int64_t otherwise) {
  char* end = nullptr;
  const int64_t value = std::strtoll(text.c_str(), &end, 10);
  return text.empty() || *end != '\0' ? otherwise : value;
}

}  // namespace

std::atomic<bool> LlamaContext::stop{false};

void start_llama(bool verbose) {
  log().verbose = verbose;
  llama_log_set(on_log, nullptr);
  // The baseline must be llama.cpp alone, whatever the shell exports for its tools.
  unsetenv("GGML_BACKEND_PATH");
  if (ggml_backend_reg_count() == 0) ggml_backend_load_all_from_path(llama_lib_dir().c_str());
  if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
    throw Error(ErrorCode::kNotFound,
                fmt::format("llama.cpp's CPU backend (libggml-cpu.so) does not load from {}: build "
                            "llama.cpp with scripts/setup",
                            llama_lib_dir()));
  }
}

Model::Model(const std::string& path) : path_(path) {
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  log().last_error.clear();
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (!model_) {
    throw Error(ErrorCode::kBadFormat, fmt::format("llama.cpp cannot load the model {}: {}", path, last_log_error()));
  }
}

std::string Model::meta(const char* key) const {
  char buffer[512];
  const int32_t size = llama_model_meta_val_str(get(), key, buffer, sizeof(buffer));
  return size < 0 ? "" : std::string(buffer, std::min<size_t>(size, sizeof(buffer) - 1));
}

int64_t Model::kv_bytes_per_token() const {
  const std::string arch = meta("general.architecture");
  const int64_t heads = llama_model_n_head(get());
  const int64_t kv_heads = to_int(meta((arch + ".attention.head_count_kv").c_str()), -1);
  if (kv_heads <= 0 || heads <= 0 || llama_model_n_swa(get()) > 0) return 0;
  const int64_t head_dim = llama_model_n_embd(get()) / heads;
  const int64_t k = to_int(meta((arch + ".attention.key_length").c_str()), head_dim);
  const int64_t v = to_int(meta((arch + ".attention.value_length").c_str()), head_dim);
  return llama_model_n_layer(get()) * kv_heads * (k + v) * 2;
}

std::vector<llama_token> Model::tokenize(const std::string& text, bool bos, bool special) const {
  const auto size = static_cast<int32_t>(text.size());
  std::vector<llama_token> tokens(text.size() + 2);
  const int32_t count =
      llama_tokenize(vocab(), text.data(), size, tokens.data(), static_cast<int32_t>(tokens.size()), bos, special);
  if (count < 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a text of {} bytes cannot be tokenized: shorten it", text.size()));
  }
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

std::string Model::piece(llama_token token) const {
  std::string text(32, '\0');
  int32_t size = llama_token_to_piece(vocab(), token, text.data(), 32, 0, false);
  if (size < 0) {
    text.resize(static_cast<size_t>(-size));
    size = llama_token_to_piece(vocab(), token, text.data(), -size, 0, false);
  }
  text.resize(static_cast<size_t>(std::max(size, 0)));
  return text;
}

std::string Model::text(std::span<const llama_token> tokens) const {
  std::string all;
  for (const llama_token token : tokens) all += piece(token);
  return all;
}

LlamaContext::LlamaContext(const Model& model, const ContextOptions& options) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(options.num_tokens);
  params.n_batch = kUbatch;
  params.n_ubatch = kUbatch;
  params.n_seq_max = 1;
  params.n_outputs_max = static_cast<uint32_t>(options.outputs);
  params.n_outputs_max_per_seq = static_cast<uint32_t>(options.outputs);
  params.n_threads = options.threads;
  params.n_threads_batch = options.threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.offload_kqv = false;
  params.op_offload = false;
  params.no_perf = true;
  params.abort_callback = [](void*) { return stop.load(std::memory_order_relaxed); };
  log().last_error.clear();
  context_.reset(llama_init_from_model(model.get(), params));
  if (!context_) {
    throw Error(ErrorCode::kOutOfMemory, fmt::format("llama.cpp cannot create a context of {} tokens: {}",
                                                     options.num_tokens, last_log_error()));
  }
}

bool LlamaContext::submit(std::span<const llama_token> tokens, bool all_logits) {
  if (size_ + static_cast<int64_t>(tokens.size()) > capacity()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} tokens and {} more do not fit into the context of {}: make it "
                            "larger, or give less text",
                            size_, tokens.size(), capacity()));
  }
  llama_batch batch = llama_batch_get_one(const_cast<llama_token*>(tokens.data()), static_cast<int32_t>(tokens.size()));
  std::vector<int8_t> wanted;
  if (all_logits) {
    wanted.assign(tokens.size(), 1);
    batch.logits = wanted.data();
  }
  log().last_error.clear();
  const int32_t result = llama_decode(context_.get(), batch);
  if (result == 2) {  // aborted
    llama_memory_seq_rm(llama_get_memory(context_.get()), 0, static_cast<llama_pos>(size_), -1);
    return false;
  }
  if (result != 0) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("llama.cpp failed to decode {} tokens after {} (code {}): {}",
                                                         tokens.size(), size_, result, last_log_error()));
  }
  llama_synchronize(context_.get());
  size_ += static_cast<int64_t>(tokens.size());
  return true;
}

bool LlamaContext::prefill(std::span<const llama_token> tokens, const PrefillProgress& progress) {
  for (size_t done = 0; done < tokens.size();) {
    const size_t count = std::min<size_t>(kUbatch, tokens.size() - done);
    if (!submit(tokens.subspan(done, count), false)) return false;
    done += count;
    if (progress) progress(static_cast<int64_t>(done));
  }
  return true;
}

bool LlamaContext::decode(llama_token token) { return submit({&token, 1}, false); }

void LlamaContext::decode_batch(std::span<const llama_token> tokens) { submit(tokens, true); }

const float* LlamaContext::logits(int32_t i) const { return llama_get_logits_ith(context_.get(), i); }

void LlamaContext::truncate(int64_t num_tokens) {
  llama_memory_t memory = llama_get_memory(context_.get());
  if (num_tokens == 0) {
    llama_memory_clear(memory, true);
  } else if (!llama_memory_seq_rm(memory, 0, static_cast<llama_pos>(num_tokens), -1)) {
    throw Error(ErrorCode::kUnsupported,
                "this model's memory cannot be cut back to a shorter context, which is needed "
                "here: use a model without recurrent layers");
  }
  size_ = num_tokens;
}

std::vector<uint8_t> LlamaContext::state() const {
  if (size_ == 0) return {};
  std::vector<uint8_t> bytes(llama_state_seq_get_size(get(), 0));
  if (llama_state_seq_get_data(get(), bytes.data(), bytes.size(), 0) == 0) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("llama.cpp could not save the state of {} tokens: {}", size_, last_log_error()));
  }
  return bytes;
}

void LlamaContext::restore(std::span<const uint8_t> state, int64_t num_tokens) {
  truncate(0);
  if (num_tokens == 0) return;
  if (llama_state_seq_set_data(get(), state.data(), state.size(), 0) == 0) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("llama.cpp could not load the state of {} tokens into another context: {}", num_tokens,
                            last_log_error()));
  }
  size_ = num_tokens;
}

double LlamaContext::kv_bytes_of(const Model& model, double num_tokens) const {
  const int64_t per_token = model.kv_bytes_per_token();
  if (per_token > 0) return static_cast<double>(per_token) * num_tokens;
  if (size_ == 0) return 0;
  const auto held = static_cast<double>(llama_state_seq_get_size(get(), 0));
  return held * num_tokens / static_cast<double>(size_);
}

FasaBackend::FasaBackend() {
  const std::string path = backend_path();
  log().last_error.clear();
  ggml_backend_reg_t reg = ggml_backend_load(path.c_str());
  if (!reg) {
    throw Error(ErrorCode::kNotFound, fmt::format("llama.cpp refuses {}: {}", path, last_log_error()));
  }
  const auto symbol = [&](const char* name) {
    void* address = ggml_backend_reg_get_proc_address(reg, name);
    if (address) return address;
    throw Error(ErrorCode::kMismatch, fmt::format("{} has no function {}: it is of another version than this program, "
                                                  "build both together",
                                                  path, name));
  };
  configure_ = reinterpret_cast<fasa_ggml_configure_t>(symbol("fasa_ggml_configure"));
  stats_ = reinterpret_cast<fasa_ggml_stats_t>(symbol("fasa_ggml_stats"));
  probe_ = reinterpret_cast<fasa_ggml_probe_t>(symbol("fasa_ggml_probe"));
  agreement_ = reinterpret_cast<fasa_ggml_agreement_t>(symbol("fasa_ggml_agreement"));
}

void FasaBackend::configure(const CommonOptions& options, const PolicySettings& settings, const std::string& profile) {
  if (profile.find_first_of(" ,") != std::string::npos) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("the path of the profile {} has a space or a comma in it, which the "
                            "backend's settings do not allow: rename or link it",
                            profile));
  }
  std::string text = "profile=" + profile;
  for (const Setting& setting : backend_settings(options, settings)) {
    text += fmt::format(" {}={}", setting.key, setting.value);
  }
  const char* message = nullptr;
  if (configure_(text.c_str(), &message) != 0) {
    throw Error(ErrorCode::kInvalidArgument, message ? message : "the FASA backend refused: " + text);
  }
}

fasa_ggml_stats FasaBackend::stats(bool reset) const {
  fasa_ggml_stats result{};
  stats_(&result, reset ? 1 : 0);
  return result;
}

std::vector<fasa_ggml_agreement> FasaBackend::agreement(const std::function<void()>& decode) const {
  probe_(1);
  decode();
  std::vector<fasa_ggml_agreement> heads(static_cast<size_t>(agreement_(nullptr, 0)));
  agreement_(heads.data(), static_cast<int64_t>(heads.size()));
  probe_(0);
  return heads;
}

void check_profile(const std::string& path, const Model& model) {
  const Profile profile = load_profile(path);
  const std::string arch = model.meta("general.architecture");
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kMismatch,
                fmt::format("the profile {} belongs to another model ({}, {}) than {}: {}; make one "
                            "with `fasa calibrate -m {} --text SOME-LONG-TEXT.txt`",
                            path, profile.model_name, profile.architecture, model.path(), why, model.path()));
  };
  if (profile.architecture != arch) refuse(fmt::format("that is a {} model", arch));
  gguf_init_params params{/*no_alloc=*/true, /*ctx=*/nullptr};
  std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf(gguf_init_from_file(model.path().c_str(), params),
                                                           gguf_free);
  std::ifstream file(model.path(), std::ios::binary);
  if (!gguf || !file) return;  // llama.cpp read it already: a split model, for one
  for (const LayerProfile& layer : profile.layers) {
    const std::string name = fmt::format("blk.{}.attn_norm.weight", layer.layer);
    const int64_t id = gguf_find_tensor(gguf.get(), name.c_str());
    if (id < 0) {
      if (layer.layer >= llama_model_n_layer(model.get())) {
        refuse(fmt::format("it has no layer {}", layer.layer));
      }
      continue;
    }
    if (gguf_get_tensor_type(gguf.get(), id) != GGML_TYPE_F32) continue;
    std::vector<char> bytes(gguf_get_tensor_size(gguf.get(), id));
    file.seekg(static_cast<std::streamoff>(gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), id)));
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (file && fingerprint(bytes.data(), bytes.size()) != layer.fingerprint) {
      refuse(fmt::format("the weights of layer {} differ", layer.layer));
    }
  }
}

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace fasa::cli
