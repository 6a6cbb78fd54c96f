// Which nodes of a graph the device takes. llama.cpp's scheduler asks while it splits a graph.
#pragma once

#include <ggml.h>

namespace fasa::ggml {

bool claims(const ggml_tensor* op);

// Query rows of a stream that a FLASH_ATTN_EXT may have; more is prefill, llama.cpp's own (PolicyInfo::observes_prefill
// looks at it).
inline constexpr int64_t kMaxQueryRows = 32;

}  // namespace fasa::ggml
