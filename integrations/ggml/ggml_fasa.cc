// The ggml backend: tables of functions around Instance, claims and config.
#include <ggml-backend-impl.h>
#include <ggml-impl.h>

#include <cstring>
#include <exception>
#include <string>

#include "integrations/ggml/claims.h"
#include "integrations/ggml/config.h"
#include "integrations/ggml/ggml-fasa.h"
#include "integrations/ggml/instance.h"

namespace fasa::ggml {
namespace {

Instance& instance_of(ggml_backend_t backend) { return *static_cast<Instance*>(backend->context); }

const char* backend_name(ggml_backend_t /*backend*/) { return "FASA"; }

void backend_free(ggml_backend_t backend) {
  delete static_cast<Instance*>(backend->context);
  delete backend;
}

ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph* graph) {
  Instance& instance = instance_of(backend);
  try {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
      ggml_tensor* node = ggml_graph_node(graph, i);
      if (ggml_is_empty(node)) continue;
      switch (node->op) {
        case GGML_OP_SET_ROWS:
          instance.set_rows(node);
          break;
        case GGML_OP_FLASH_ATTN_EXT:
          instance.flash_attn(node);
          break;
        case GGML_OP_ROPE:
          instance.k_shift(node);
          break;
        default:  // views
          break;
      }
    }
  } catch (const std::exception& error) {
    GGML_LOG_ERROR("FASA: %s\n", error.what());
    return GGML_STATUS_FAILED;
  }
  return GGML_STATUS_SUCCESS;
}

constexpr ggml_backend_i backend_functions() {
  ggml_backend_i functions = {};
  functions.get_name = backend_name;
  functions.free = backend_free;
  functions.graph_compute = backend_compute;
  return functions;
}

ggml_guid_t backend_guid() {
  static ggml_guid guid = {0xfa, 0x5a, 0x11, 0x6c, 0x8d, 0x02, 0x43, 0x9b,
                           0xa7, 0x30, 0x5e, 0xc4, 0x91, 0x7f, 0x68, 0x2d};
  return &guid;
}

const char* device_name(ggml_backend_dev_t /*device*/) { return "FASA"; }

const char* device_description(ggml_backend_dev_t /*device*/) { return "Frequency-Aware Sparse Attention"; }

void device_memory(ggml_backend_dev_t /*device*/, size_t* free, size_t* total) {
  *free = 0;
  *total = 0;
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t /*device*/) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  *props = {};
  props->name = device_name(device);
  props->description = device_description(device);
  props->type = device_type(device);
  props->caps.buffer_from_host_ptr = true;
}

ggml_backend_t device_init(ggml_backend_dev_t device, const char* /*params*/) {
  try {
    auto instance = std::make_unique<Instance>();
    return new ggml_backend{backend_guid(), backend_functions(), device, instance.release()};
  } catch (const std::exception& error) {
    GGML_LOG_ERROR("FASA: %s\n", error.what());
    return nullptr;
  }
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t /*device*/) { return ggml_backend_cpu_buffer_type(); }

ggml_backend_buffer_t device_buffer_from_pointer(ggml_backend_dev_t /*device*/, void* pointer, size_t size,
                                                 size_t /*max_tensor_size*/) {
  return ggml_backend_cpu_buffer_from_ptr(pointer, size);
}

bool device_supports_op(ggml_backend_dev_t /*device*/, const ggml_tensor* op) {
  try {
    return claims(op);
  } catch (const std::exception& error) {
    GGML_LOG_ERROR("FASA: %s\n", error.what());
    return false;
  }
}

bool device_supports_buffer(ggml_backend_dev_t /*device*/, ggml_backend_buffer_type_t type) {
  return ggml_backend_buft_is_host(type);
}

constexpr ggml_backend_device_i device_functions() {
  ggml_backend_device_i functions = {};
  functions.get_name = device_name;
  functions.get_description = device_description;
  functions.get_memory = device_memory;
  functions.get_type = device_type;
  functions.get_props = device_props;
  functions.init_backend = device_init;
  functions.get_buffer_type = device_buffer_type;
  functions.buffer_from_host_ptr = device_buffer_from_pointer;
  functions.supports_op = device_supports_op;
  functions.supports_buft = device_supports_buffer;
  return functions;
}

const char* registry_name(ggml_backend_reg_t /*registry*/) { return "FASA"; }

size_t registry_device_count(ggml_backend_reg_t /*registry*/) { return 1; }

ggml_backend_dev_t registry_device(ggml_backend_reg_t registry, size_t /*index*/) {
  static ggml_backend_device device = {device_functions(), registry, nullptr};
  return &device;
}

void set_num_threads(ggml_backend_t backend, int num_threads) { instance_of(backend).set_num_threads(num_threads); }

int configure_by_name(const char* settings, const char** message) {
  thread_local std::string text;
  try {
    configure(settings != nullptr ? settings : "");
    return 0;
  } catch (const std::exception& error) {
    text = error.what();
    if (message != nullptr) *message = text.c_str();
    return 1;
  }
}

void stats_by_name(fasa_ggml_stats* out, int reset) { read_stats(out, reset != 0); }

void probe_by_name(int on) { probe(on != 0); }

int64_t agreement_by_name(fasa_ggml_agreement* out, int64_t capacity) {
  return read_agreement({out, static_cast<size_t>(std::max<int64_t>(0, capacity))});
}

int64_t check_index_by_name() { return check_indices(); }

void* registry_function(ggml_backend_reg_t /*registry*/, const char* name) {
  const std::string_view wanted(name);
  if (wanted == "ggml_backend_set_n_threads") return reinterpret_cast<void*>(set_num_threads);
  if (wanted == "fasa_ggml_configure") return reinterpret_cast<void*>(configure_by_name);
  if (wanted == "fasa_ggml_stats") return reinterpret_cast<void*>(stats_by_name);
  if (wanted == "fasa_ggml_probe") return reinterpret_cast<void*>(probe_by_name);
  if (wanted == "fasa_ggml_agreement") return reinterpret_cast<void*>(agreement_by_name);
  if (wanted == "fasa_ggml_check_index") return reinterpret_cast<void*>(check_index_by_name);
  return nullptr;
}

ggml_backend_reg_t registry() {
  static ggml_backend_reg instance = {
      GGML_BACKEND_API_VERSION, {registry_name, registry_device_count, registry_device, registry_function}, nullptr};
  return &instance;
}

}  // namespace
}  // namespace fasa::ggml

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
  return fasa::ggml::registry();
}
