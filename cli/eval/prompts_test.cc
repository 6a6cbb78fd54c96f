#include "cli/eval/prompts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <sstream>

namespace fasa::cli {
namespace {

Puzzle make(const std::string& name, uint32_t seed, int64_t context = 4096) {
  Random random(seed);
  for (const RulerTask& task : ruler_tasks()) {
    if (name == task.name) return task.make(random, context);
  }
  ADD_FAILURE() << name;
  return {};
}

bool any_has(const std::vector<std::string>& sentences, const std::string& part) {
  return std::ranges::any_of(sentences, [&](const std::string& s) { return s.find(part) != std::string::npos; });
}

TEST(Prompts, TheSameForTheSameSeedOnly) {
  for (const RulerTask& task : ruler_tasks()) {
    const Puzzle a = make(task.name, 1);
    const Puzzle b = make(task.name, 1);
    const Puzzle c = make(task.name, 2);
    EXPECT_EQ(a.hidden, b.hidden) << task.name;
    EXPECT_EQ(a.filler, b.filler) << task.name;
    EXPECT_EQ(a.answers, b.answers) << task.name;
    EXPECT_NE(a.answers, c.answers) << task.name;
    EXPECT_TRUE(std::ranges::is_sorted(a.places)) << task.name;
    EXPECT_EQ(a.places.size(), a.hidden.size()) << task.name;
  }
}

TEST(Prompts, WhatIsAskedForIsHiddenAndNamed) {
  Random random(3);
  const Puzzle passkey = passkey_puzzle(random, 0.5);
  EXPECT_EQ(passkey.answers.front().size(), 5U);
  EXPECT_TRUE(any_has(passkey.hidden, passkey.answers.front()));
  const Puzzle needle = needle_puzzle(random, 0.25);
  EXPECT_TRUE(any_has(needle.hidden, needle.answers.front()));
  EXPECT_EQ(needle.places, std::vector<double>{0.25});
}

TEST(Prompts, MagicNumbers) {
  const std::map<std::string, std::pair<size_t, size_t>> expected = {// sentences, answers
                                                                     {"multikey", {4, 1}},
                                                                     {"multivalue", {4, 4}},
                                                                     {"multiquery", {4, 4}}};
  for (const auto& [name, counts] : expected) {
    const Puzzle puzzle = make(name, 5);
    EXPECT_EQ(puzzle.hidden.size(), counts.first) << name;
    ASSERT_EQ(puzzle.answers.size(), counts.second) << name;
    for (const std::string& answer : puzzle.answers) {
      EXPECT_TRUE(any_has(puzzle.hidden, "is: " + answer + ".")) << name;
      EXPECT_EQ(answer.size(), 7U);
    }
  }
}

TEST(Prompts, AssignmentsAreAChain) {
  const Puzzle puzzle = make("tracking", 7);
  ASSERT_EQ(puzzle.answers.size(), 5U);
  ASSERT_EQ(puzzle.hidden.size(), 5U);
  const std::string value = puzzle.hidden[0].substr(puzzle.hidden[0].find("= ") + 2, 5);
  EXPECT_NE(puzzle.question.find(value), std::string::npos);
  for (size_t hop = 1; hop < 5; ++hop) {
    EXPECT_EQ(puzzle.hidden[hop], "VAR " + puzzle.answers[hop] + " = VAR " + puzzle.answers[hop - 1] + ".");
  }
}

TEST(Prompts, CommonWordsAreTenTimesAsCommon) {
  const Puzzle puzzle = make("common", 9);
  std::map<std::string, int> count;
  for (const std::string& line : puzzle.filler) {
    std::istringstream words(line);
    std::string number;
    std::string word;
    words >> number >> word;
    ++count[word];
  }
  ASSERT_EQ(puzzle.answers.size(), 10U);
  for (const std::string& answer : puzzle.answers) {
    EXPECT_EQ(count[answer], 30) << answer;
    count.erase(answer);
  }
  EXPECT_FALSE(count.empty());
  for (const auto& [word, times] : count) EXPECT_LE(times, 3) << word;
}

TEST(Prompts, FrequentWordsLeadTheirText) {
  const Puzzle puzzle = make("frequent", 11, 8000);
  std::map<std::string, int> count;
  for (const std::string& word : puzzle.filler) ++count[word.substr(0, word.find(' '))];
  ASSERT_EQ(puzzle.answers.size(), 3U);
  count.erase("....");
  int least = 1 << 30;
  for (const std::string& answer : puzzle.answers) {
    least = std::min(least, count[answer]);
    count.erase(answer);
  }
  // Frequencies 1/4, 1/9, 1/16 against 1/25 of the next.
  for (const auto& [word, times] : count) EXPECT_LT(times, least) << word;
}

}  // namespace
}  // namespace fasa::cli
