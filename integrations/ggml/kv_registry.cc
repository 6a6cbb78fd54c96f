#include "integrations/ggml/kv_registry.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace fasa::ggml {
namespace {

struct Registry {
  std::mutex mutex;
  std::unordered_map<const ggml_tensor*, std::shared_ptr<KvLayer>> layers;
  std::unordered_map<ggml_backend_buffer_t, ggml_backend_buffer_i> original;
  std::unordered_set<ggml_backend_buffer_t> transposed_v;
};

// Never destroyed: buffers outlive static objects.
Registry& registry() {
  static Registry* const instance = new Registry;
  return *instance;
}

ggml_backend_buffer_i original_of(ggml_backend_buffer_t buffer) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  return r.original.at(buffer);
}

std::vector<std::shared_ptr<KvLayer>> layers_of(ggml_backend_buffer_t buffer) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  std::vector<std::shared_ptr<KvLayer>> found;
  for (const auto& [root, layer] : r.layers) {
    if (layer->buffer == buffer) found.push_back(layer);
  }
  return found;
}

void forget_bytes(ggml_backend_buffer_t buffer, const std::byte* begin, const std::byte* end) {
  if (begin >= end) return;
  for (const auto& layer : layers_of(buffer)) {
    const size_t stream_bytes = layer->row_bytes * static_cast<size_t>(layer->num_rows);
    const std::byte* layer_end = layer->data + stream_bytes * static_cast<size_t>(layer->num_streams);
    const std::byte* first = std::max<const std::byte*>(begin, layer->data);
    const std::byte* last = std::min(end, layer_end);
    if (first >= last) continue;
    layer->written = true;
    const auto row_begin = static_cast<int64_t>(static_cast<size_t>(first - layer->data) / layer->row_bytes);
    const auto row_end =
        static_cast<int64_t>((static_cast<size_t>(last - layer->data) + layer->row_bytes - 1) / layer->row_bytes);
    const std::lock_guard lock(layer->mutex);
    for (const auto& index : layer->indices) {
      for (int64_t s = row_begin / layer->num_rows; s * layer->num_rows < row_end; ++s) {
        const int64_t from = std::max(row_begin - s * layer->num_rows, int64_t{0});
        const int64_t to = std::min(row_end - s * layer->num_rows, layer->num_rows);
        index->streams[s]->replaced(from, to - from);
      }
    }
  }
}

void forget_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, size_t offset, size_t size) {
  const auto* begin = static_cast<const std::byte*>(tensor->data) + offset;
  forget_bytes(buffer, begin, begin + size);
}

void hooked_free(ggml_backend_buffer_t buffer) {
  Registry& r = registry();
  ggml_backend_buffer_i original;
  {
    const std::lock_guard lock(r.mutex);
    original = r.original.at(buffer);
    r.original.erase(buffer);
    r.transposed_v.erase(buffer);
    std::erase_if(r.layers, [&](const auto& item) { return item.second->buffer == buffer; });
  }
  buffer->iface = original;
  if (original.free_buffer != nullptr) original.free_buffer(buffer);
}

void hooked_memset(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset, size_t size) {
  original_of(buffer).memset_tensor(buffer, tensor, value, offset, size);
  forget_tensor(buffer, tensor, offset, size);
}

void hooked_set(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
  original_of(buffer).set_tensor(buffer, tensor, data, offset, size);
  forget_tensor(buffer, tensor, offset, size);
}

void hooked_set_2d(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset, size_t size,
                   size_t n_copies, size_t stride_tensor, size_t stride_data) {
  original_of(buffer).set_tensor_2d(buffer, tensor, data, offset, size, n_copies, stride_tensor, stride_data);
  if (n_copies > 0) {
    forget_tensor(buffer, tensor, offset, (n_copies - 1) * stride_tensor + size);
  }
}

bool hooked_copy(ggml_backend_buffer_t buffer, const ggml_tensor* src, ggml_tensor* dst) {
  const bool done = original_of(buffer).cpy_tensor(buffer, src, dst);
  if (done) forget_tensor(buffer, dst, 0, ggml_nbytes(dst));
  return done;
}

void hooked_clear(ggml_backend_buffer_t buffer, uint8_t value) {
  original_of(buffer).clear(buffer, value);
  const auto* base = static_cast<const std::byte*>(ggml_backend_buffer_get_base(buffer));
  forget_bytes(buffer, base, base + buffer->size);
}

// The caller holds the registry's mutex.
void wrap(Registry& r, ggml_backend_buffer_t buffer) {
  if (!r.original.emplace(buffer, buffer->iface).second) return;
  ggml_backend_buffer_i& iface = buffer->iface;
  iface.free_buffer = hooked_free;
  if (iface.memset_tensor != nullptr) iface.memset_tensor = hooked_memset;
  if (iface.set_tensor != nullptr) iface.set_tensor = hooked_set;
  if (iface.set_tensor_2d != nullptr) iface.set_tensor_2d = hooked_set_2d;
  if (iface.cpy_tensor != nullptr) iface.cpy_tensor = hooked_copy;
  if (iface.clear != nullptr) iface.clear = hooked_clear;
}

}  // namespace

DType dtype_of(ggml_type type, bool* known) {
  *known = true;
  if (type == GGML_TYPE_F32) return DType::kF32;
  if (type == GGML_TYPE_F16) return DType::kF16;
  if (type == GGML_TYPE_BF16) return DType::kBF16;
  if (type == GGML_TYPE_Q8_0) return DType::kQ8_0;
  *known = false;
  return DType::kF32;
}

int cache_layer(const ggml_tensor* root, char kind) {
  const std::string_view name(root->name);
  const std::string prefix = std::string("cache_") + kind + "_l";
  if (!name.starts_with(prefix)) return -1;
  int layer = -1;
  const char* end = name.data() + name.size();
  const auto result = std::from_chars(name.data() + prefix.size(), end, layer);
  return result.ec == std::errc() && result.ptr == end && layer >= 0 ? layer : -1;
}

KvLayer::KvLayer(const ggml_tensor* root, int layer_number)
    : layer(layer_number),
      data(static_cast<std::byte*>(root->data)),
      row_bytes(root->nb[1]),
      type(root->type),
      row_size(root->ne[0]),
      num_rows(root->ne[1]),
      num_streams(root->ne[2]),
      buffer(root->buffer),
      config(current_config()) {}

CacheView KvLayer::stream_cache(int64_t stream, int64_t num_heads) const {
  bool known = false;
  CacheView view;
  view.dtype = dtype_of(type, &known);
  view.data = data + static_cast<size_t>(stream * num_rows) * row_bytes;
  view.num_rows = num_rows;
  view.num_heads = num_heads;
  view.head_dim = row_size / num_heads;
  view.row_stride = static_cast<int64_t>(row_bytes);
  view.head_stride = dtype_bytes(view.dtype, view.head_dim);
  return view;
}

InstanceIndex* KvLayer::find(const void* owner) {
  for (const auto& index : indices) {
    if (index->owner == owner) return index.get();
  }
  return nullptr;
}

int64_t KvLayer::memory_bytes() const {
  int64_t total = 0;
  for (const auto& index : indices) {
    for (const auto& stream : index->streams) total += stream->memory_bytes();
  }
  return total;
}

std::shared_ptr<KvLayer> register_layer(const ggml_tensor* root, int layer) {
  if (root->buffer == nullptr || root->data == nullptr || root->buffer->size == 0 ||
      !ggml_backend_buffer_is_host(root->buffer) || ggml_backend_buffer_is_multi_buffer(root->buffer)) {
    return nullptr;
  }
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  std::shared_ptr<KvLayer>& entry = r.layers[root];
  if (entry == nullptr || entry->data != root->data || entry->buffer != root->buffer ||
      entry->num_rows != root->ne[1] || entry->num_streams != root->ne[2]) {
    entry = std::make_shared<KvLayer>(root, layer);
    wrap(r, root->buffer);
  }
  return entry;
}

std::shared_ptr<KvLayer> find_layer(const ggml_tensor* root) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  const auto found = r.layers.find(root);
  if (found == r.layers.end() || found->second->data != root->data) return nullptr;
  return found->second;
}

std::vector<std::shared_ptr<KvLayer>> all_layers() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  std::vector<std::shared_ptr<KvLayer>> found;
  for (const auto& [root, layer] : r.layers) found.push_back(layer);
  return found;
}

void drop_instance(const void* owner) {
  for (const auto& layer : all_layers()) {
    const std::lock_guard lock(layer->mutex);
    std::erase_if(layer->indices, [&](const auto& index) { return index->owner == owner; });
    layer->indexed = !layer->indices.empty();
  }
}

void note_transposed_v(const ggml_tensor* v_root) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  if (r.original.contains(v_root->buffer)) r.transposed_v.insert(v_root->buffer);
}

bool has_transposed_v(ggml_backend_buffer_t buffer) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  return r.transposed_v.contains(buffer);
}

}  // namespace fasa::ggml
