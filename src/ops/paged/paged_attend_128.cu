#include "src/ops/paged/paged_attend_kernel.cuh"

namespace fasa::ops::paged {

AttendKernel attend_kernel_128(bool is_f16, bool alone) {
  if (is_f16) return attend_kernel<128, true>;
  return alone ? attend_kernel<128, false, true> : attend_kernel<128, false>;
}

}  // namespace fasa::ops::paged
