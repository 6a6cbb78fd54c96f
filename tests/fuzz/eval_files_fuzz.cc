// libFuzzer target of the JSONL files that people give to `fasa eval`: tasks, prompts and results; see CMakeLists.txt beside it.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "cli/eval/results.h"
#include "cli/eval/tables.h"
#include "cli/eval/task_file.h"
#include "fasa/error.h"

namespace {

template <class F>
void must_refuse_or_work(F parse) {
  try {
    parse();
  } catch (const fasa::Error& e) {
    if (e.code() != fasa::ErrorCode::kBadFormat && e.code() != fasa::ErrorCode::kUnsupported) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fasa::cli;  // NOLINT(google-build-using-namespace): a program of one function
  const std::string text(reinterpret_cast<const char*>(data), size);
  must_refuse_or_work([&] {
    for (const TaskQuestion& question : parse_tasks(text, "fuzz", "qasper")) {
      const double score = score_answer(question, question.context.substr(0, 200));
      if (!(score >= 0 && score <= 1)) std::abort();
      prompt_text(question, {});
    }
  });
  must_refuse_or_work([&] { parse_prompts(text, "fuzz"); });
  must_refuse_or_work([&] {
    int64_t skipped = 0;
    std::vector<Json> rows;
    for (auto& [key, row] : parse_results(text, &skipped)) rows.push_back(row);
    sections_of(rows);
  });
  return 0;
}
