// score over an index larger than the L3 cache (64 MB and more), and at a decode step's own shape.
#include <random>
#include <string>

#include "bench/bench_util.h"
#include "src/ops/score/score.h"

namespace fasa::ops {
namespace {

void bench_score(benchmark::State& state, const Implementation<ScoreArgs>& implementation, IndexType type,
                 int64_t group, int64_t kv_heads, int64_t num_rows, int64_t num_fcs, int threads, GroupReduce reduce) {
  constexpr int64_t kHeadDim = 64;
  const IndexShape shape{type, kv_heads, num_fcs, num_rows};
  const auto storage = std::unique_ptr<std::byte, decltype(&std::free)>(
      static_cast<std::byte*>(std::aligned_alloc(64, static_cast<size_t>(shape.total_bytes() + 63) / 64 * 64)),
      &std::free);
  std::mt19937 random(1);
  // Small positive f16 scales too, so that no value is a NaN or subnormal.
  for (int64_t i = 0; i < shape.total_bytes(); ++i) storage.get()[i] = static_cast<std::byte>(random() % 64);
  std::vector<int16_t> dims;
  for (int64_t i = 0; i < kv_heads * num_fcs * 2; ++i) dims.push_back(static_cast<int16_t>(random() % kHeadDim));
  std::vector<float> q(static_cast<size_t>(kv_heads * group * kHeadDim));
  for (float& x : q) x = static_cast<float>(random() % 1000) / 500.0F - 1;
  const int64_t sets = reduce == GroupReduce::kNone ? kv_heads * group : kv_heads;
  std::vector<float> scores(static_cast<size_t>(sets * num_rows));
  ScoreArgs args;
  args.q = {q.data(), kv_heads * group, kHeadDim, kHeadDim};
  args.num_kv_heads = kv_heads;
  args.index = {storage.get(), shape, dims.data()};
  args.num_rows = num_rows;
  args.reduce = reduce;
  args.scores = scores.data();
  args.scores_stride = num_rows;
  Context context(make_thread_executor(threads));
  bench::measure(state, threads, bytes(args), [&] {
    check(args);
    implementation.run(context, args);
  });
  state.counters["index_%bandwidth"] =
      100 * static_cast<double>(shape.total_bytes()) / (state.counters["us"] * 1e-6) / bench::read_bandwidth(threads);
}

const int kRegistered = [] {
  for (const auto& implementation : score_implementations()) {
    const bool is_ref = std::string_view(implementation.name) == "ref";
    for (const IndexType type : {IndexType::kI8, IndexType::kI4, IndexType::kF16})
      for (const int64_t group : {1, 3, 4, 8})
        for (const int64_t rows : {8000, 32000, 1400000}) {
          for (const int threads : {1, 2}) {
            for (const GroupReduce reduce : {GroupReduce::kNone, GroupReduce::kMax}) {
              if (is_ref && (rows > 8000 || threads > 1)) continue;
              if (reduce == GroupReduce::kMax && group == 1) continue;
              const std::string name = std::string("score/") + implementation.name + "/" + index_type_name(type) +
                                       "/rows:" + std::to_string(rows) + "/kv_heads:3/group:" + std::to_string(group) +
                                       (reduce == GroupReduce::kMax ? "/max" : "") +
                                       "/fcs:8/threads:" + std::to_string(threads);
              benchmark::RegisterBenchmark(name.c_str(),
                                           [=, &implementation](benchmark::State& state) {
                                             bench_score(state, implementation, type, group, 3, rows, 8, threads,
                                                         reduce);
                                           })
                  ->UseManualTime()
                  ->Unit(benchmark::kMicrosecond)
                  ->MinTime(0.3);
            }
          }
        }
  }
  return 0;
}();

}  // namespace
}  // namespace fasa::ops
