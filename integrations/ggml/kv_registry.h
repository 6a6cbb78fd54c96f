// What the process knows of llama.cpp's K caches: one KvLayer a `cache_k_l<layer>` tensor, with the
// indices that backend instances keep of it. Writes that go past the graph (state load, sequence
// copy, clear) are seen by wrapping the functions of the buffer that holds the tensor.
#pragma once

#include <ggml-backend-impl.h>
#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "integrations/ggml/config.h"
#include "src/kv/layer_index.h"

namespace fasa::ggml {

// The tensor that owns the memory.
inline const ggml_tensor* root_of(const ggml_tensor* tensor) {
  return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

// <layer> of "cache_k_l<layer>" (kind 'k') or "cache_v_l<layer>"; -1 if the name is another.
int cache_layer(const ggml_tensor* root, char kind);

// The indices of one backend instance: one a stream.
struct InstanceIndex {
  const void* owner = nullptr;
  int64_t num_kv_heads = 0;
  PolicySettings settings;  // of the layer
  std::vector<std::unique_ptr<LayerIndex>> streams;
};

struct KvLayer {
  explicit KvLayer(const ggml_tensor* root_tensor, int layer_number);

  int64_t rows_per_stream() const { return num_rows; }
  CacheView stream_cache(int64_t stream, int64_t num_heads) const;
  InstanceIndex* find(const void* owner);
  int64_t memory_bytes() const;

  int layer;
  std::byte* data;
  size_t row_bytes;
  ggml_type type;
  int64_t row_size;  // values
  int64_t num_rows;  // of a stream
  int64_t num_streams;
  ggml_backend_buffer_t buffer;
  std::shared_ptr<const Config> config;  // that held when the cache was first seen: its context's

  std::atomic<uint64_t> fingerprint{0};
  std::atomic<bool> has_fingerprint{false};
  std::atomic<bool> written{false};  // by a graph of ours, or through the buffer
  std::atomic<bool> indexed{false};

  std::mutex mutex;  // of what follows
  std::vector<std::unique_ptr<InstanceIndex>> indices;
};

// The K cache of `root`, registered if it is new; null if it is not in host memory.
std::shared_ptr<KvLayer> register_layer(const ggml_tensor* root, int layer);
// Null if it is not registered.
std::shared_ptr<KvLayer> find_layer(const ggml_tensor* root);
std::vector<std::shared_ptr<KvLayer>> all_layers();

// An instance is freed: its indices go.
void drop_instance(const void* owner);

// V caches written without flash attention are transposed; then FASA never runs on that buffer.
void note_transposed_v(const ggml_tensor* v_root);
bool has_transposed_v(ggml_backend_buffer_t buffer);

DType dtype_of(ggml_type type, bool* known);

}  // namespace fasa::ggml
