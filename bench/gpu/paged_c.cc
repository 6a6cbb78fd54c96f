// The paged operations for ctypes (paged.py): 0, or 1 and a message in fasa_message().
#include <exception>
#include <string>

#include "src/ops/paged/paged.h"

namespace {

thread_local std::string message;

template <class Call>
int guarded(const Call& call) {
  try {
    call();
    return 0;
  } catch (const std::exception& error) {
    message = error.what();
    return 1;
  }
}

}  // namespace

using namespace fasa::ops;  // NOLINT(google-build-using-namespace)

extern "C" {

const char* fasa_message() { return message.c_str(); }
int fasa_sizes(int64_t* sizes) {
  const int64_t all[] = {sizeof(PagedShape),     sizeof(PagedArgs),       sizeof(PagedDevice),    sizeof(PagedPlan),
                         sizeof(PagedIndexArgs), sizeof(PagedSelectArgs), sizeof(PagedSelectPlan)};
  for (const int64_t size : all) *sizes++ = size;
  return 0;
}
int fasa_device(int32_t ordinal, PagedDevice* device) {
  return guarded([&] { *device = paged_device(ordinal); });
}
int fasa_plan(const PagedShape* shape, const PagedDevice* device, PagedPlan* plan) {
  return guarded([&] { *plan = paged_plan(*shape, *device); });
}
int fasa_complete_plan(const PagedShape* shape, PagedPlan* plan) {
  return guarded([&] { complete_plan(*shape, *plan); });
}
int fasa_one_launch(const PagedShape* shape, const PagedPlan* plan) {
  return paged_one_launch_refusal(*shape).empty() && paged_keys_fit(*shape, *plan) ? 1 : 0;
}
int fasa_bytes(const PagedShape* shape, const int32_t* lengths, int64_t* bytes) {
  return guarded([&] { *bytes = paged_bytes(*shape, lengths); });
}
int fasa_decode(const PagedArgs* args, const PagedPlan* plan, void* workspace, void* stream) {
  return guarded([&] { paged_decode_cuda(*args, *plan, workspace, stream); });
}
int fasa_decode_ref(const PagedArgs* args) {
  return guarded([&] { paged_decode_ref(*args); });
}
int fasa_write_index(const PagedIndexArgs* args, void* stream) {
  return guarded([&] { paged_write_index_cuda(*args, stream); });
}
int fasa_write_index_ref(const PagedIndexArgs* args) {
  return guarded([&] { paged_write_index_ref(*args); });
}
int fasa_select_plan(const PagedSelectArgs* args, const PagedDevice* device, PagedSelectPlan* plan) {
  return guarded([&] { *plan = paged_select_plan(*args, *device); });
}
int fasa_select(const PagedSelectArgs* args, const PagedSelectPlan* plan, void* workspace, void* stream) {
  return guarded([&] { paged_select_cuda(*args, *plan, workspace, stream); });
}
int fasa_select_ref(const PagedSelectArgs* args) {
  return guarded([&] { paged_select_ref(*args); });
}

}  // extern "C"
