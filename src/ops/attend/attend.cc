#include "src/ops/attend/attend.h"

#include <string>

#include "src/ops/attend/attend_impl.h"

namespace fasa::ops {

void check(const AttendArgs& args) {
  const auto bad = [](const std::string& what) { throw Error(ErrorCode::kInvalidArgument, "attend: " + what); };
  if (args.q.data == nullptr || args.k.data == nullptr || args.v.data == nullptr || args.out.data == nullptr)
    bad("q, k, v or out has no data");
  if (args.k.num_heads < 1 || args.k.num_heads != args.v.num_heads || args.q.num_heads % args.k.num_heads != 0)
    bad("query heads must be a multiple of the KV heads of k and v");
  if (args.q.head_dim != args.k.head_dim || args.out.head_dim != args.v.head_dim)
    bad("head_dim of q and k, or of out and v, differ");
  if (args.out.num_heads != args.q.num_heads) bad("out has another number of heads than q");
  if (args.softcap < 0) bad("softcap must not be negative");
  if (args.rows == nullptr) {
    if (args.logits != nullptr) bad("logits are given for kept rows only");
    if (args.num_rows < 0 || args.num_rows > args.k.num_rows || args.num_rows > args.v.num_rows)
      bad("num_rows exceeds the cache");
    return;
  }
  if (args.num_kept == nullptr) bad("num_kept is null");
  if (args.num_sets != args.q.num_heads && args.num_sets != args.k.num_heads)
    bad("rows must be given for each query head or for each KV head");
  for (int64_t s = 0; s < args.num_sets; ++s)
    if (args.num_kept[s] < 0 || args.num_kept[s] > args.rows_stride) bad("num_kept exceeds rows_stride");
}

int64_t bytes(const AttendArgs& args) {
  const int64_t row = dtype_bytes(args.k.dtype, args.k.head_dim) + dtype_bytes(args.v.dtype, args.v.head_dim);
  if (args.rows == nullptr) return args.num_rows * args.k.num_heads * row;
  int64_t kept = 0;
  for (int64_t s = 0; s < args.num_sets; ++s) kept += args.num_kept[s];
  return kept * row;
}

std::span<const Implementation<AttendArgs>> attend_implementations() {
  static constexpr Implementation<AttendArgs> kTable[] = {
      {"cpu", attend_cpu_supports, attend_cpu},
      {"ref", attend_ref_supports, attend_ref},
  };
  return kTable;
}

void attend(Context& context, const AttendArgs& args) {
  check(args);
  choose<AttendArgs>("attend", attend_implementations(), args).run(context, args);
}

}  // namespace fasa::ops
