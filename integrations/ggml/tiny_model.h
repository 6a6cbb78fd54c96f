// GGUF files of small models with random weights: for what the real one lacks, and for tests that need no trained weights and
// take minutes with them.
#pragma once

#include <cstdint>
#include <string>

#include "integrations/ggml/test_support.h"

namespace fasa::ggml::test {

// All have no vocabulary but numbers.
struct TinyModel {
  // "llama" (all layers global), "gemma2" (soft-capped), "gemma3" (q and k normed) or "gpt-oss" (attention sinks, experts)
  const char* architecture;
  int num_layers;
  int swa_period;  // every swa_period-th layer is global, the others have a window
  float softcap = 0;
};

inline constexpr int kTinyHeads = 4;
inline constexpr int kTinyKvHeads = 2;
inline constexpr int kTinyHeadDim = 64;
inline constexpr int kTinyWindow = 64;
inline constexpr int kTinyLayers = 12;  // of tiny_llama()

void write_tiny_model(const TinyModel& model, uint32_t seed, const std::string& path);

// A "llama" of kTinyLayers, made at the first call.
const Setup& tiny_llama();

}  // namespace fasa::ggml::test
