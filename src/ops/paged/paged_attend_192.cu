#include "src/ops/paged/paged_attend_kernel.cuh"

namespace fasa::ops::paged {

AttendKernel attend_kernel_192(bool is_f16) { return is_f16 ? attend_kernel<192, true> : attend_kernel<192, false>; }

}  // namespace fasa::ops::paged
