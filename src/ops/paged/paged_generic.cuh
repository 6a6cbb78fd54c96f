// The generic path: one simple kernel an operation, every shape, no tensor cores, any device from
// sm_80. Scores go through device memory (4 bytes a token and set).
#pragma once

#include "src/ops/paged/paged_device.cuh"

namespace fasa::ops::paged {

// Views of the workspace.
struct GenericParams {
  PagedArgs a;
  u32 page_factor = 0;  // as in StepParams
  int32_t page_shift = 0;
  u32* keys = nullptr;        // [sets of all query tokens][max_length]
  int32_t* list = nullptr;    // [sets of all query tokens][budget]
  int32_t* counts = nullptr;  // [sets of all query tokens]
};

void launch_generic(const GenericParams& p, cudaStream_t stream);
void launch_write_index(const PagedIndexArgs& args, cudaStream_t stream);

}  // namespace fasa::ops::paged
