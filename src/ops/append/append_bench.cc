// append: the one row of a decode step, and the rebuild of a whole index.
#include <numeric>
#include <string>

#include "bench/bench_util.h"
#include "src/ops/append/append.h"

namespace fasa::ops {
namespace {

void bench_append(benchmark::State& state, const Implementation<AppendArgs>& implementation, int64_t num_new,
                  bool rebuild, int threads) {
  constexpr int64_t kHeads = 3;
  constexpr int64_t kHeadDim = 64;
  constexpr int64_t kFcs = 8;
  constexpr int64_t kRows = 8192;
  std::vector<float> source(static_cast<size_t>(num_new * kHeads * kHeadDim), 0.5F);
  std::vector<uint16_t> cache(static_cast<size_t>(kRows * kHeads * kHeadDim), 0x3C00);
  std::vector<int64_t> rows(static_cast<size_t>(num_new));
  std::iota(rows.begin(), rows.end(), kRows - num_new);
  std::vector<int16_t> dims(kHeads * kFcs * 2);
  for (size_t i = 0; i < dims.size(); ++i) dims[i] = static_cast<int16_t>(i * 7 % kHeadDim);
  const IndexShape shape{IndexType::kI8, kHeads, kFcs, kRows};
  std::vector<std::byte> index(static_cast<size_t>(shape.total_bytes()));
  AppendArgs args;
  if (!rebuild)
    args.src = {reinterpret_cast<std::byte*>(source.data()),
                DType::kF32,
                num_new,
                kHeads,
                kHeadDim,
                kHeads * kHeadDim * 4,
                kHeadDim * 4};
  args.rows = rows;
  args.cache = {reinterpret_cast<std::byte*>(cache.data()),
                DType::kF16,
                kRows,
                kHeads,
                kHeadDim,
                kHeads * kHeadDim * 2,
                kHeadDim * 2};
  args.index = {index.data(), shape, dims.data()};
  Context context(make_thread_executor(threads));
  bench::measure(state, threads, bytes(args), [&] {
    check(args);
    implementation.run(context, args);
  });
}

const int kRegistered = [] {
  for (const auto& implementation : append_implementations())
    for (const bool rebuild : {false, true})
      for (const int64_t num_new : {1, 512, 8192})
        for (const int threads : {1, 2}) {
          const std::string name = std::string("append/") + implementation.name + (rebuild ? "/rebuild" : "/f32-f16") +
                                   "/int8/kv_heads:3/dim:64/fcs:8/rows:" + std::to_string(num_new) +
                                   "/threads:" + std::to_string(threads);
          benchmark::RegisterBenchmark(name.c_str(),
                                       [=, &implementation](benchmark::State& state) {
                                         bench_append(state, implementation, num_new, rebuild, threads);
                                       })
              ->UseManualTime()
              ->Unit(benchmark::kMicrosecond)
              ->MinTime(0.2);
        }
  return 0;
}();

}  // namespace
}  // namespace fasa::ops
