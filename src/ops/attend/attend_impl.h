// The implementations of attend; use the table in attend.h.
#pragma once

#include <string>

#include "src/ops/attend/attend.h"

namespace fasa::ops {

std::string attend_ref_supports(const AttendArgs& args);
void attend_ref(Context& context, const AttendArgs& args);
std::string attend_cpu_supports(const AttendArgs& args);
void attend_cpu(Context& context, const AttendArgs& args);

}  // namespace fasa::ops
