#include "src/ops/implementation.h"

#include <algorithm>

namespace fasa::ops {

std::string_view forced_implementation(std::string_view op) {
  const char* variable = std::getenv("FASA_IMPL");
  if (variable == nullptr) return {};
  std::string_view rest = variable;
  while (!rest.empty()) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), item.size() + 1));
    const size_t colon = item.find(':');
    if (colon != std::string_view::npos && item.substr(0, colon) == op) return item.substr(colon + 1);
  }
  return {};
}

}  // namespace fasa::ops
