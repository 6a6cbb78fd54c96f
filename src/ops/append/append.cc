#include "src/ops/append/append.h"

#include <string>

#include "src/ops/append/append_impl.h"

namespace fasa::ops {
namespace {

[[noreturn]] void bad(const std::string& what) { throw Error(ErrorCode::kInvalidArgument, "append: " + what); }

}  // namespace

void check(const AppendArgs& args) {
  if (args.cache.data == nullptr) bad("cache has no data");
  if (args.src.data != nullptr) {
    if (args.src.num_rows != static_cast<int64_t>(args.rows.size()))
      bad("src has " + std::to_string(args.src.num_rows) + " rows for " + std::to_string(args.rows.size()) +
          " row numbers");
    if (args.src.num_heads != args.cache.num_heads || args.src.head_dim != args.cache.head_dim)
      bad("src and cache differ in heads or head_dim");
  }
  for (const int64_t row : args.rows)
    if (row < 0 || row >= args.cache.num_rows)
      bad("row " + std::to_string(row) + " is outside of the cache's " + std::to_string(args.cache.num_rows));
  if (args.index.data == nullptr) return;
  const IndexShape& shape = args.index.shape;
  if (args.index.dims == nullptr && args.index.basis == nullptr) bad("the index has neither dims nor a basis");
  if (shape.num_fcs < 1 || shape.num_fcs > kMaxFcs) bad("num_fcs must be in 1..2048");
  if (shape.num_planes < args.cache.num_heads || shape.num_planes % args.cache.num_heads != 0)
    bad("the index's planes must be a multiple of the KV heads");
  if (shape.num_rows < args.cache.num_rows) bad("the index has fewer rows than the cache");
  if (args.index.basis != nullptr) return;
  for (int64_t i = 0; i < shape.num_planes * shape.num_fcs * 2; ++i)
    if (args.index.dims[i] < 0 || args.index.dims[i] >= args.cache.head_dim)
      bad("an index dim lies outside of the head");
}

int64_t bytes(const AppendArgs& args) {
  const int64_t row = dtype_bytes(args.cache.dtype, args.cache.head_dim) * args.cache.num_heads;
  const int64_t source =
      args.src.data == nullptr ? 0 : dtype_bytes(args.src.dtype, args.src.head_dim) * args.src.num_heads;
  const double index =
      args.index.data == nullptr ? 0 : args.index.shape.row_bytes() * static_cast<double>(args.index.shape.num_planes);
  return static_cast<int64_t>(args.rows.size()) * (row + source + static_cast<int64_t>(index));
}

std::span<const Implementation<AppendArgs>> append_implementations() {
  static constexpr Implementation<AppendArgs> kTable[] = {
      {"cpu", append_cpu_supports, append_cpu},
      {"ref", append_ref_supports, append_ref},
  };
  return kTable;
}

void append(Context& context, const AppendArgs& args) {
  check(args);
  choose<AppendArgs>("append", append_implementations(), args).run(context, args);
}

}  // namespace fasa::ops
