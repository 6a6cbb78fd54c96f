// Schemas of the paged operators, and their CPU implementation: the scalar reference, a sequence at a time on
// torch's threads.
#include <torch/csrc/stable/ops.h>

#include "integrations/python/csrc/tensor_args.h"

namespace fasa::python {
namespace {

// Sequence `b` of the call, as a call of its own.
ops::PagedArgs one_sequence(const ops::PagedArgs& all, int64_t b) {
  ops::PagedArgs a = all;
  const ops::PagedShape& s = all.shape;
  a.shape.num_seqs = 1;
  for (ops::PagedRows* rows : {&a.q, &a.k_new, &a.v_new, &a.out}) {
    if (rows->data != nullptr) rows->data = static_cast<char*>(rows->data) + b * rows->seq_stride;
  }
  a.block_table += b * all.block_table_stride;
  a.lengths += b;
  if (a.lse != nullptr) a.lse += b * s.num_query_tokens * s.num_q_heads;
  if (a.kept != nullptr) a.kept += b * s.num_query_tokens * s.num_sets() * s.budget;
  return a;
}

void decode(const DecodeCall& call) {
  if (call.q.dim() > 0 && call.q.size(0) == 0) return;
  const ops::PagedArgs args = decode_args(call);
  torch::stable::parallel_for(0, args.shape.num_seqs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) ops::paged_decode_ref(one_sequence(args, b));
  });
}

void decode_boxed(StableIValue* stack, uint64_t, uint64_t) { decode(read_decode_call(stack, false)); }
void append_decode_boxed(StableIValue* stack, uint64_t, uint64_t) { decode(read_decode_call(stack, true)); }

void write_index_boxed(StableIValue* stack, uint64_t, uint64_t) {
  const IndexCall call = read_index_call(stack);
  const ops::PagedIndexArgs args = index_args(call);
  constexpr int64_t kGrain = 64;  // slots worth a thread
  torch::stable::parallel_for(0, args.num_slots, kGrain, [&](int64_t begin, int64_t end) {
    ops::PagedIndexArgs part = args;
    part.slots += begin;
    part.num_slots = end - begin;
    ops::paged_write_index_ref(part);
  });
}

}  // namespace
}  // namespace fasa::python

STABLE_TORCH_LIBRARY_FRAGMENT(fasa, m) {
  m.def(
      "paged_write_index(Tensor k_cache, Tensor(a!) index, Tensor slots, Tensor dims, Tensor index_scale, "
      "ScalarType? index_dtype) -> ()");
  m.def(
      "paged_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor index, Tensor block_table, Tensor lengths, "
      "Tensor dims, Tensor index_scale, Tensor? sink_logits, Tensor(a!) out, Tensor(b!)? lse, Tensor(c!)? kept, "
      "SymInt budget, SymInt sinks, SymInt recent, SymInt max_length, bool share_tokens, float scale, "
      "float softcap, ScalarType? index_dtype) -> ()");
  m.def(
      "paged_append_decode(Tensor q, Tensor k_new, Tensor v_new, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor(c!) index, Tensor block_table, Tensor lengths, Tensor dims, Tensor index_scale, Tensor? sink_logits, "
      "Tensor(d!) out, Tensor(e!)? lse, Tensor(f!)? kept, SymInt budget, SymInt sinks, SymInt recent, "
      "SymInt max_length, bool share_tokens, float scale, float softcap, ScalarType? index_dtype) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fasa, CPU, m) {
  m.impl("paged_write_index", &fasa::python::write_index_boxed);
  m.impl("paged_decode", &fasa::python::decode_boxed);
  m.impl("paged_append_decode", &fasa::python::append_decode_boxed);
}
