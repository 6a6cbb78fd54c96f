#include "cli/eval/task_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "cli/eval/metrics.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

using nlohmann::json;

constexpr size_t kMaxLine = size_t{64} << 20;

constexpr std::array kKinds = {
    TaskKind{"narrativeqa", TaskMetric::kF1, 128, false},
    TaskKind{"qasper", TaskMetric::kF1, 128, false},
    TaskKind{"multifieldqa_en", TaskMetric::kF1, 64, false},
    TaskKind{"hotpotqa", TaskMetric::kF1, 32, false},
    TaskKind{"2wikimqa", TaskMetric::kF1, 32, false},
    TaskKind{"musique", TaskMetric::kF1, 32, false},
    TaskKind{"gov_report", TaskMetric::kRougeL, 512, false},
    TaskKind{"qmsum", TaskMetric::kRougeL, 512, false},
    TaskKind{"multi_news", TaskMetric::kRougeL, 512, false},
    TaskKind{"trec", TaskMetric::kClassification, 64, true},
    TaskKind{"triviaqa", TaskMetric::kF1, 32, true},
    TaskKind{"samsum", TaskMetric::kRougeL, 128, true},
    TaskKind{"passage_retrieval_en", TaskMetric::kRetrieval, 32, false},
    TaskKind{"passage_count", TaskMetric::kCount, 32, false},
    TaskKind{"lcc", TaskMetric::kCode, 64, false},
    TaskKind{"repobench-p", TaskMetric::kCode, 64, false},
    TaskKind{"gsm8k", TaskMetric::kLastNumber, 256, false},
};

[[noreturn]] void bad(const std::string& name, int64_t line, const std::string& what) {
  throw Error(ErrorCode::kBadFormat, fmt::format("{}, line {}: {}", name, line, what));
}

std::string text_field(const json& row, const char* field, const std::string& name, int64_t line) {
  const auto at = row.find(field);
  if (at == row.end() || !at->is_string()) bad(name, line, fmt::format("\"{}\" is missing or no text", field));
  return at->get<std::string>();
}

std::vector<std::string> list_field(const json& row, const char* field, const std::string& name, int64_t line) {
  std::vector<std::string> list;
  const auto at = row.find(field);
  if (at == row.end() || !at->is_array()) bad(name, line, fmt::format("\"{}\" is missing or no list", field));
  for (const json& entry : *at) {
    if (!entry.is_string()) bad(name, line, fmt::format("\"{}\" has an entry that is no text", field));
    list.push_back(entry.get<std::string>());
  }
  return list;
}

TaskQuestion parse_line(std::string_view text, const std::string& name, int64_t line, const std::string& dataset) {
  const json row = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!row.is_object()) bad(name, line, "this is no JSON object: the file must have one on each line");
  TaskQuestion question;
  if (row.contains("question")) {
    question.dataset = "gsm8k";
    question.input = text_field(row, "question", name, line);
    question.answers = {text_field(row, "answer", name, line)};
    if (last_number(question.answers.front()).empty()) bad(name, line, "\"answer\" holds no number");
    return question;
  }
  question.dataset = row.contains("dataset") ? text_field(row, "dataset", name, line) : dataset;
  if (question.dataset.empty()) bad(name, line, "it names no \"dataset\": give one with --dataset, such as qasper");
  question.context = text_field(row, "context", name, line);
  question.input = row.contains("input") ? text_field(row, "input", name, line) : "";
  question.answers = list_field(row, "answers", name, line);
  if (question.answers.empty()) bad(name, line, "\"answers\" is empty");
  if (find_task_kind(question.dataset).metric == TaskMetric::kClassification) {
    question.classes = list_field(row, "all_classes", name, line);
  }
  return question;
}

double score_one(const TaskQuestion& question, const TaskKind& kind, const std::string& answer,
                 const std::string& truth) {
  switch (kind.metric) {
    case TaskMetric::kF1:
      return f1_score(answer, truth);
    case TaskMetric::kRougeL:
      return rouge_l_score(answer, truth);
    case TaskMetric::kClassification:
      return classification_score(answer, truth, question.classes);
    case TaskMetric::kRetrieval:
      return retrieval_score(answer, truth);
    case TaskMetric::kCount:
      return count_score(answer, truth);
    case TaskMetric::kCode:
      return code_similarity_score(answer, truth);
    case TaskMetric::kLastNumber:
      return last_number_score(answer, truth);
  }
  return 0;
}

void replace(std::string& text, const std::string& what, const std::string& with) {
  const size_t at = text.find(what);
  if (at != std::string::npos) text.replace(at, what.size(), with);
}

}  // namespace

const TaskKind& find_task_kind(const std::string& dataset) {
  // LongBench-E's files have the same names with _e.
  const std::string plain = dataset.ends_with("_e") ? dataset.substr(0, dataset.size() - 2) : dataset;
  const auto* at = std::ranges::find_if(kKinds, [&](const TaskKind& kind) { return plain == kind.dataset; });
  if (at != kKinds.end()) return *at;
  std::string known;
  for (const TaskKind& kind : kKinds) known += (known.empty() ? "" : ", ") + std::string(kind.dataset);
  throw Error(ErrorCode::kUnsupported,
              fmt::format("the dataset '{}' has no metric here: known are {}", dataset, known));
}

std::vector<TaskQuestion> parse_tasks(std::string_view text, const std::string& name, const std::string& dataset) {
  std::vector<TaskQuestion> questions;
  int64_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view part = text.substr(begin, end - begin);
    begin = end + 1;
    ++line;
    if (part.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    if (part.size() > kMaxLine) bad(name, line, "it is longer than 64 MiB");
    questions.push_back(parse_line(part, name, line, dataset));
  }
  if (questions.empty()) throw Error(ErrorCode::kBadFormat, fmt::format("{} has no question in it", name));
  return questions;
}

std::map<std::string, std::string> parse_prompts(std::string_view text, const std::string& name) {
  const json all = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!all.is_object()) {
    throw Error(ErrorCode::kBadFormat, fmt::format("{} is no JSON object of prompts by dataset", name));
  }
  std::map<std::string, std::string> prompts;
  for (const auto& [dataset, prompt] : all.items()) {
    if (!prompt.is_string())
      throw Error(ErrorCode::kBadFormat, fmt::format("{}: the prompt of {} is no text", name, dataset));
    prompts[dataset] = prompt.get<std::string>();
  }
  return prompts;
}

std::string prompt_text(const TaskQuestion& question, const std::map<std::string, std::string>& prompts) {
  const TaskKind& kind = find_task_kind(question.dataset);
  const auto given = prompts.find(kind.dataset);
  std::string prompt;
  if (given != prompts.end()) {
    prompt = given->second;
  } else if (kind.metric == TaskMetric::kCode) {
    prompt = "{context}{input}";
  } else if (kind.metric == TaskMetric::kLastNumber) {
    prompt = "Question: {input}\nLet us think step by step, and end with the number.\nAnswer:";
  } else if (kind.metric == TaskMetric::kRougeL) {
    prompt = "{context}\n\n{input}\nSummary:";
  } else {
    prompt = "{context}\n\n{input}\nAnswer:";
  }
  // The input first: a context may hold braces of its own.
  replace(prompt, "{input}", question.input);
  replace(prompt, "{context}", question.context);
  return prompt;
}

double score_answer(const TaskQuestion& question, const std::string& answer) {
  const TaskKind& kind = find_task_kind(question.dataset);
  std::string read = answer;
  if (kind.first_line) {
    read.erase(0, std::min(read.find_first_not_of('\n'), read.size()));
    read = read.substr(0, read.find('\n'));
  }
  double best = 0;
  for (const std::string& truth : question.answers) best = std::max(best, score_one(question, kind, read, truth));
  return best;
}

const char* metric_name(TaskMetric metric) {
  switch (metric) {
    case TaskMetric::kF1:
      return "F1";
    case TaskMetric::kRougeL:
      return "ROUGE-L";
    case TaskMetric::kClassification:
      return "classification";
    case TaskMetric::kRetrieval:
      return "retrieval";
    case TaskMetric::kCount:
      return "count";
    case TaskMetric::kCode:
      return "edit similarity";
    case TaskMetric::kLastNumber:
      return "exact match";
  }
  return "";
}

}  // namespace fasa::cli
