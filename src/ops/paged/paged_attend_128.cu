#include "src/ops/paged/paged_attend_kernel.cuh"

namespace fasa::ops::paged {

AttendKernel attend_kernel_128(bool is_f16) { return is_f16 ? attend_kernel<128, true> : attend_kernel<128, false>; }

}  // namespace fasa::ops::paged
