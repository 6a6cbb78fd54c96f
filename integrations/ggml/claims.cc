#include "integrations/ggml/claims.h"

#include <ggml-backend-impl.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>

#include "integrations/ggml/config.h"
#include "integrations/ggml/kv_registry.h"

namespace fasa::ggml {
namespace {

// The scheduler's first pass over a graph visits its nodes in order on one thread: a layer's
// attention norm, then the layer's write to the K cache, which takes the fingerprint from here.
std::unordered_map<int, uint64_t>& seen_norms() {
  thread_local std::unordered_map<int, uint64_t> norms;
  return norms;
}

// <layer> of "blk.<layer>.attn_norm.weight", or -1.
int norm_layer(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  constexpr std::string_view kSuffix = ".attn_norm.weight";
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return -1;
  int layer = -1;
  const char* end = name.data() + name.size() - kSuffix.size();
  const auto result = std::from_chars(name.data() + kPrefix.size(), end, layer);
  return result.ec == std::errc() && result.ptr == end ? layer : -1;
}

void note_norm(const ggml_tensor* op) {
  const ggml_tensor* weight = op->src[1];
  if (weight == nullptr || weight->type != GGML_TYPE_F32 || weight->data == nullptr) return;
  const ggml_backend_buffer_t buffer = weight->buffer;
  if (buffer == nullptr || buffer->size == 0 || !ggml_backend_buffer_is_host(buffer)) return;
  const int layer = norm_layer(weight->name);
  if (layer < 0) return;
  seen_norms()[layer] = fingerprint(weight->data, ggml_nbytes(weight));
}

bool is_whole_rows(const ggml_tensor* dst, const ggml_tensor* root) {
  return dst->data == root->data && dst->ne[0] == root->ne[0] && dst->nb[1] == root->nb[1] && dst->ne[2] == 1 &&
         dst->ne[3] == 1;
}

bool can_write(const ggml_tensor* op) {
  const ggml_tensor* src = op->src[0];
  const ggml_tensor* ids = op->src[1];
  const bool type_ok = op->type == GGML_TYPE_F16 || op->type == GGML_TYPE_BF16 || op->type == GGML_TYPE_F32;
  return type_ok && src->type == GGML_TYPE_F32 && src->nb[0] == sizeof(float) && src->ne[2] == 1 && src->ne[3] == 1 &&
         (ids->type == GGML_TYPE_I64 || ids->type == GGML_TYPE_I32) && ggml_is_contiguous(ids);
}

const LayerProfile* matching_profile(const Config& config, const KvLayer& kv) {
  const LayerProfile* layer = config.sparse_layer(kv.layer);
  if (layer == nullptr) return nullptr;
  if (!kv.has_fingerprint) return nullptr;
  const bool same =
      layer->fingerprint == kv.fingerprint && int64_t{layer->num_kv_heads} * layer->rope.head_dim == kv.row_size;
  if (!same) {
    warn_once("FASA does nothing here: the profile " + config.profile_path + " belongs to another model (layer " +
              std::to_string(kv.layer) + " differs); make one of this model with `fasa calibrate`.");
    return nullptr;
  }
  return layer;
}

// The settings of the context that the cache belongs to.
std::shared_ptr<const Config> config_of(const ggml_tensor* root) {
  const std::shared_ptr<KvLayer> kv = find_layer(root);
  return kv != nullptr ? kv->config : current_config();
}

// A layer that stays dense keeps no index, so llama.cpp may write it: a part of the graph less. With `full` every layer is
// dense, and one write at least tells that the cache is in use (is_in_use).
bool may_skip_writes(const Config& config, const KvLayer& kv) {
  return !kv.indexed && config.settings.kind != PolicyKind::kFull && is_dense_layer(config.settings, kv.layer);
}

bool claims_k_write(const ggml_tensor* op, const ggml_tensor* root, int layer) {
  // Taken in any case: it may belong to another model that this thread runs next.
  const auto norm = seen_norms().extract(layer);
  const std::shared_ptr<const Config> config = config_of(root);
  if (config->profile == nullptr && find_layer(root) == nullptr) {
    warn_once(config->problem);
    return false;
  }
  if (ggml_is_quantized(root->type)) {
    warn_once(
        "FASA does nothing for a quantised K cache, because llama.cpp rotates such keys (Hadamard) "
        "and frequency chunks do not survive that; use --cache-type-k f16 or bf16.");
    return false;
  }
  if (!can_write(op) || !is_whole_rows(op, root)) return false;
  if (config->sparse_layer(layer) == nullptr && find_layer(root) == nullptr) return false;
  const std::shared_ptr<KvLayer> kv = register_layer(root, layer);
  if (kv == nullptr) return false;
  if (!norm.empty()) {
    kv->fingerprint = norm.mapped();
    kv->has_fingerprint = true;
  }
  if (kv->indexed) return true;  // an index must see every write
  if (may_skip_writes(*config, *kv)) return false;
  return !has_transposed_v(root->buffer) && matching_profile(*config, *kv) != nullptr;
}

// V is written by us only where K is, so that both are one part of the graph.
bool claims_v_write(const ggml_tensor* op, const ggml_tensor* root, int layer) {
  if (!is_whole_rows(op, root)) {
    note_transposed_v(root);
    return false;
  }
  if (!can_write(op)) return false;
  if (root->buffer == nullptr) return false;
  for (const auto& kv : all_layers()) {
    if (kv->buffer == root->buffer && kv->layer == layer) {
      return !may_skip_writes(*kv->config, *kv) && matching_profile(*kv->config, *kv) != nullptr &&
             root->ne[1] == kv->num_rows;
    }
  }
  return false;
}

bool claims_set_rows(const ggml_tensor* op) {
  const ggml_tensor* root = root_of(op);
  const int k_layer = cache_layer(root, 'k');
  if (k_layer >= 0) return claims_k_write(op, root, k_layer);
  const int v_layer = cache_layer(root, 'v');
  return v_layer >= 0 && claims_v_write(op, root, v_layer);
}

bool mask_ok(const ggml_tensor* mask, const ggml_tensor* q, const ggml_tensor* k) {
  if (mask == nullptr) return true;
  return mask->type == GGML_TYPE_F16 && mask->ne[0] >= k->ne[1] && mask->nb[0] == 2 && mask->ne[1] >= q->ne[1] &&
         mask->ne[2] == 1 && (mask->ne[3] == 1 || mask->ne[3] == q->ne[3]);
}

// A prefill is taken only to show its queries to the policy; ggml's CPU backend computes it.
bool observes_prefill(const Config& config, int layer, const ggml_tensor* op) {
  if (!policy_info(config.settings.kind).observes_prefill || is_dense_layer(config.settings, layer)) return false;
  ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  return cpu != nullptr && ggml_backend_dev_supports_op(cpu, op);
}

// Something was written to one of the layers that share its buffer.
bool is_in_use(const KvLayer& cache) {
  if (cache.written) return true;
  const auto layers = all_layers();
  return std::ranges::any_of(layers, [&](const auto& kv) { return kv->buffer == cache.buffer && kv->written; });
}

bool claims_attention(const ggml_tensor* op) {
  const ggml_tensor* q = op->src[0];
  const ggml_tensor* k = op->src[1];
  const ggml_tensor* v = op->src[2];
  const ggml_tensor* root = root_of(k);
  if (cache_layer(root, 'k') < 0) return false;
  const std::shared_ptr<const Config> config = config_of(root);
  if (q->ne[1] > kMaxQueryRows && !observes_prefill(*config, cache_layer(root, 'k'), op)) return false;
  if (config->profile == nullptr || k->ne[1] <= config->settings.budget) return false;
  const std::shared_ptr<KvLayer> kv = find_layer(root);
  // Before anything was written llama.cpp probes, with the whole cache, whether attention runs on the layer's own device.
  if (kv == nullptr || (k->ne[1] >= kv->num_rows && !is_in_use(*kv))) return false;
  const LayerProfile* layer = matching_profile(*config, *kv);
  if (layer == nullptr) return false;
  bool k_known = false;
  bool v_known = false;
  dtype_of(k->type, &k_known);
  dtype_of(v->type, &v_known);
  float max_bias = 0;
  std::memcpy(&max_bias, reinterpret_cast<const float*>(op->op_params) + 1, sizeof(float));
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(k->data) - kv->data);
  const size_t stream_bytes = kv->row_bytes * static_cast<size_t>(kv->num_rows);
  const bool v_host = root_of(v)->buffer != nullptr && ggml_backend_buffer_is_host(root_of(v)->buffer);
  return k_known && v_known && v_host && max_bias == 0 && q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) &&
         q->ne[2] == layer->num_q_heads && k->ne[2] == layer->num_kv_heads && v->ne[2] == layer->num_kv_heads &&
         k->ne[0] == layer->rope.head_dim && q->ne[0] == k->ne[0] && k->ne[3] == q->ne[3] && v->ne[3] == q->ne[3] &&
         v->ne[1] == k->ne[1] && k->nb[1] == kv->row_bytes && offset % stream_bytes == 0 && k->ne[1] <= kv->num_rows &&
         v->nb[0] == ggml_type_size(v->type) && mask_ok(op->src[3], q, k) && op->type == GGML_TYPE_F32;
}

// K-shift: the keys of the cache are rotated in place.
bool claims_rope(const ggml_tensor* op) {
  if (op->view_src == nullptr || cache_layer(op->view_src, 'k') < 0) return false;
  const std::shared_ptr<KvLayer> kv = find_layer(op->view_src);
  if (kv == nullptr || !kv->has_fingerprint) return false;
  ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  return cpu != nullptr && ggml_backend_dev_supports_op(cpu, op);
}

}  // namespace

bool claims(const ggml_tensor* op) {
  switch (op->op) {
    case GGML_OP_MUL:
      note_norm(op);
      return false;
    case GGML_OP_SET_ROWS:
      return claims_set_rows(op);
    case GGML_OP_FLASH_ATTN_EXT:
      return claims_attention(op);
    case GGML_OP_ROPE:
      return claims_rope(op);
    case GGML_OP_VIEW:
    case GGML_OP_RESHAPE:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
      return true;
    default:
      return false;
  }
}

}  // namespace fasa::ggml
