#include "cli/capture.h"

#include <fmt/format.h>
#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

#include "fasa/error.h"
#include "src/calibrate/principal_components.h"
#include "src/core/dtype.h"

namespace fasa::cli {
namespace {

constexpr int64_t kBatch = 512;

// A tensor's bytes in host memory, with its own strides; copied only if it is elsewhere.
class HostBytes {
 public:
  explicit HostBytes(const ggml_tensor& tensor) {
    const ggml_backend_buffer_t buffer =
        tensor.buffer != nullptr || tensor.view_src == nullptr ? tensor.buffer : tensor.view_src->buffer;
    if (buffer == nullptr || ggml_backend_buffer_is_host(buffer)) {
      data_ = static_cast<std::byte*>(tensor.data);
      return;
    }
    copy_.resize(ggml_nbytes(&tensor));
    ggml_backend_tensor_get(&tensor, copy_.data(), 0, copy_.size());
    data_ = copy_.data();
  }
  std::byte* data() const { return data_; }

 private:
  std::vector<std::byte> copy_;
  std::byte* data_ = nullptr;
};

std::optional<DType> dtype_of(ggml_type type) {
  if (type == GGML_TYPE_F32) return DType::kF32;
  if (type == GGML_TYPE_F16) return DType::kF16;
  if (type == GGML_TYPE_BF16) return DType::kBF16;
  return std::nullopt;
}

// `name` is prefix<number>suffix.
std::optional<int32_t> numbered(const char* name, const char* prefix, const char* suffix) {
  const size_t skip = std::strlen(prefix);
  if (std::strncmp(name, prefix, skip) != 0) return std::nullopt;
  char* end = nullptr;
  const int64_t number = std::strtol(name + skip, &end, 10);
  if (end == name + skip || std::strcmp(end, suffix) != 0 || number < 0 || number > 4095) {
    return std::nullopt;
  }
  return static_cast<int32_t>(number);
}

[[noreturn]] void unsupported(const std::string& why) {
  throw Error(ErrorCode::kUnsupported, "FASA cannot calibrate this model: " + why);
}

enum class Visible { kCausal, kWindowed, kOther };

// What the mask lets token `token`, at `position` of a fresh context, see.
Visible visible_rows(const ggml_tensor& mask, const std::byte* data, int64_t token, int64_t position) {
  const auto type = dtype_of(mask.type);
  if (!type) return Visible::kOther;
  const std::byte* row = data + token * static_cast<int64_t>(mask.nb[1]);
  int64_t seen = 0;
  bool exact = true;
  for (int64_t t = 0; t < mask.ne[0]; ++t) {
    const bool visible = load_value(*type, row, t) >= 0;
    seen += visible ? 1 : 0;
    exact = exact && visible == (t <= position);
  }
  if (exact && mask.ne[0] > position) return Visible::kCausal;
  return seen < position + 1 ? Visible::kWindowed : Visible::kOther;
}

}  // namespace

struct Capture::Layer {
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;
  RopeSpec rope;
  bool sliding_window = false;
  calibrate::LayerStatistics statistics;
  calibrate::PrincipalComponents components;
};

Capture::Capture(const Model& model, const CaptureSettings& settings)
    : settings_(settings), workers_(make_thread_executor(settings.threads)) {
  check_settings(model);
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(settings.context);
  params.n_batch = kBatch;
  params.n_ubatch = kBatch;
  params.n_seq_max = 1;
  params.n_threads = settings.threads;
  params.n_threads_batch = settings.threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.offload_kqv = false;
  params.op_offload = false;
  params.no_perf = true;
  params.cb_eval = on_eval;
  params.cb_eval_user_data = this;
  context_.reset(llama_init_from_model(model.get(), params));
  if (!context_) {
    throw Error(ErrorCode::kOutOfMemory, fmt::format("llama.cpp cannot create a context of {} tokens: choose a smaller "
                                                     "--context",
                                                     settings.context));
  }
}

Capture::~Capture() = default;

void Capture::check_settings(const Model& model) {
  const std::string arch = model.meta("general.architecture");
  const auto number = [&](const std::string& key, double otherwise) {
    const std::string text = model.meta((arch + key).c_str());
    return text.empty() ? otherwise : std::strtod(text.c_str(), nullptr);
  };
  switch (llama_model_rope_type(model.get())) {
    case LLAMA_ROPE_TYPE_NORM:
      layout_ = RopeLayout::kInterleaved;
      break;
    case LLAMA_ROPE_TYPE_NEOX:
      layout_ = RopeLayout::kHalf;
      break;
    case LLAMA_ROPE_TYPE_NONE:
      unsupported(fmt::format("its architecture {} has no rotary position embeddings", arch));
    default:
      unsupported(fmt::format("its architecture {} rotates by several positions at once (M-RoPE)", arch));
  }
  if (number(".attention.kv_lora_rank", 0) > 0) {
    unsupported("its K cache is latent (MLA), so keys have no frequency chunks");
  }
  rotary_dim_ = static_cast<int64_t>(number(".rope.dimension_count", 0));
  freq_base_ = number(".rope.freq_base", 10000.0);
  num_layers_ = llama_model_n_layer(model.get());
  const int64_t window = llama_model_n_swa(model.get());
  has_sliding_window_ = window > 0;
  // All sampled queries lie past 3/4 of the context; each must look further back than the window.
  if (has_sliding_window_ && settings_.context * 3 / 4 <= window) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("this model has sliding-window layers of {} tokens, which only a "
                            "longer context can tell from full ones: choose --context {} or more",
                            window, window * 4 / 3 + 2));
  }
}

RopeSpec Capture::rope(int64_t head_dim) const {
  RopeSpec spec;
  spec.layout = layout_;
  spec.head_dim = static_cast<int32_t>(head_dim);
  spec.rotary_dim = static_cast<int32_t>(rotary_dim_ > 0 ? rotary_dim_ : head_dim);
  spec.freq_base = freq_base_;
  check(spec);
  return spec;
}

void Capture::add_window(std::span<const llama_token> tokens, const std::function<void(double)>& progress) {
  llama_memory_clear(llama_get_memory(context_.get()), true);
  const auto size = static_cast<int64_t>(tokens.size());
  std::vector<int64_t> positions;
  const int64_t first = size * 3 / 4;
  for (int64_t i = 1; i <= settings_.queries; ++i) {
    positions.push_back(first + (size - first) * i / settings_.queries - 1);
  }
  double done = 0;  // half of the work is llama.cpp's, half is ours, roughly
  for (int64_t begin = 0; begin < size; begin += kBatch) {
    const int64_t count = std::min(kBatch, size - begin);
    batch_queries_.clear();
    for (const int64_t p : positions) {
      if (p >= begin && p < begin + count) batch_queries_.push_back({p - begin, p});
    }
    layers_read_ = 0;
    const double share =
        static_cast<double>(batch_queries_.size()) / static_cast<double>(2 * settings_.queries * num_layers_);
    layer_done_ = [&] { progress(done += share); };
    const llama_batch batch =
        llama_batch_get_one(const_cast<llama_token*>(&tokens[begin]), static_cast<int32_t>(count));
    const int32_t result = llama_decode(context_.get(), batch);
    layer_done_ = {};
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    if (result != 0) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("llama.cpp failed to decode the text (code {}): is there memory for "
                              "a context of {} tokens?",
                              result, settings_.context));
    }
    llama_synchronize(context_.get());
    if (!batch_queries_.empty() && layers_read_ == 0) {
      unsupported("llama.cpp runs its attention without flash attention or a K cache");
    }
    progress(done += static_cast<double>(count) / static_cast<double>(2 * size));
  }
}

bool Capture::on_eval(ggml_tensor* tensor, bool ask, void* self) {
  auto& capture = *static_cast<Capture*>(self);
  if (capture.failure_) return !ask ? false : tensor->op == GGML_OP_FLASH_ATTN_EXT;
  try {
    if (ask) {
      if (tensor->op == GGML_OP_MUL) capture.remember_norm(*tensor);
      return tensor->op == GGML_OP_FLASH_ATTN_EXT && !capture.batch_queries_.empty();
    }
    capture.read_attention(*tensor);
    return true;
  } catch (...) {
    capture.failure_ = std::current_exception();
    return false;
  }
}

void Capture::remember_norm(const ggml_tensor& node) {
  const ggml_tensor* weight = node.src[1];
  if (weight == nullptr || weight->type != GGML_TYPE_F32) return;
  const auto layer = numbered(weight->name, "blk.", ".attn_norm.weight");
  if (!layer || fingerprints_.contains(*layer)) return;
  fingerprints_[*layer] = fingerprint(HostBytes(*weight).data(), ggml_nbytes(weight));
}

Capture::Layer& Capture::layer_of(const ggml_tensor& q, const ggml_tensor& k) {
  const ggml_tensor* root = k.view_src != nullptr ? k.view_src : &k;
  const auto number = numbered(root->name, "cache_k_l", "");
  if (!number) unsupported(fmt::format("its attention reads '{}', not llama.cpp's K cache", root->name));
  const auto at = layers_.find(*number);
  if (at != layers_.end()) return at->second;
  const RopeSpec spec = rope(q.ne[0]);
  const auto q_heads = static_cast<int32_t>(q.ne[2]);
  const auto kv_heads = static_cast<int32_t>(k.ne[2]);
  return layers_
      .emplace(*number, Layer{q_heads, kv_heads, spec, false, calibrate::LayerStatistics(q_heads, kv_heads, spec),
                              calibrate::PrincipalComponents(kv_heads, spec)})
      .first->second;
}

// FLASH_ATTN_EXT: q [head_dim, tokens, q heads, 1] f32; k [head_dim, cells, KV heads, 1]; mask
// [cells, tokens].
void Capture::read_attention(const ggml_tensor& node) {
  const ggml_tensor& q = *node.src[0];
  const ggml_tensor& k = *node.src[1];
  const ggml_tensor* mask = node.src[3];
  const auto k_type = dtype_of(k.type);
  if (q.type != GGML_TYPE_F32 || !k_type || mask == nullptr || q.ne[3] != 1 || k.ne[3] != 1 || q.ne[0] != k.ne[0]) {
    unsupported("its attention has operands of a form unknown here");
  }
  Layer& layer = layer_of(q, k);
  ++layers_read_;
  const HostBytes mask_bytes(*mask);
  for (const Query& query : batch_queries_) {
    if (query.token >= q.ne[1]) unsupported("its attention drops queries");
    const Visible visible = visible_rows(*mask, mask_bytes.data(), query.token, query.position);
    if (visible == Visible::kCausal) continue;
    if (visible == Visible::kOther || !has_sliding_window_) {
      unsupported("its attention mask is neither causal nor a sliding window");
    }
    layer.sliding_window = true;
  }
  if (!layer.sliding_window) {
    const HostBytes q_bytes(q);
    const HostBytes k_bytes(k);
    const CacheView cache{k_bytes.data(),
                          *k_type,
                          k.ne[1],
                          k.ne[2],
                          k.ne[0],
                          static_cast<int64_t>(k.nb[1]),
                          static_cast<int64_t>(k.nb[2])};
    std::vector<calibrate::QuerySample> samples;
    for (const Query& query : batch_queries_) {
      auto* at = q_bytes.data() + query.token * static_cast<int64_t>(q.nb[1]);
      const HeadsView heads{reinterpret_cast<float*>(at), q.ne[2], q.ne[0],
                            static_cast<int64_t>(q.nb[2] / sizeof(float))};
      samples.push_back({heads, query.position + 1});
    }
    layer.statistics.add(workers_, cache, samples);
    if (settings_.pca) layer.components.add(workers_, cache, samples.back().num_rows);
  }
  if (layer_done_) layer_done_();
}

std::vector<LayerProfile> Capture::layers() const {
  std::vector<LayerProfile> result;
  bool any = false;
  for (const auto& [number, layer] : layers_) {
    LayerProfile profile;
    profile.layer = number;
    const auto at = fingerprints_.find(number);
    if (at == fingerprints_.end()) {
      unsupported(
          fmt::format("its layer {} has no attention norm (blk.{}.attn_norm.weight), which "
                      "identifies the model",
                      number, number));
    }
    profile.fingerprint = at->second;
    profile.num_q_heads = layer.num_q_heads;
    profile.num_kv_heads = layer.num_kv_heads;
    profile.sliding_window = layer.sliding_window;
    profile.rope = layer.rope;
    if (!layer.sliding_window) {
      profile.measures = layer.statistics.measures();
      profile.channels = layer.statistics.channels();
      profile.bases = layer.components.bases(layer.rope.head_dim / 2);
    }
    any = any || !profile.measures.empty();
    result.push_back(std::move(profile));
  }
  if (!any) unsupported("all of its layers have a sliding window, which is short already");
  return result;
}

}  // namespace fasa::cli
