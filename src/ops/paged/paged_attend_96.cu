#include "src/ops/paged/paged_attend_kernel.cuh"

namespace fasa::ops::paged {

AttendKernel attend_kernel_96(bool is_f16) { return is_f16 ? attend_kernel<96, true> : attend_kernel<96, false>; }

}  // namespace fasa::ops::paged
