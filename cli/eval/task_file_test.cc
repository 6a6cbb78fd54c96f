#include "cli/eval/task_file.h"

#include <gtest/gtest.h>

#include "fasa/error.h"

namespace fasa::cli {
namespace {

std::string refusal(const std::string& text, const std::string& dataset = "") {
  try {
    parse_tasks(text, "file.jsonl", dataset);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(TaskFile, LongBenchLine) {
  const auto questions = parse_tasks(
      R"({"input":"Who?","context":"Ann did {input}.","answers":["Ann","ann b"],"length":3,"dataset":"qasper","language":"en","all_classes":null,"_id":"1"})"
      "\n\n",
      "file.jsonl", "");
  ASSERT_EQ(questions.size(), 1U);
  EXPECT_EQ(questions[0].answers.size(), 2U);
  EXPECT_EQ(prompt_text(questions[0], {}), "Ann did {input}.\n\nWho?\nAnswer:");
  EXPECT_EQ(prompt_text(questions[0], {{"qasper", "Q: {input} T: {context} A:"}}), "Q: Who? T: Ann did {input}. A:");
  EXPECT_DOUBLE_EQ(score_answer(questions[0], "It was Ann"), 0.5);  // p = 1/3, r = 1
}

TEST(TaskFile, TheDatasetDecidesTheMetric) {
  const auto line = [](const std::string& dataset, const std::string& answer) {
    return parse_tasks(R"({"context":"c","input":"i","answers":[")" + answer + R"("],"dataset":")" + dataset +
                           R"(","all_classes":["Place","Person"]})",
                       "f", "")[0];
  };
  EXPECT_DOUBLE_EQ(score_answer(line("trec", "Place"), "\nPlace\nPerson"), 1);  // the first line only
  EXPECT_DOUBLE_EQ(score_answer(line("passage_count", "3"), "3 of 5"), 0.5);
  EXPECT_DOUBLE_EQ(score_answer(line("passage_retrieval_en", "Paragraph 4"), "Paragraph 4"), 1);
  EXPECT_DOUBLE_EQ(score_answer(line("lcc", "return x"), "return x\nmore"), 1);
  EXPECT_NEAR(score_answer(line("gov_report", "a b c d"), "a b"), 2.0 / 3, 1e-6);
  EXPECT_DOUBLE_EQ(score_answer(line("hotpotqa_e", "yes"), "Yes."), 1);  // of LongBench-E
  EXPECT_EQ(find_task_kind("gov_report").answer_tokens, 512);
}

TEST(TaskFile, Gsm8kLine) {
  const auto questions = parse_tasks(R"({"question":"2+2?","answer":"2+2=<<2+2=4>>4\n#### 4"})", "f", "");
  EXPECT_DOUBLE_EQ(score_answer(questions[0], "That makes 4."), 1);
  EXPECT_DOUBLE_EQ(score_answer(questions[0], "That makes 5."), 0);
  EXPECT_NE(prompt_text(questions[0], {}).find("2+2?"), std::string::npos);
}

TEST(TaskFile, HostileFiles) {
  EXPECT_NE(refusal("").find("no question"), std::string::npos);
  EXPECT_NE(refusal("\n \n").find("no question"), std::string::npos);
  EXPECT_NE(refusal("{\"question\":1,\"answer\":\"1\"}").find("line 1: \"question\""), std::string::npos);
  EXPECT_NE(refusal("\n{").find("line 2: this is no JSON object"), std::string::npos);
  EXPECT_NE(refusal("[]").find("no JSON object"), std::string::npos);
  EXPECT_NE(refusal("{\"question\":\"q\",\"answer\":\"none\"}").find("no number"), std::string::npos);
  EXPECT_NE(refusal(R"({"context":"c","answers":["a"]})").find("--dataset"), std::string::npos);
  EXPECT_NE(refusal(R"({"context":"c","answers":["a"]})", "nonsense").find("no metric"), std::string::npos);
  EXPECT_NE(refusal(R"({"context":"c","answers":[]})", "qasper").find("\"answers\" is empty"), std::string::npos);
  EXPECT_NE(refusal(R"({"context":"c","answers":[1]})", "qasper").find("no text"), std::string::npos);
  EXPECT_NE(refusal(R"({"context":"c","answers":"a"})", "qasper").find("no list"), std::string::npos);
  EXPECT_NE(refusal(R"({"context":"c","answers":["a"]})", "trec").find("all_classes"), std::string::npos);
  EXPECT_NE(refusal(std::string(100000, '[')).find("no JSON object"), std::string::npos);
  EXPECT_THROW(parse_prompts("[1]", "p"), Error);
  EXPECT_THROW(parse_prompts("{\"qasper\":1}", "p"), Error);
}

}  // namespace
}  // namespace fasa::cli
