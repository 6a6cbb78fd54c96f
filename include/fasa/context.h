// Where work runs: threads now, streams later. Passed to every operation; there is no global state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

namespace fasa {

// A non-owning reference to `void(int64_t task, int worker)`; lives as long as the call it is passed to.
class TaskRef {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>)
      TaskRef(F&& f)  // NOLINT(google-explicit-constructor): a call argument
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* o, int64_t task, int worker) { (*static_cast<std::remove_reference_t<F>*>(o))(task, worker); }) {
  }
  void operator()(int64_t task, int worker) const { call_(object_, task, worker); }

 private:
  void* object_;
  void (*call_)(void*, int64_t, int);
};

// Runs tasks 0..num_tasks-1, each once, on num_workers() workers; returns when all are done.
// Tasks do not throw. An engine supplies its own so that both share one team of threads.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int num_workers() const = 0;
  virtual void run(int64_t num_tasks, TaskRef task) = 0;
};

// Runs everything on the calling thread.
std::unique_ptr<Executor> make_serial_executor();
// `num_threads` workers (the caller is one). Throws Error(kInvalidArgument) for num_threads < 1.
std::unique_ptr<Executor> make_thread_executor(int num_threads);

// One decoding stream of work: an executor and the scratch memory that operations need.
// Not for use from two threads at a time.
class Context {
 public:
  explicit Context(std::unique_ptr<Executor> executor);

  int num_workers() const { return executor_->num_workers(); }
  void parallel_for(int64_t num_tasks, TaskRef task) { executor_->run(num_tasks, task); }

  // Scratch that all workers share, and that of one worker; 64-byte aligned, kept between calls,
  // grown when asked for more (so a steady decode loop allocates nothing). Each `slot` is one
  // buffer; a callee uses slots of its own (enum ScratchSlot).
  void* shared_scratch(int slot, size_t bytes);
  // Sizes the scratch of every worker; call it before parallel_for, then worker_scratch inside.
  void reserve_worker_scratch(int slot, size_t bytes);
  void* worker_scratch(int slot, int worker) const;

  size_t scratch_bytes() const;

 private:
  struct Buffer {
    std::unique_ptr<std::byte[], void (*)(std::byte*)> data{nullptr, nullptr};
    size_t bytes = 0;
  };
  static void grow(Buffer& buffer, size_t bytes);

  std::unique_ptr<Executor> executor_;
  std::vector<Buffer> shared_;               // [slot]
  std::vector<std::vector<Buffer>> worker_;  // [slot][worker]
};

}  // namespace fasa
