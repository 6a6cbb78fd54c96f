#include "src/ops/select/select.h"

#include <limits>
#include <string>

#include "src/ops/select/select_impl.h"

namespace fasa::ops {

void check(const SelectArgs& args) {
  const auto bad = [](const std::string& what) { throw Error(ErrorCode::kInvalidArgument, "select: " + what); };
  if ((args.scores == nullptr && args.num_rows > 0) || args.rows == nullptr || args.num_kept == nullptr)
    bad("scores, rows or num_kept is null");
  if (args.num_rows < 0 || args.num_rows > std::numeric_limits<int32_t>::max()) bad("num_rows must be in 0..2^31-1");
  if (args.num_sets < 0 || args.scores_stride < args.num_rows) bad("scores_stride is less than num_rows");
  if (args.budget < 1) bad("the budget must be at least 1");
  if (static_cast<int64_t>(args.forced.size()) > args.budget)
    bad(std::to_string(args.forced.size()) + " forced rows exceed the budget of " + std::to_string(args.budget));
  int64_t last = -1;
  for (const int32_t row : args.forced) {
    if (row <= last || row >= args.num_rows) bad("forced rows must be ascending, distinct and below num_rows");
    last = row;
  }
}

int64_t bytes(const SelectArgs& args) { return args.num_sets * (args.num_rows * 4 + args.budget * 4); }

std::span<const Implementation<SelectArgs>> select_implementations() {
  static constexpr Implementation<SelectArgs> kTable[] = {
      {"cpu", select_cpu_supports, select_cpu},
      {"ref", select_ref_supports, select_ref},
  };
  return kTable;
}

void select(Context& context, const SelectArgs& args) {
  check(args);
  choose<SelectArgs>("select", select_implementations(), args).run(context, args);
}

}  // namespace fasa::ops
