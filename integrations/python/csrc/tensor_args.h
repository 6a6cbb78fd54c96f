// Torch tensors -> the arguments of src/ops/paged, through torch's stable ABI.
//
// Strides, dtypes and devices are checked here, with one sentence an error; shapes that only the operation
// knows to be wrong are left to its own check.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "src/ops/paged/paged.h"

namespace fasa::python {

using torch::stable::Tensor;

// What an operator's boxed kernel finds on its stack, in the order of the schema in paged_ops.cc.
struct DecodeCall {
  Tensor q;  // [num_seqs, num_query_tokens, num_q_heads, head_dim]
  std::optional<Tensor> k_new;
  std::optional<Tensor> v_new;
  Tensor k_cache;      // [num_blocks, num_kv_heads, page_size, head_dim]
  Tensor v_cache;      // the same
  Tensor index;        // [num_blocks, num_planes, page_size, bytes of a row / size of its dtype]
  Tensor block_table;  // [num_seqs, pages]
  Tensor lengths;      // [num_seqs]
  Tensor dims;         // [num_planes, index_dims]
  Tensor index_scale;  // [num_planes, index_dims]
  std::optional<Tensor> sink_logits;
  Tensor out;
  std::optional<Tensor> lse;
  std::optional<Tensor> kept;
  int64_t budget;
  int64_t sinks;
  int64_t recent;
  int64_t max_length;
  bool share_tokens;
  double scale;
  double softcap;
  std::optional<torch::headeronly::ScalarType> index_dtype;  // none: that of `index`
};

struct IndexCall {
  Tensor k_cache;
  Tensor index;
  Tensor slots;  // [num_slots]
  Tensor dims;
  Tensor index_scale;
  std::optional<torch::headeronly::ScalarType> index_dtype;
};

// Takes ownership of what is on the stack.
DecodeCall read_decode_call(StableIValue* stack, bool appends);
IndexCall read_index_call(StableIValue* stack);

// The pointers are the tensors' own. Throw Error(kInvalidArgument).
ops::PagedArgs decode_args(const DecodeCall& call);
ops::PagedIndexArgs index_args(const IndexCall& call);

}  // namespace fasa::python
