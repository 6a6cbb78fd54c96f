// The shape that tests without a GPU begin with.
#pragma once

#include "src/ops/paged/paged.h"

namespace fasa::ops {

// One layer of Llama-3.1-8B.
inline PagedShape llama_shape(int32_t batch = 1, int64_t length = 131072, int32_t budget = 256) {
  PagedShape s;
  s.num_seqs = batch;
  s.num_q_heads = 32;
  s.num_kv_heads = 8;
  s.head_dim = 128;
  s.page_size = 64;
  s.index_dims = 32;
  s.budget = budget;
  s.max_length = length;
  return s;
}

}  // namespace fasa::ops
