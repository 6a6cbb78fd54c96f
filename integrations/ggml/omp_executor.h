// Work on the OpenMP team of the calling thread, which ggml's CPU backend uses too: threads of our
// own would compete with that team, which spins between the parts of a graph.
#pragma once

#include <atomic>

#include "fasa/context.h"

namespace fasa::ggml {

class OmpExecutor final : public Executor {
 public:
  explicit OmpExecutor(int num_threads) : num_threads_(num_threads) {}
  int num_workers() const override { return num_threads_; }

  void run(int64_t num_tasks, TaskRef task) override {
    if (num_threads_ == 1 || num_tasks <= 1) {
      for (int64_t i = 0; i < num_tasks; ++i) task(i, 0);
      return;
    }
    run_team(num_tasks, task);
  }

 private:
  void run_team(int64_t num_tasks, const TaskRef& task);

  int num_threads_;
};

}  // namespace fasa::ggml
