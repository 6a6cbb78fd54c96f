// One ggml backend instance: what one llama.cpp context computes with us.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <memory>
#include <span>
#include <vector>

#include "fasa/context.h"
#include "integrations/ggml/config.h"
#include "integrations/ggml/ggml-fasa.h"
#include "integrations/ggml/kv_registry.h"
#include "integrations/ggml/mask_scan.h"
#include "src/policy/decode_step.h"

namespace fasa::ggml {

class Instance {
 public:
  Instance();
  ~Instance();
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  void set_num_threads(int num_threads);
  // Throws Error.
  void set_rows(const ggml_tensor* node);
  void flash_attn(ggml_tensor* node);
  void k_shift(ggml_tensor* node);

 private:
  struct Attention;

  void write_k(const ggml_tensor* node, const ggml_tensor* root);
  void write_v(const ggml_tensor* node, const ggml_tensor* root);
  std::span<const int64_t> row_ids(const ggml_tensor* ids);
  // The profile of the layer if this instance runs it with an index, else null.
  const LayerProfile* indexed_layer(const KvLayer& kv) const;
  InstanceIndex* index_of(KvLayer& kv);
  void compute_on_cpu(ggml_tensor* node);
  void set_cpu_threads();
  void observe_prefill(const Attention& a, int64_t stream, InstanceIndex& index);
  void attend_stream(const Attention& a, int64_t stream, InstanceIndex* index);
  void find_prefill_rows(const Attention& a, int64_t stream, LayerIndex& index, const CacheView& cache);
  void decode_row(const Attention& a, int64_t stream, int64_t row, LayerIndex* index, const PolicySettings& sparse,
                  const CacheView& cache);

  std::shared_ptr<const Config> config_;
  PolicySettings dense_;
  int num_threads_ = 0;
  std::unique_ptr<Context> context_;
  ggml_backend_t cpu_ = nullptr;  // for what is llama.cpp's to compute but ours to see
  std::vector<int64_t> ids_;
  std::vector<int64_t> stream_rows_;
  std::vector<uint8_t> is_prefill_;
  std::vector<int64_t> newest_;
  std::vector<int64_t> iota_;
  MaskScan mask_;
};

void read_stats(fasa_ggml_stats* out, bool reset);
// As fasa_ggml_probe_t and fasa_ggml_agreement_t.
void probe(bool on);
int64_t read_agreement(std::span<fasa_ggml_agreement> out);
// Index rows of the process that do not follow from K: 0, unless there is a bug.
int64_t check_indices();

}  // namespace fasa::ggml
