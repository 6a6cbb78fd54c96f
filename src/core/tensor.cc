#include "fasa/tensor.h"

#include "src/core/dtype.h"

namespace fasa {

int64_t dtype_bytes(DType type, int64_t n) {
  switch (type) {
    case DType::kF32:
      return n * 4;
    case DType::kF16:
    case DType::kBF16:
      return n * 2;
    case DType::kQ8_0:
      return n / kQ8Block * static_cast<int64_t>(sizeof(Q8Block));
  }
  return 0;
}

const char* dtype_name(DType type) {
  switch (type) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kQ8_0:
      return "q8_0";
  }
  return "?";
}

}  // namespace fasa
