// The kernels of the fused step, to be launched by paged_cuda.cu; one source file an index type or head_dim.
#pragma once

#include "src/ops/paged/paged_device.cuh"

namespace fasa::ops::paged {

using ScoreKernel = void (*)(const StepParams);
using AttendKernel = void (*)(const StepParams);
using StepKernel = void (*)(const StepParams);

// For `heads` heads scored together (1 to 16), or 4 sets at once (sets = 4); null where there is none.
ScoreKernel score_kernel_bf16(int dims, int heads, int sets);
ScoreKernel score_kernel_fp8(int dims, int heads, int sets);
ScoreKernel score_kernel_int8(int dims, int heads, int sets);
ScoreKernel score_kernel_int4(int dims, int heads, int sets);

// The whole step in one launch, bf16 K and V; heads: of a KV head; sets: 1, or 4 at once; key_bytes: as in PagedPlan; null where
// there is none.
StepKernel step_kernel_int8(int head_dim, int dims, int heads, int sets, int ring, int key_bytes);
StepKernel step_kernel_int4(int head_dim, int dims, int heads, int sets, int ring, int key_bytes);
StepKernel step_kernel_fp8(int head_dim, int dims, int heads, int sets, int ring, int key_bytes);

AttendKernel attend_kernel_64(bool is_f16);
AttendKernel attend_kernel_96(bool is_f16);
AttendKernel attend_kernel_128(bool is_f16, bool alone);  // alone: PagedPlan::attend_alone
AttendKernel attend_kernel_192(bool is_f16);
AttendKernel attend_kernel_256(bool is_f16);

}  // namespace fasa::ops::paged
