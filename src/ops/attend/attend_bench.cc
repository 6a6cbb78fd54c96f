// attend at a decode step's shape: dense over a long context, and sparse over kept rows that were never touched before
// (the cache is larger than L3, and each call keeps other rows).
#include <random>
#include <string>

#include "bench/bench_util.h"
#include "src/core/dtype.h"
#include "src/ops/attend/attend.h"

namespace fasa::ops {
namespace {

constexpr int64_t kKvHeads = 3;
constexpr int64_t kKept = 256;

struct Shape {
  DType type;
  int64_t head_dim, group, num_rows;
  bool is_dense;
};

void bench_attend(benchmark::State& state, const Implementation<AttendArgs>& implementation, const Shape& shape,
                  int threads) {
  const int64_t cache_rows = shape.is_dense ? shape.num_rows : int64_t{1} << 18;
  const int64_t row_bytes = dtype_bytes(shape.type, shape.head_dim) * kKvHeads;
  std::mt19937 random(1);
  std::vector<std::byte> k(static_cast<size_t>(cache_rows * row_bytes));
  std::vector<std::byte> v(k.size());
  for (int64_t i = 0; i < cache_rows; ++i)
    for (int64_t d = 0; d < kKvHeads * shape.head_dim; ++d) {
      store_value(shape.type, k.data() + i * row_bytes, d, static_cast<float>(random() % 256) / 128.0F - 1);
      store_value(shape.type, v.data() + i * row_bytes, d, static_cast<float>(random() % 256) / 128.0F - 1);
    }
  const int64_t heads = kKvHeads * shape.group;
  std::vector<float> q(static_cast<size_t>(heads * shape.head_dim), 0.1F);
  std::vector<float> out(q.size());
  AttendArgs args;
  args.q = {q.data(), heads, shape.head_dim, shape.head_dim};
  const int64_t head_bytes = row_bytes / kKvHeads;
  args.k = {k.data(), shape.type, cache_rows, kKvHeads, shape.head_dim, row_bytes, head_bytes};
  args.v = {v.data(), shape.type, cache_rows, kKvHeads, shape.head_dim, row_bytes, head_bytes};
  args.scale = 0.125F;
  args.out = {out.data(), heads, shape.head_dim, shape.head_dim};
  std::vector<int32_t> rows;
  const std::vector<int64_t> kept(static_cast<size_t>(heads), kKept);
  constexpr int64_t kChoices = 64;
  if (shape.is_dense) {
    args.num_rows = shape.num_rows;
  } else {
    // Ascending rows of the first num_rows of a window that moves on from choice to choice.
    for (int64_t i = 0; i < kChoices * heads * kKept; ++i) {
      const int64_t window = i / (heads * kKept) * (cache_rows - shape.num_rows) / kChoices;
      rows.push_back(static_cast<int32_t>(window + i % kKept * shape.num_rows / kKept +
                                          static_cast<int64_t>(random()) % (shape.num_rows / kKept)));
    }
    args.rows = rows.data();
    args.rows_stride = kKept;
    args.num_kept = kept.data();
    args.num_sets = heads;
  }
  Context context(make_thread_executor(threads));
  int64_t call = 0;
  bench::measure(state, threads, bytes(args), [&] {
    if (!shape.is_dense) args.rows = rows.data() + call++ % kChoices * heads * kKept;
    implementation.run(context, args);
  });
}

const int kRegistered = [] {
  for (const auto& implementation : attend_implementations())
    for (const Shape& shape : {Shape{DType::kF16, 64, 3, 8000, true}, Shape{DType::kF16, 64, 3, 32000, true},
                               Shape{DType::kF16, 128, 4, 8000, true}, Shape{DType::kBF16, 128, 4, 8000, true},
                               Shape{DType::kF16, 64, 3, 8000, false}, Shape{DType::kF16, 128, 4, 8000, false}})
      for (const int threads : {1, 2}) {
        if (std::string_view(implementation.name) == "ref" && (threads > 1 || shape.num_rows > 8000)) continue;
        const std::string name = std::string("attend/") + implementation.name + "/" +
                                 (shape.is_dense ? "dense" : "kept:256") + "/" + dtype_name(shape.type) +
                                 "/head_dim:" + std::to_string(shape.head_dim) +
                                 "/kv_heads:3/group:" + std::to_string(shape.group) +
                                 "/rows:" + std::to_string(shape.num_rows) + "/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(
            name.c_str(),
            [=, &implementation](benchmark::State& state) { bench_attend(state, implementation, shape, threads); })
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond)
            ->MinTime(0.1);
      }
  return 0;
}();

}  // namespace
}  // namespace fasa::ops
