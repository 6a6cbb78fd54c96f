// select at a decode step's shape: normal scores, scores crowded together, and all equal.
#include <random>
#include <string>

#include "bench/bench_util.h"
#include "src/ops/select/select.h"

namespace fasa::ops {
namespace {

enum class Scores : uint8_t { kNormal, kClustered, kEqual };

void bench_select(benchmark::State& state, const Implementation<SelectArgs>& implementation, Scores kind,
                  int64_t num_rows, int64_t budget, int threads) {
  constexpr int64_t kSets = 9;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> scores(static_cast<size_t>(kSets * num_rows));
  for (float& x : scores) {
    const float z = normal(random);
    x = kind == Scores::kNormal ? z : kind == Scores::kClustered ? 20 + 0.5F * z : 1.0F;
  }
  std::vector<int32_t> forced;
  for (int32_t i = 0; i < 4; ++i) forced.push_back(i);
  for (int64_t i = num_rows - 32; i < num_rows; ++i) forced.push_back(static_cast<int32_t>(i));
  std::vector<int32_t> rows(static_cast<size_t>(kSets * budget));
  std::vector<int64_t> kept(kSets);
  SelectArgs args;
  args.scores = scores.data();
  args.scores_stride = num_rows;
  args.num_sets = kSets;
  args.num_rows = num_rows;
  args.budget = budget;
  args.forced = forced;
  args.rows = rows.data();
  args.num_kept = kept.data();
  Context context(make_thread_executor(threads));
  bench::measure(state, threads, bytes(args), [&] { implementation.run(context, args); });
}

const int kRegistered = [] {
  constexpr const char* kNames[] = {"normal", "clustered", "equal"};
  for (const auto& implementation : select_implementations())
    for (const Scores kind : {Scores::kNormal, Scores::kClustered, Scores::kEqual})
      for (const int64_t rows : {8000, 32000, 131072})
        for (const int64_t budget : {256, 2048})
          for (const int threads : {1, 2}) {
            if (std::string_view(implementation.name) == "ref" && (rows > 8000 || threads > 1)) continue;
            const std::string name = std::string("select/") + implementation.name + "/" +
                                     kNames[static_cast<int>(kind)] + "/sets:9/rows:" + std::to_string(rows) +
                                     "/budget:" + std::to_string(budget) + "/threads:" + std::to_string(threads);
            benchmark::RegisterBenchmark(name.c_str(),
                                         [=, &implementation](benchmark::State& state) {
                                           bench_select(state, implementation, kind, rows, budget, threads);
                                         })
                ->UseManualTime()
                ->Unit(benchmark::kMicrosecond)
                ->MinTime(0.1);
          }
  return 0;
}();

}  // namespace
}  // namespace fasa::ops
