// Tasks that people bring: JSONL files in LongBench's format or in GSM8K's.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace fasa::cli {

enum class TaskMetric : uint8_t { kF1, kRougeL, kClassification, kRetrieval, kCount, kCode, kLastNumber };

struct TaskKind {
  const char* dataset;  // of LongBench, or "gsm8k"
  TaskMetric metric;
  int64_t answer_tokens;  // LongBench's dataset2maxlen
  bool first_line;        // only the answer's first line counts
};
// Throws Error(kUnsupported) for a dataset whose metric is not here (the Chinese ones, whose words need a segmenter).
const TaskKind& find_task_kind(const std::string& dataset);

struct TaskQuestion {
  std::string dataset;
  std::string context;
  std::string input;
  std::vector<std::string> answers;
  std::vector<std::string> classes;
};

// Lines with "context", "input" and "answers" (LongBench; "dataset" and "all_classes" where they matter), or with "question" and
// "answer" (GSM8K). `dataset`: for lines that name none. Throws Error(kBadFormat), with the line's number, on anything else.
std::vector<TaskQuestion> parse_tasks(std::string_view text, const std::string& name, const std::string& dataset);

// dataset -> prompt with {context} and {input}: LongBench's dataset2prompt.json. Throws Error(kBadFormat).
std::map<std::string, std::string> parse_prompts(std::string_view json, const std::string& name);

std::string prompt_text(const TaskQuestion& question, const std::map<std::string, std::string>& prompts);

// The best of the question's answers, by the dataset's metric.
double score_answer(const TaskQuestion& question, const std::string& answer);
const char* metric_name(TaskMetric metric);

}  // namespace fasa::cli
