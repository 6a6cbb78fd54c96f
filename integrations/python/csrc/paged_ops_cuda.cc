// The CUDA implementation of the paged operators: libfasa's kernels on torch's current stream, with a workspace from
// torch's allocator (stream-ordered, so it may be freed when the call returns, and belongs to a graph being captured).
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <map>
#include <mutex>
#include <tuple>

#include "fasa/error.h"
#include "integrations/python/csrc/tensor_args.h"

namespace fasa::python {
namespace {

auto key_of(const ops::PagedShape& s) {
  return std::tuple(s.num_seqs, s.num_query_tokens, s.num_q_heads, s.num_kv_heads, s.head_dim, s.page_size, s.kv_type,
                    s.index_type, s.index_dims, s.fcs_per_query_head, s.tokens_per_query_head, s.budget, s.sinks,
                    s.recent, s.max_length);
}

// Plans of the shapes seen, each a pure function of its key.
class Plans {
 public:
  ops::PagedPlan get(const ops::PagedShape& shape, int32_t ordinal) {
    const std::lock_guard lock(mutex_);
    const Key key{ordinal, key_of(shape)};
    const auto known = plans_.find(key);
    if (known != plans_.end()) return known->second;
    if (plans_.size() >= kMost) plans_.clear();
    const auto device = devices_.find(ordinal);
    const ops::PagedDevice properties = device != devices_.end() ? device->second : ops::paged_device(ordinal);
    devices_[ordinal] = properties;
    return plans_[key] = ops::paged_plan(shape, properties);
  }

 private:
  using Key = std::pair<int32_t, decltype(key_of(ops::PagedShape{}))>;
  static constexpr size_t kMost = 4096;  // an engine whose batch and max_length vary
  std::mutex mutex_;
  std::map<Key, ops::PagedPlan> plans_;
  std::map<int32_t, ops::PagedDevice> devices_;
};

Plans& plans() {
  static Plans all;
  return all;
}

void* current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

void decode(const DecodeCall& call) {
  if (call.q.dim() > 0 && call.q.size(0) == 0) return;
  const ops::PagedArgs args = decode_args(call);
  const int32_t device = call.q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const ops::PagedPlan plan = plans().get(args.shape, device);
  const int64_t size[] = {plan.workspace_bytes};
  const Tensor workspace = torch::stable::new_empty(call.q, torch::headeronly::IntHeaderOnlyArrayRef(size, 1),
                                                    std::make_optional(torch::headeronly::ScalarType::Byte));
  ops::paged_decode_cuda(args, plan, workspace.data_ptr(), current_stream(device));
}

void decode_boxed(StableIValue* stack, uint64_t, uint64_t) { decode(read_decode_call(stack, false)); }
void append_decode_boxed(StableIValue* stack, uint64_t, uint64_t) { decode(read_decode_call(stack, true)); }

void write_index_boxed(StableIValue* stack, uint64_t, uint64_t) {
  const IndexCall call = read_index_call(stack);
  const ops::PagedIndexArgs args = index_args(call);
  if (args.num_slots == 0) return;
  const int32_t device = call.k_cache.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  ops::paged_write_index_cuda(args, current_stream(device));
}

}  // namespace
}  // namespace fasa::python

STABLE_TORCH_LIBRARY_IMPL(fasa, CUDA, m) {
  m.impl("paged_write_index", &fasa::python::write_index_boxed);
  m.impl("paged_decode", &fasa::python::decode_boxed);
  m.impl("paged_append_decode", &fasa::python::append_decode_boxed);
}
