// The implementations of select; use the table in select.h.
#pragma once

#include <string>

#include "src/ops/select/select.h"

namespace fasa::ops {

std::string select_ref_supports(const SelectArgs& args);
void select_ref(Context& context, const SelectArgs& args);
std::string select_cpu_supports(const SelectArgs& args);
void select_cpu(Context& context, const SelectArgs& args);

}  // namespace fasa::ops
