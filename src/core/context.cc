#include "fasa/context.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#include "fasa/error.h"
#include "src/core/scratch_slots.h"

namespace fasa {
namespace {

class SerialExecutor final : public Executor {
 public:
  int num_workers() const override { return 1; }
  void run(int64_t num_tasks, TaskRef task) override {
    for (int64_t i = 0; i < num_tasks; ++i) task(i, 0);
  }
};

// Workers spin a little for the next run (a decode step makes one every few microseconds), then
// sleep.
class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(int num_threads) {
    for (int worker = 1; worker < num_threads; ++worker) threads_.emplace_back([this, worker] { work(worker); });
  }
  ThreadExecutor(const ThreadExecutor&) = delete;
  ThreadExecutor& operator=(const ThreadExecutor&) = delete;
  ~ThreadExecutor() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  int num_workers() const override { return static_cast<int>(threads_.size()) + 1; }

  void run(int64_t num_tasks, TaskRef task) override {
    if (num_tasks <= 1 || threads_.empty()) {
      for (int64_t i = 0; i < num_tasks; ++i) task(i, 0);
      return;
    }
    task_ = &task;
    num_tasks_ = num_tasks;
    next_.store(0, std::memory_order_relaxed);
    running_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    {
      const std::lock_guard lock(mutex_);
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    claim(0);
    for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins)
      if (spins > kSpins) std::this_thread::yield();
  }

 private:
  static constexpr int kSpins = 2000;

  void claim(int worker) {
    for (int64_t i = next_.fetch_add(1, std::memory_order_relaxed); i < num_tasks_;
         i = next_.fetch_add(1, std::memory_order_relaxed))
      (*task_)(i, worker);
  }

  void work(int worker) {
    for (uint64_t seen = 0;;) {
      for (int spins = 0; spins < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins)
        std::atomic_signal_fence(std::memory_order_seq_cst);
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
      }
      ++seen;  // run() waits for every worker, so no epoch is ever skipped
      if (stop_) return;
      claim(worker);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> running_{0};
  bool stop_ = false;              // guarded by epoch_
  const TaskRef* task_ = nullptr;  // guarded by epoch_
  int64_t num_tasks_ = 0;          // guarded by epoch_
};

constexpr size_t kAlignment = 64;

}  // namespace

std::unique_ptr<Executor> make_serial_executor() { return std::make_unique<SerialExecutor>(); }

std::unique_ptr<Executor> make_thread_executor(int num_threads) {
  if (num_threads < 1 || num_threads > 1024)
    throw Error(ErrorCode::kInvalidArgument, "threads: " + std::to_string(num_threads) + " is not in 1..1024");
  if (num_threads == 1) return make_serial_executor();
  return std::make_unique<ThreadExecutor>(num_threads);
}

Context::Context(std::unique_ptr<Executor> executor)
    : executor_(std::move(executor)), shared_(kNumScratchSlots), worker_(kNumScratchSlots) {
  for (auto& buffers : worker_) buffers.resize(executor_->num_workers());
}

void Context::grow(Buffer& buffer, size_t bytes) {
  if (bytes <= buffer.bytes) return;
  // Half as much again, so that a context that grows by a token a step rarely comes here.
  const size_t wanted = (bytes + bytes / 2 + kAlignment - 1) / kAlignment * kAlignment;
  void* data = std::aligned_alloc(kAlignment, wanted);
  if (data == nullptr)
    throw Error(ErrorCode::kOutOfMemory, "out of memory: " + std::to_string(wanted) +
                                             " bytes of scratch; use a smaller context or fewer threads");
  buffer.data = {static_cast<std::byte*>(data), [](std::byte* p) { std::free(p); }};
  buffer.bytes = wanted;
}

void* Context::shared_scratch(int slot, size_t bytes) {
  Buffer& buffer = shared_.at(slot);
  grow(buffer, bytes);
  return buffer.data.get();
}

void Context::reserve_worker_scratch(int slot, size_t bytes) {
  auto& buffers = worker_.at(slot);
  // An engine may change its number of threads between steps.
  if (buffers.size() < static_cast<size_t>(num_workers())) buffers.resize(num_workers());
  for (Buffer& buffer : buffers) grow(buffer, bytes);
}

void* Context::worker_scratch(int slot, int worker) const { return worker_.at(slot).at(worker).data.get(); }

size_t Context::scratch_bytes() const {
  size_t sum = 0;
  for (const Buffer& buffer : shared_) sum += buffer.bytes;
  for (const auto& buffers : worker_)
    for (const Buffer& buffer : buffers) sum += buffer.bytes;
  return sum;
}

}  // namespace fasa
