// What every benchmark row shows: median [p10, p90] of the time, the bytes that must move, GB/s,
// and how much that is of the read bandwidth measured in the same run with the same number of
// threads.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "fasa/context.h"

namespace fasa::bench {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Value at fraction `at` of `values`, which it sorts.
inline double quantile(std::vector<double>& values, double at) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(std::lround(at * static_cast<double>(values.size() - 1)))];
}

inline uint64_t sum_words(const uint64_t* words, size_t count) {
  uint64_t a = 0;
  uint64_t b = 0;
  uint64_t c = 0;
  uint64_t d = 0;
  for (size_t i = 0; i < count; i += 8) {
    a += words[i] + words[i + 1];
    b += words[i + 2] + words[i + 3];
    c += words[i + 4] + words[i + 5];
    d += words[i + 6] + words[i + 7];
  }
  return a + b + c + d;
}

// Bytes a second that `num_threads` threads read from memory: the median of 9 passes over 512 MiB,
// measured once a run.
inline double read_bandwidth(int num_threads) {
  static std::map<int, double> measured;
  const auto [entry, is_new] = measured.try_emplace(num_threads, 0.0);
  if (!is_new) return entry->second;
  constexpr int64_t kChunks = 256;
  constexpr size_t kChunkWords = size_t{2} << 20 >> 3;
  const auto words = std::make_unique<uint64_t[]>(kChunks * kChunkWords);
  Context context(make_thread_executor(num_threads));
  std::vector<uint64_t> sums(kChunks);
  std::vector<double> rates;
  for (int pass = 0; pass < 9; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    context.parallel_for(
        kChunks, [&](int64_t i, int /*worker*/) { sums[i] = sum_words(words.get() + i * kChunkWords, kChunkWords); });
    rates.push_back(static_cast<double>(kChunks * kChunkWords * 8) / seconds_since(start));
    benchmark::DoNotOptimize(sums.data());
  }
  return entry->second = quantile(rates, 0.5);
}

// The benchmark loop: times every call of `op`, which moves `bytes` on `num_threads` threads.
// Register the benchmark with UseManualTime().
template <class Op>
void measure(benchmark::State& state, int num_threads, int64_t bytes, const Op& op) {
  op();  // scratch grows here
  std::vector<double> seconds;
  for ([[maybe_unused]] auto unused : state) {
    const auto start = std::chrono::steady_clock::now();
    op();
    seconds.push_back(seconds_since(start));
    state.SetIterationTime(seconds.back());
  }
  const double median = quantile(seconds, 0.5);
  const double rate = static_cast<double>(bytes) / median;
  state.counters["us"] = median * 1e6;
  state.counters["us_p10"] = quantile(seconds, 0.1) * 1e6;
  state.counters["us_p90"] = quantile(seconds, 0.9) * 1e6;
  state.counters["MB"] = static_cast<double>(bytes) * 1e-6;
  state.counters["GB/s"] = rate * 1e-9;
  state.counters["%bandwidth"] = 100 * rate / read_bandwidth(num_threads);
}

}  // namespace fasa::bench
