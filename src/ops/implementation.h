// One row of an operation's table of implementations. The table drives dispatch, tests and
// benchmarks.
#pragma once

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

// The name that FASA_IMPL forces for `op` ("attend:ref,score:cpu"), or empty. The variable is read once: a decoded token
// asks a hundred times, and a look through the environment costs as much as a small operation.
std::string_view forced_implementation(std::string_view op);
// Takes the place of FASA_IMPL, for tests; not while another thread runs an operation.
void force_implementations(std::string list);

template <class Args>
[[noreturn, gnu::cold, gnu::noinline]] void none_supports(std::string_view op, std::string_view forced,
                                                          std::span<const Implementation<Args>> table,
                                                          const Args& args) {
  std::string reasons;
  for (const auto& implementation : table) {
    if (!forced.empty() && forced != implementation.name) continue;
    reasons += std::string(reasons.empty() ? "" : "; ") + implementation.name + ": " + implementation.supports(args);
  }
  if (reasons.empty()) reasons = "FASA_IMPL names no implementation '" + std::string(forced) + "'";
  throw Error(ErrorCode::kUnsupported, std::string(op) + ": " + reasons);
}

// The first implementation in `table` (best first) that supports `args`, or the forced one.
template <class Args>
const Implementation<Args>& choose(std::string_view op, std::span<const Implementation<Args>> table, const Args& args) {
  const std::string_view forced = forced_implementation(op);
  for (const auto& implementation : table) {
    if (!forced.empty() && forced != implementation.name) continue;
    if (implementation.supports(args).empty()) return implementation;
  }
  none_supports(op, forced, table, args);
}

}  // namespace fasa::ops
