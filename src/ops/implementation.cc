#include "src/ops/implementation.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace fasa::ops {
namespace {

std::string& forced_list() {
  static std::string list = [] {
    const char* variable = std::getenv("FASA_IMPL");
    return std::string(variable != nullptr ? variable : "");
  }();
  return list;
}

}  // namespace

void force_implementations(std::string list) { forced_list() = std::move(list); }

std::string_view forced_implementation(std::string_view op) {
  std::string_view rest = forced_list();
  while (!rest.empty()) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), item.size() + 1));
    const size_t colon = item.find(':');
    if (colon != std::string_view::npos && item.substr(0, colon) == op) return item.substr(colon + 1);
  }
  return {};
}

}  // namespace fasa::ops
