// Synthetic long prompts, the same for the same seed: hidden facts in filler, and RULER's tasks.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace fasa::cli {

// A task is pieces that must stand in this order, with filler between them, and what a right answer holds.
struct Puzzle {
  std::string introduction;
  std::vector<std::string> hidden;  // sentences to spread over the filler
  std::vector<double> places;       // of each, in [0, 1] of the filler, ascending
  std::string question;             // ends where the answer begins
  std::vector<std::string> answers;
  int64_t answer_tokens = 32;
  // Not empty: the filler of this puzzle, in the place of the usual one; it is repeated where more is needed.
  std::vector<std::string> filler;
};

using Random = std::mt19937;
// Uniform in 0..count-1, the same on every platform (std's distributions are not).
int64_t pick(Random& random, int64_t count);

// Sentences that say nothing about anything (Mohtashami and Jaggi, arXiv 2305.16300).
const std::vector<std::string>& noise();

// A five-digit pass key at `place`; the same work.
Puzzle passkey_puzzle(Random& random, double place);
// A fact about a city, as in Kamradt's needle in a haystack, with city and fact drawn.
Puzzle needle_puzzle(Random& random, double place);

struct RulerTask {
  const char* name;
  const char* meaning;
  Puzzle (*make)(Random& random, int64_t context);
};
// The tasks of Hsieh et al., arXiv 2404.06654, section 3, in words of our own:
// multikey (the asked key among distractors), multivalue, multiquery, tracking (variables over 4 hops), common (words), frequent.
const std::vector<RulerTask>& ruler_tasks();

}  // namespace fasa::cli
