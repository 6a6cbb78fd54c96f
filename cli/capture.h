// Calibration data from an unpatched llama.cpp: q after RoPE and the K cache, at the eval callback.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/engine.h"
#include "fasa/context.h"
#include "fasa/profile.h"
#include "src/calibrate/statistics.h"

struct ggml_tensor;

namespace fasa::cli {

struct CaptureSettings {
  int64_t context = 4096;
  int64_t queries = 32;  // of a window, evenly spaced over its last quarter
  int threads = 1;
  bool pca = false;  // measure the keys' principal components too
};

class Capture {
 public:
  // Throws Error(kUnsupported) for a model whose attention FASA cannot read, with the reason.
  Capture(const Model& model, const CaptureSettings& settings);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  // One window of settings.context tokens, in an empty context. `progress` gets a share of 1.
  void add_window(std::span<const llama_token> tokens, const std::function<void(double)>& progress);

  // The layers seen so far. Throws Error(kUnsupported) if none of them can be calibrated.
  std::vector<LayerProfile> layers() const;

 private:
  struct Layer;
  struct Query {
    int64_t token;     // of the batch
    int64_t position;  // of the window
  };

  static bool on_eval(ggml_tensor* tensor, bool ask, void* self);
  void remember_norm(const ggml_tensor& node);
  void read_attention(const ggml_tensor& node);
  void check_settings(const Model& model);
  RopeSpec rope(int64_t head_dim) const;
  Layer& layer_of(const ggml_tensor& q, const ggml_tensor& k);

  CaptureSettings settings_;
  RopeLayout layout_ = RopeLayout::kHalf;
  int64_t rotary_dim_ = 0;  // 0: all dims
  double freq_base_ = 10000.0;
  bool has_sliding_window_ = false;
  int64_t num_layers_ = 0;
  std::map<int32_t, Layer> layers_;
  std::map<int32_t, uint64_t> fingerprints_;
  Context workers_;
  std::unique_ptr<llama_context, decltype(&llama_free)> context_{nullptr, llama_free};

  // Of the batch that runs now.
  std::vector<Query> batch_queries_;
  int64_t layers_read_ = 0;
  std::function<void()> layer_done_;
  std::exception_ptr failure_;  // exceptions cannot pass through llama.cpp
};

}  // namespace fasa::cli
