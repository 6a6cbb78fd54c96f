// GGUF files of small models with random weights, for what the test model lacks.
#pragma once

#include <cstdint>
#include <string>

namespace fasa::ggml::test {

// All have heads of 64 dims, 4 query and 2 KV heads, and no vocabulary but numbers.
struct TinyModel {
  const char*
      architecture;  // "gemma2" (soft-capped), "gemma3" (q and k normed) or "gpt-oss" (attention sinks, experts)
  int num_layers;
  int swa_period;  // every swa_period-th layer is global, the others have a window
  float softcap = 0;
};

inline constexpr int kTinyWindow = 64;

void write_tiny_model(const TinyModel& model, uint32_t seed, const std::string& path);

}  // namespace fasa::ggml::test
