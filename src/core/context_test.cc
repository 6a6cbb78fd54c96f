#include "fasa/context.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "fasa/error.h"

namespace fasa {
namespace {

class ContextTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Threads, ContextTest, testing::Values(1, 2, 3, 7));

TEST_P(ContextTest, EveryTaskRunsOnce) {
  Context context(make_thread_executor(GetParam()));
  for (const int64_t num_tasks : {0, 1, 2, 3, 17, 1000}) {
    std::vector<int> runs(static_cast<size_t>(num_tasks));  // not atomic: each task is one worker's
    std::atomic<bool> bad_worker{false};
    context.parallel_for(num_tasks, [&](int64_t task, int worker) {
      if (worker < 0 || worker >= context.num_workers()) bad_worker = true;
      ++runs[static_cast<size_t>(task)];
    });
    EXPECT_EQ(runs, std::vector<int>(static_cast<size_t>(num_tasks), 1));
    EXPECT_FALSE(bad_worker);
  }
}

// What one run wrote is visible to every task of the next.
TEST_P(ContextTest, ManyTinyRunsInOrder) {
  Context context(make_thread_executor(GetParam()));
  std::vector<int64_t> values(8);
  std::vector<int64_t> next(8);
  for (int run = 0; run < 20000; ++run) {
    context.parallel_for(8, [&](int64_t i, int) { next[i] = values[(i + 1) % 8] + 1; });
    values.swap(next);
  }
  EXPECT_EQ(values, std::vector<int64_t>(8, 20000));
}

TEST_P(ContextTest, RunsAfterTheWorkersSlept) {
  Context context(make_thread_executor(GetParam()));
  std::atomic<int> count{0};
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    context.parallel_for(5, [&](int64_t, int) { ++count; });
  }
  EXPECT_EQ(count, 15);
}

// A task may run work of its own on another context.
TEST_P(ContextTest, NestedOnAContextOfItsOwn) {
  Context outer(make_thread_executor(GetParam()));
  std::atomic<int> count{0};
  outer.parallel_for(4, [&](int64_t, int) {
    Context inner(make_thread_executor(2));
    inner.parallel_for(10, [&](int64_t, int) { ++count; });
  });
  EXPECT_EQ(count, 40);
}

TEST_P(ContextTest, StartsAndStops) {
  for (int i = 0; i < 50; ++i) Context context(make_thread_executor(GetParam()));
}

TEST_P(ContextTest, ScratchIsAlignedKeptAndPerWorker) {
  Context context(make_thread_executor(GetParam()));
  void* first = context.shared_scratch(0, 1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0U);
  EXPECT_EQ(context.shared_scratch(0, 1000), first);
  EXPECT_EQ(context.shared_scratch(0, 10), first);
  EXPECT_NE(context.shared_scratch(1, 1000), first);
  std::memset(context.shared_scratch(0, 100000), 1, 100000);

  context.reserve_worker_scratch(2, 256);
  const size_t bytes = context.scratch_bytes();
  EXPECT_GE(bytes, 100000 + 1000 + 256U * static_cast<size_t>(GetParam()));
  for (int worker = 0; worker < context.num_workers(); ++worker) {
    auto* mine = static_cast<std::byte*>(context.worker_scratch(2, worker));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(mine) % 64, 0U);
    std::memset(mine, worker, 256);
  }
  for (int worker = 0; worker < context.num_workers(); ++worker)
    EXPECT_EQ(static_cast<std::byte*>(context.worker_scratch(2, worker))[255], static_cast<std::byte>(worker));
  context.reserve_worker_scratch(2, 200);
  EXPECT_EQ(context.scratch_bytes(), bytes);
}

TEST(Executor, SerialRunsInOrderOnTheCaller) {
  const auto executor = make_serial_executor();
  std::vector<int64_t> order;
  executor->run(5, [&](int64_t task, int worker) {
    EXPECT_EQ(worker, 0);
    order.push_back(task);
  });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

TEST(Executor, RefusesNoThreads) {
  EXPECT_THROW(make_thread_executor(0), Error);
  EXPECT_THROW(make_thread_executor(-3), Error);
}

}  // namespace
}  // namespace fasa
