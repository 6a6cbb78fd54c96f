#include "integrations/ggml/omp_executor.h"

#include <omp.h>

namespace fasa::ggml {

void OmpExecutor::run_team(int64_t num_tasks, const TaskRef& task) {
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(num_threads_)
  {
    const int worker = omp_get_thread_num();
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < num_tasks;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      task(i, worker);
    }
  }
}

}  // namespace fasa::ggml
