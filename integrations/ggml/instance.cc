#include "integrations/ggml/instance.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>

#include "fasa/error.h"
#include "integrations/ggml/claims.h"
#include "integrations/ggml/omp_executor.h"
#include "src/ops/append/append.h"
#include "src/policy/agreement.h"

namespace fasa::ggml {
namespace {

struct Counters {
  std::atomic<int64_t> sparse_calls{0};
  std::atomic<int64_t> dense_calls{0};
  std::atomic<int64_t> kv_bytes_read{0};
  std::atomic<int64_t> index_bytes_read{0};
  std::atomic<int64_t> rows_rebuilt{0};
};
Counters counters;

struct Probe {
  std::atomic<bool> on{false};
  std::mutex mutex;
  AgreementProbe sums;
};

// Never destroyed: contexts outlive static objects.
Probe& the_probe() {
  static Probe* const instance = new Probe;
  return *instance;
}

constexpr int kDefaultThreads = 4;

}  // namespace

// The parts of a FLASH_ATTN_EXT node.
struct Instance::Attention {
  const ggml_tensor* node;
  const ggml_tensor* q;
  const ggml_tensor* k;
  const ggml_tensor* v;
  const ggml_tensor* mask;
  const KvLayer* kv;
  int64_t first_stream;
  float scale;
  float softcap;
  const float* sink_logits;

  HeadsView query(int64_t stream, int64_t row) const {
    auto* data = static_cast<std::byte*>(q->data) + row * q->nb[1] + stream * q->nb[3];
    return {.data = reinterpret_cast<float*>(data),
            .num_heads = q->ne[2],
            .head_dim = q->ne[0],
            .head_stride = static_cast<int64_t>(q->nb[2] / sizeof(float))};
  }

  const uint16_t* mask_row(int64_t stream, int64_t row) const {
    if (mask == nullptr) return nullptr;
    const auto* base = static_cast<const std::byte*>(mask->data);
    return reinterpret_cast<const uint16_t*>(base + row * mask->nb[1] + (stream % mask->ne[3]) * mask->nb[3]);
  }
};

Instance::Instance() : config_(current_config()) {
  dense_ = config_->settings;
  dense_.kind = PolicyKind::kFull;
  set_num_threads(kDefaultThreads);
}

Instance::~Instance() {
  drop_instance(this);
  if (cpu_ != nullptr) ggml_backend_free(cpu_);
}

void Instance::set_num_threads(int num_threads) {
  if (num_threads == num_threads_ || num_threads < 1) return;
  num_threads_ = num_threads;
  context_ = std::make_unique<Context>(std::make_unique<OmpExecutor>(num_threads));
  if (cpu_ != nullptr) set_cpu_threads();
}

void Instance::set_cpu_threads() {
  ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu_));
  const auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(
      ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"));
  if (set != nullptr) set(cpu_, num_threads_);
}

const LayerProfile* Instance::indexed_layer(const KvLayer& kv) const {
  if (config_->settings.kind == PolicyKind::kFull || is_dense_layer(config_->settings, kv.layer)) {
    return nullptr;
  }
  const LayerProfile* layer = config_->sparse_layer(kv.layer);
  if (layer == nullptr || !kv.has_fingerprint || layer->fingerprint != kv.fingerprint ||
      int64_t{layer->num_kv_heads} * layer->rope.head_dim != kv.row_size) {
    return nullptr;
  }
  return layer;
}

InstanceIndex* Instance::index_of(KvLayer& kv) {
  InstanceIndex* found = kv.find(this);
  if (found != nullptr) return found;
  const LayerProfile* layer = indexed_layer(kv);
  if (layer == nullptr) return nullptr;
  const PolicySettings settings = layer_settings(*config_->profile, config_->settings, kv.layer);
  const Policy& policy = find_policy(settings.kind);
  IndexContent content;
  if (policy.index != nullptr) content = policy.index(*layer, settings);
  content.shape.num_rows = kv.num_rows;
  auto index = std::make_unique<InstanceIndex>();
  index->owner = this;
  index->num_kv_heads = layer->num_kv_heads;
  index->settings = settings;
  for (int64_t s = 0; s < kv.num_streams; ++s) {
    auto state = policy.make_state == nullptr ? nullptr : policy.make_state(*layer, kv.num_rows, settings);
    index->streams.push_back(std::make_unique<LayerIndex>(content, std::move(state), settings.budget));
  }
  kv.indices.push_back(std::move(index));
  kv.indexed = true;
  return kv.indices.back().get();
}

std::span<const int64_t> Instance::row_ids(const ggml_tensor* ids) {
  const auto count = static_cast<size_t>(ggml_nelements(ids));
  if (ids->type == GGML_TYPE_I64) return {static_cast<const int64_t*>(ids->data), count};
  const auto* small = static_cast<const int32_t*>(ids->data);
  ids_.assign(small, small + count);
  return ids_;
}

void Instance::set_rows(const ggml_tensor* node) {
  const ggml_tensor* root = root_of(node);
  if (cache_layer(root, 'k') >= 0) {
    write_k(node, root);
  } else {
    write_v(node, root);
  }
}

void Instance::write_k(const ggml_tensor* node, const ggml_tensor* root) {
  const std::shared_ptr<KvLayer> kv = find_layer(root);
  if (kv == nullptr) throw Error(ErrorCode::kInvalidArgument, "the K cache is not known any more");
  const std::span<const int64_t> ids = row_ids(node->src[1]);
  const std::lock_guard lock(kv->mutex);
  InstanceIndex* index = index_of(*kv);
  const int64_t num_heads = index != nullptr ? index->num_kv_heads : 1;

  // A run of ids in one stream at a time; there is one run for each stream of the batch.
  for (size_t begin = 0; begin < ids.size();) {
    const int64_t stream = ids[begin] / kv->num_rows;
    size_t end = begin;
    stream_rows_.clear();
    while (end < ids.size() && ids[end] / kv->num_rows == stream) {
      stream_rows_.push_back(ids[end++] - stream * kv->num_rows);
    }
    CacheView src;
    src.data = static_cast<std::byte*>(node->src[0]->data) + begin * node->src[0]->nb[1];
    src.dtype = DType::kF32;
    src.num_rows = static_cast<int64_t>(end - begin);
    src.num_heads = num_heads;
    src.head_dim = kv->row_size / num_heads;
    src.row_stride = static_cast<int64_t>(node->src[0]->nb[1]);
    src.head_stride = src.head_dim * static_cast<int64_t>(sizeof(float));
    const CacheView cache = kv->stream_cache(stream, num_heads);
    if (index != nullptr) {
      index->streams[stream]->append(*context_, src, stream_rows_, cache);
    } else {
      ops::append(*context_, {.src = src, .rows = stream_rows_, .cache = cache, .index = {}});
    }
    for (const auto& other : kv->indices) {
      if (other.get() == index) continue;
      for (const int64_t row : stream_rows_) other->streams[stream]->replaced(row, 1);
    }
    begin = end;
  }
  kv->written = true;
}

void Instance::write_v(const ggml_tensor* node, const ggml_tensor* root) {
  CacheView src;
  src.data = static_cast<std::byte*>(node->src[0]->data);
  src.dtype = DType::kF32;
  src.num_rows = node->src[0]->ne[1];
  src.num_heads = 1;
  src.head_dim = root->ne[0];
  src.row_stride = static_cast<int64_t>(node->src[0]->nb[1]);
  src.head_stride = src.head_dim * static_cast<int64_t>(sizeof(float));
  bool known = false;
  CacheView cache;
  cache.data = static_cast<std::byte*>(node->data);
  cache.dtype = dtype_of(node->type, &known);
  cache.num_rows = node->ne[1];
  cache.num_heads = 1;
  cache.head_dim = root->ne[0];
  cache.row_stride = static_cast<int64_t>(node->nb[1]);
  cache.head_stride = dtype_bytes(cache.dtype, cache.head_dim);
  ops::append(*context_, {.src = src, .rows = row_ids(node->src[1]), .cache = cache, .index = {}});
}

void Instance::compute_on_cpu(ggml_tensor* node) {
  if (cpu_ == nullptr) {
    cpu_ = ggml_backend_dev_init(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), nullptr);
    if (cpu_ == nullptr) throw Error(ErrorCode::kNotFound, "ggml's CPU backend cannot be created");
    set_cpu_threads();
  }
  const ggml_init_params params = {.mem_size = ggml_tensor_overhead() * 8 + ggml_graph_overhead_custom(8, false),
                                   .mem_buffer = nullptr,
                                   .no_alloc = true};
  ggml_context* memory = ggml_init(params);
  ggml_cgraph* graph = ggml_new_graph_custom(memory, 8, false);
  ggml_graph_add_node(graph, node);
  const ggml_status status = ggml_backend_graph_compute(cpu_, graph);
  ggml_free(memory);
  if (status != GGML_STATUS_SUCCESS) {
    throw Error(ErrorCode::kInvalidArgument, std::string("ggml's CPU backend could not compute ") + node->name);
  }
}

void Instance::k_shift(ggml_tensor* node) {
  compute_on_cpu(node);
  const std::shared_ptr<KvLayer> kv = find_layer(root_of(node));
  if (kv == nullptr) return;
  const std::lock_guard lock(kv->mutex);
  for (const auto& index : kv->indices) {
    for (const auto& stream : index->streams) stream->invalidate(0, kv->num_rows);
  }
}

void Instance::flash_attn(ggml_tensor* node) {
  const ggml_tensor* k = node->src[1];
  const std::shared_ptr<KvLayer> kv = find_layer(root_of(k));
  if (kv == nullptr) throw Error(ErrorCode::kInvalidArgument, "the K cache is not known any more");
  Attention a{};
  a.node = node;
  a.q = node->src[0];
  a.k = k;
  a.v = node->src[2];
  a.mask = node->src[3];
  a.kv = kv.get();
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(k->data) - kv->data);
  a.first_stream = static_cast<int64_t>(offset / (kv->row_bytes * static_cast<size_t>(kv->num_rows)));
  const auto* params = reinterpret_cast<const float*>(node->op_params);
  a.scale = params[0];
  a.softcap = params[2];
  a.sink_logits = node->src[4] != nullptr ? static_cast<const float*>(node->src[4]->data) : nullptr;
  const std::lock_guard lock(kv->mutex);
  InstanceIndex* index = index_of(*kv);
  if (a.q->ne[1] > kMaxQueryRows) {
    compute_on_cpu(node);
    for (int64_t stream = 0; stream < a.q->ne[3] && index != nullptr; ++stream) observe_prefill(a, stream, *index);
    return;
  }
  for (int64_t stream = 0; stream < a.q->ne[3]; ++stream) attend_stream(a, stream, index);
}

// Shows the last queries to the policy; each attended to all that it sees.
void Instance::observe_prefill(const Attention& a, int64_t stream, InstanceIndex& index) {
  LayerIndex& layer = *index.streams[a.first_stream + stream];
  for (int64_t row = std::max<int64_t>(0, a.q->ne[1] - config_->settings.window); row < a.q->ne[1]; ++row) {
    mask_.scan(a.mask_row(stream, row), a.k->ne[1]);
    layer.state()->observe(a.query(stream, row), layer.newest_row(mask_.visible()));
  }
}

void Instance::attend_stream(const Attention& a, int64_t stream, InstanceIndex* index) {
  LayerIndex* layer = index != nullptr ? index->streams[a.first_stream + stream].get() : nullptr;
  const CacheView whole = a.kv->stream_cache(a.first_stream + stream, a.k->ne[2]);
  const int64_t num_queries = a.q->ne[1];
  is_prefill_.assign(static_cast<size_t>(num_queries), 0);
  if (num_queries > 1 && layer != nullptr) find_prefill_rows(a, stream, *layer, whole);
  const bool observes = layer != nullptr && policy_info(config_->settings.kind).observes_prefill;
  for (int64_t row = 0; row < num_queries; ++row) {
    decode_row(a, stream, row, is_prefill_[row] != 0 ? nullptr : layer, index != nullptr ? index->settings : dense_,
               whole);
    if (is_prefill_[row] != 0 && observes) {
      layer->state()->observe(a.query(stream, row), layer->newest_row(mask_.visible()));
    }
  }
}

// A token whose sequence has another token in the batch is prefill: one of the two sees the other's
// cell, which is the newest that the other sees.
void Instance::find_prefill_rows(const Attention& a, int64_t stream, LayerIndex& index, const CacheView& cache) {
  const int64_t n = a.q->ne[1];
  newest_.assign(static_cast<size_t>(n), -1);
  for (int64_t i = 0; i < n; ++i) {
    mask_.scan(a.mask_row(stream, i), a.k->ne[1]);
    counters.rows_rebuilt += index.refresh(*context_, cache, mask_.visible());
    newest_[i] = index.newest_row(mask_.visible());
  }
  const auto sees = [&](int64_t i, int64_t cell) {
    const uint16_t* mask = a.mask_row(stream, i);
    constexpr uint16_t kMinusInf = 0xFC00;
    return cell >= 0 && (mask == nullptr || mask[cell] != kMinusInf);
  };
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      if (i != j && sees(i, newest_[j])) is_prefill_[i] = is_prefill_[j] = 1;
    }
  }
}

void Instance::decode_row(const Attention& a, int64_t stream, int64_t row, LayerIndex* index,
                          const PolicySettings& sparse, const CacheView& cache) {
  mask_.scan(a.mask_row(stream, row), a.k->ne[1]);
  const VisibleRows& visible = mask_.visible();
  auto* out = static_cast<std::byte*>(a.node->data) + row * a.node->nb[2] + stream * a.node->nb[3];
  bool known = false;
  DecodeStep step;
  step.q = a.query(stream, row);
  step.k = cache;
  step.k.num_rows = visible.num_rows;
  step.v = {.data = static_cast<std::byte*>(a.v->data) + stream * a.v->nb[3],
            .dtype = dtype_of(a.v->type, &known),
            .num_rows = visible.num_rows,
            .num_heads = a.v->ne[2],
            .head_dim = a.v->ne[0],
            .row_stride = static_cast<int64_t>(a.v->nb[1]),
            .head_stride = static_cast<int64_t>(a.v->nb[2])};
  step.scale = a.scale;
  step.softcap = a.softcap;
  step.sink_logits = a.sink_logits;
  step.num_visible = visible.num_visible;
  step.bias = mask_.bias();
  step.out = {.data = reinterpret_cast<float*>(out),
              .num_heads = a.node->ne[1],
              .head_dim = a.node->ne[0],
              .head_stride = static_cast<int64_t>(a.node->nb[1] / sizeof(float))};

  const PolicySettings& settings = index != nullptr && !mask_.is_biased() ? sparse : dense_;
  if (is_sparse(settings, visible.num_visible)) {
    counters.rows_rebuilt += index->refresh(*context_, cache, visible);
    step.forced = index->forced_rows(visible, settings.sinks, forced_recent(settings));
    step.index = index->view();
    step.state = index->state();
    step.ages = index->ages();
    if (step.state != nullptr) step.row = index->newest_row(visible);
  }
  RowSets kept;
  if (the_probe().on) step.kept = &kept;
  const DecodeReport report = decode_step(*context_, settings, step);
  if (kept.num_sets > 0) {
    const std::lock_guard lock(the_probe().mutex);
    the_probe().sums.add(*context_, a.kv->layer, step, kept);
  }
  (report.sparse ? counters.sparse_calls : counters.dense_calls) += 1;
  counters.kv_bytes_read += report.kv_bytes;
  counters.index_bytes_read += report.index_bytes;
}

void read_stats(fasa_ggml_stats* out, bool reset) {
  const auto take = [&](std::atomic<int64_t>& counter) { return reset ? counter.exchange(0) : counter.load(); };
  out->sparse_calls = take(counters.sparse_calls);
  out->dense_calls = take(counters.dense_calls);
  out->kv_bytes_read = take(counters.kv_bytes_read);
  out->index_bytes_read = take(counters.index_bytes_read);
  out->rows_rebuilt = take(counters.rows_rebuilt);
  out->index_bytes = 0;
  for (const auto& kv : all_layers()) {
    const std::lock_guard lock(kv->mutex);
    out->index_bytes += kv->memory_bytes();
  }
}

void probe(bool on) {
  const std::lock_guard lock(the_probe().mutex);
  the_probe().sums.clear();
  the_probe().on = on;
}

int64_t read_agreement(std::span<fasa_ggml_agreement> out) {
  const std::lock_guard lock(the_probe().mutex);
  const std::vector<HeadAgreement> heads = the_probe().sums.heads();
  for (size_t i = 0; i < std::min(out.size(), heads.size()); ++i) {
    out[i] = {heads[i].layer, heads[i].head, heads[i].queries, heads[i].agreement, heads[i].mass};
  }
  return static_cast<int64_t>(heads.size());
}

int64_t check_indices() {
  Context context(make_serial_executor());
  int64_t stale = 0;
  for (const auto& kv : all_layers()) {
    const std::lock_guard lock(kv->mutex);
    for (const auto& index : kv->indices) {
      for (int64_t s = 0; s < kv->num_streams; ++s) {
        const CacheView cache = kv->stream_cache(s, index->num_kv_heads);
        stale += index->streams[s]->count_stale_rows(context, cache);
      }
    }
  }
  return stale;
}

}  // namespace fasa::ggml
