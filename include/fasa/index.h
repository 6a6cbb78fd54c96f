// The index: the dominant dims of every cached key, packed for streaming.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fasa/tensor.h"

namespace fasa {

enum class IndexType : uint8_t { kF16, kI8, kI4 };
const char* index_type_name(IndexType type);

// A plane holds the FCs of one KV head as one set of query heads wants them: num_planes is
// num_kv_heads (FCs shared by the group) or num_q_heads (FCs of each query head).
//
// Memory of a plane: blocks of kIndexBlock rows, each block
//   for FC i in 0..num_fcs-1: kIndexBlock x 2 values of `type`, (row, first dim), (row, second dim);
//     kI4 packs a row's two values in one byte, first dim in the low nibble, two's complement
//   kI8 and kI4 only: kIndexBlock f16 scales, one a row (value = scale * integer)
// so one FC of a block is one contiguous load for SIMD, and a plane is read from front to back.
inline constexpr int64_t kIndexBlock = 32;

struct IndexShape {
  IndexType type = IndexType::kI8;
  int64_t num_planes = 0;
  int64_t num_fcs = 0;   // N_tip
  int64_t num_rows = 0;  // capacity in rows; memory is rounded up to whole blocks

  int64_t num_blocks() const { return (num_rows + kIndexBlock - 1) / kIndexBlock; }
  int64_t fc_bytes() const;     // bytes of one FC in one block
  int64_t block_bytes() const;  // a multiple of 32
  int64_t plane_bytes() const { return num_blocks() * block_bytes(); }
  int64_t total_bytes() const { return num_planes * plane_bytes(); }
  // Bytes that scoring reads for one row of one plane.
  double row_bytes() const { return static_cast<double>(block_bytes()) / kIndexBlock; }
};

struct IndexView {
  std::byte* data = nullptr;  // 64-byte aligned, shape.total_bytes()
  IndexShape shape;
  const int16_t* dims = nullptr;  // [num_planes][num_fcs][2]: which dims of the key
  // [num_planes][num_fcs * 2][head_dim] or null: value i is basis[i] . key (and basis[i] . query) instead of a dim.
  const float* basis = nullptr;
  const float* weights = nullptr;  // [num_planes][num_fcs] or null: factor of an FC's score

  std::byte* block(int64_t plane, int64_t block) const {
    return data + plane * shape.plane_bytes() + block * shape.block_bytes();
  }
};

}  // namespace fasa
