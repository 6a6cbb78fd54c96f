// Non-owning, strided views of the caller's memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fasa {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,  // ggml's: blocks of 32 values, an f16 scale and 32 int8 (34 bytes)
};

// Bytes of `n` consecutive values; for kQ8_0 `n` is a multiple of 32.
int64_t dtype_bytes(DType type, int64_t n);
const char* dtype_name(DType type);

// A cache of K or V: value (row, head, dim) lies at data + row * row_stride + head * head_stride,
// dims contiguous. Strides are in bytes and may be anything, overlapping (0) included.
struct CacheView {
  std::byte* data = nullptr;
  DType dtype = DType::kF16;
  int64_t num_rows = 0;   // physical rows (slots)
  int64_t num_heads = 0;  // KV heads
  int64_t head_dim = 0;
  int64_t row_stride = 0;   // bytes
  int64_t head_stride = 0;  // bytes

  std::byte* at(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

// f32 vectors, one a query head: value (head, dim) lies at data[head * head_stride + dim].
struct HeadsView {
  float* data = nullptr;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t head_stride = 0;  // floats

  float* at(int64_t head) const { return data + head * head_stride; }
};

}  // namespace fasa
