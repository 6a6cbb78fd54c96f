#include "cli/eval/metrics.h"

#include <gtest/gtest.h>

namespace fasa::cli {
namespace {

TEST(Metrics, NormalisesAsSquadDoes) {
  EXPECT_EQ(normalize_answer("  The  Cat, an\n animal; sat!"), "cat animal sat");
  EXPECT_EQ(normalize_answer("A.I."), "ai");
  EXPECT_EQ(normalize_answer("the"), "");
}

TEST(Metrics, F1CountsWordsAsABag) {
  // 2 words in common of 3 predicted and 4 true: p = 2/3, r = 1/2, F1 = 4/7.
  EXPECT_NEAR(f1_score("the red red cat", "red cat sat down"), 4.0 / 7, 1e-12);
  EXPECT_DOUBLE_EQ(f1_score("Paris.", "paris"), 1);
  EXPECT_DOUBLE_EQ(f1_score("London", "Paris"), 0);
  EXPECT_DOUBLE_EQ(f1_score("", "Paris"), 0);
  EXPECT_DOUBLE_EQ(f1_score("the", "the"), 0);  // nothing is left of either
}

TEST(Metrics, RougeLOfOneSentence) {
  // Lin (2004), section 3.1: S1 is the reference, S2 has the LCS "police the gunman", S3 "the gunman".
  const std::string s1 = "police killed the gunman";
  EXPECT_NEAR(rouge_l_score("police kill the gunman", s1), 0.75, 1e-6);
  EXPECT_NEAR(rouge_l_score("the gunman kill police", s1), 0.5, 1e-6);
  EXPECT_NEAR(rouge_l_score(s1, s1), 1, 1e-6);
  EXPECT_DOUBLE_EQ(rouge_l_score("nothing here", s1), 0);
  EXPECT_DOUBLE_EQ(rouge_l_score("", s1), 0);
  EXPECT_DOUBLE_EQ(rouge_l_score("...", s1), 0);
}

TEST(Metrics, RougeLIsTheUnionOverSentences) {
  // Lin (2004), section 3.2: reference w1..w5, candidates "w1 w2 w6 w7 w8" and "w1 w3 w8 w9 w5": the union of the LCS is w1 w2 w3
  // w5, recall 4/5; the candidate has 8 distinct words.
  const double recall = 4.0 / 5;
  const double precision = 4.0 / 8;
  EXPECT_NEAR(rouge_l_score("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5"),
              2 * recall * precision / (recall + precision), 1e-6);
}

TEST(Metrics, Classification) {
  const std::vector<std::string> classes = {"Human", "Human or not", "Location"};
  EXPECT_DOUBLE_EQ(classification_score("It is a Location", "Location", classes), 1);
  EXPECT_DOUBLE_EQ(classification_score("Location or Human", "Location", classes), 0.5);
  EXPECT_DOUBLE_EQ(classification_score("Human or not", "Human or not", classes), 1);  // its part does not count
  EXPECT_DOUBLE_EQ(classification_score("Human", "Location", classes), 0);
}

TEST(Metrics, RetrievalAndCount) {
  EXPECT_DOUBLE_EQ(retrieval_score("Paragraph 12, or 13", "Paragraph 12"), 0.5);
  EXPECT_DOUBLE_EQ(retrieval_score("none", "Paragraph 12"), 0);
  EXPECT_DOUBLE_EQ(count_score("there are 7", "7"), 1);
  EXPECT_DOUBLE_EQ(count_score("7 or 8 or 9", "7"), 1.0 / 3);
  EXPECT_DOUBLE_EQ(count_score("77", "7"), 0);
}

TEST(Metrics, CodeSimilarity) {
  EXPECT_DOUBLE_EQ(code_similarity_score("\n\n# comment\nreturn x\nreturn y", "return x"), 1);
  EXPECT_DOUBLE_EQ(code_similarity_score("```python\nabc", "abd"), 0.67);  // 2 * 2 / 6
  EXPECT_DOUBLE_EQ(code_similarity_score("// only a comment", "x"), 0);
  EXPECT_DOUBLE_EQ(code_similarity_score("", ""), 0);
}

TEST(Metrics, MatchAll) {
  const std::vector<std::string> wanted = {"12345", "Zebra"};
  EXPECT_DOUBLE_EQ(match_all_score("the ZEBRA has 12345 stripes", wanted), 1);
  EXPECT_DOUBLE_EQ(match_all_score("zebra", wanted), 0.5);
  EXPECT_DOUBLE_EQ(match_all_score("", wanted), 0);
}

TEST(Metrics, LastNumber) {
  EXPECT_EQ(last_number("costs $1,234.50 in all."), "1234.5");
  EXPECT_EQ(last_number("first 3, then 4"), "4");
  EXPECT_EQ(last_number("it is -7."), "-7");
  EXPECT_EQ(last_number("2.00"), "2");
  EXPECT_EQ(last_number("none"), "");
  EXPECT_DOUBLE_EQ(last_number_score("So the answer is 18.", "9 * 2 = 18 dollars a day.\n#### 18"), 1);
  EXPECT_DOUBLE_EQ(last_number_score("So the answer is 1,800", "#### 1800"), 1);
  EXPECT_DOUBLE_EQ(last_number_score("It is 9", "9 + 9 = 18\n#### 18"), 0);
  EXPECT_DOUBLE_EQ(last_number_score("", "#### "), 0);
}

}  // namespace
}  // namespace fasa::cli
