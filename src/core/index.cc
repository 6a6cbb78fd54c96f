#include "fasa/index.h"

namespace fasa {

const char* index_type_name(IndexType type) {
  switch (type) {
    case IndexType::kF16:
      return "f16";
    case IndexType::kI8:
      return "int8";
    case IndexType::kI4:
      return "int4";
  }
  return "?";
}

int64_t IndexShape::fc_bytes() const {
  switch (type) {
    case IndexType::kF16:
      return kIndexBlock * 4;
    case IndexType::kI8:
      return kIndexBlock * 2;
    case IndexType::kI4:
      return kIndexBlock;
  }
  return 0;
}

int64_t IndexShape::block_bytes() const {
  const int64_t scales = type == IndexType::kF16 ? 0 : kIndexBlock * 2;
  return num_fcs * fc_bytes() + scales;
}

}  // namespace fasa
