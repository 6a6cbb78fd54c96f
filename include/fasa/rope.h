// Rotary position embeddings: which dims of a head form a frequency chunk (FC).
#pragma once

#include <cstdint>

namespace fasa {

enum class RopeLayout : uint8_t {
  kHalf,         // FC i = dims (i, i + rotary_dim/2): NeoX, GGUF "neox"
  kInterleaved,  // FC i = dims (2i, 2i + 1): GPT-J, GGUF "norm"
};

struct RopeSpec {
  RopeLayout layout = RopeLayout::kHalf;
  int32_t head_dim = 0;
  int32_t rotary_dim = 0;  // <= head_dim, even; dims past it are position-free
  double freq_base = 10000.0;

  bool operator==(const RopeSpec&) const = default;
};

struct DimPair {
  int32_t first;
  int32_t second;
  bool operator==(const DimPair&) const = default;
};

// Throws Error(kInvalidArgument) unless head_dim and rotary_dim are even and 0 < rotary_dim <= head_dim <= 4096.
void check(const RopeSpec& spec);

// FCs of a head: rotary_dim/2 rotating ones, then the static pairs of a partial rotary head.
int32_t num_fcs(const RopeSpec& spec);

// The two dims of FC `fc`, 0 <= fc < num_fcs.
DimPair fc_dims(const RopeSpec& spec, int32_t fc);

// theta_i = base^(-2i/rotary_dim) radians a position; 0 for a static pair.
double fc_frequency(const RopeSpec& spec, int32_t fc);

// Rotates one head in place by `position` (tests, and callers without an engine).
void rope_rotate(const RopeSpec& spec, double position, float* head);

// Query head -> KV head of grouped-query attention; num_q_heads is a multiple of num_kv_heads.
inline int64_t kv_head_of(int64_t q_head, int64_t num_q_heads, int64_t num_kv_heads) {
  return q_head / (num_q_heads / num_kv_heads);
}

}  // namespace fasa
