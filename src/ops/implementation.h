// One row of an operation's table of implementations. The table drives dispatch, tests and
// benchmarks.
#pragma once

#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "fasa/context.h"
#include "fasa/error.h"

namespace fasa::ops {

template <class Args>
struct Implementation {
  const char* name;  // "ref", "cpu", later "cuda"
  // Empty if it can do `args`, else the reason.
  std::string (*supports)(const Args& args);
  void (*run)(Context& context, const Args& args);
};

// The name that FASA_IMPL forces for `op` ("attend:ref,score:cpu"), or empty.
std::string_view forced_implementation(std::string_view op);

// The first implementation in `table` (best first) that supports `args`, or the forced one.
template <class Args>
const Implementation<Args>& choose(std::string_view op, std::span<const Implementation<Args>> table, const Args& args) {
  const std::string_view forced = forced_implementation(op);
  std::string reasons;
  for (const auto& implementation : table) {
    if (!forced.empty() && forced != implementation.name) continue;
    const std::string reason = implementation.supports(args);
    if (reason.empty()) return implementation;
    reasons += std::string(reasons.empty() ? "" : "; ") + implementation.name + ": " + reason;
  }
  if (reasons.empty()) reasons = "FASA_IMPL names no implementation '" + std::string(forced) + "'";
  throw Error(ErrorCode::kUnsupported, std::string(op) + ": " + reasons);
}

}  // namespace fasa::ops
