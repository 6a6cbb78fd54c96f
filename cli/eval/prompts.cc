#include "cli/eval/prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace fasa::cli {
namespace {

const char* const kWords[] = {
    "apple",    "basket", "candle", "desert", "engine", "forest",  "garden", "hammer", "island", "jacket",
    "kettle",   "ladder", "magnet", "needle", "orange", "pencil",  "quartz", "ribbon", "saddle", "tunnel",
    "umbrella", "valley", "window", "yellow", "zipper", "anchor",  "button", "camera", "dragon", "eleven",
    "feather",  "guitar", "harbor", "insect", "jungle", "kitten",  "lemon",  "mirror", "nickel", "oyster",
    "pillow",   "rabbit", "silver", "tomato", "velvet", "walnut",  "bridge", "castle", "dinner", "family",
    "glove",    "helmet", "iron",   "jelly",  "knight", "lantern", "marble", "night",  "ocean",  "planet",
    "rocket",   "school", "ticket", "violin", "wagon",  "bottle",  "circle", "doctor", "fabric", "ginger"};
constexpr int64_t kNumWords = std::size(kWords);

std::string number(Random& random, int64_t low, int64_t high) {
  return std::to_string(low + pick(random, high - low + 1));
}

std::vector<std::string> distinct_words(Random& random, int64_t count) {
  std::vector<std::string> words(kWords, kWords + kNumWords);
  for (int64_t i = 0; i < count; ++i) std::swap(words[i], words[i + pick(random, kNumWords - i)]);
  words.resize(static_cast<size_t>(count));
  return words;
}

std::vector<double> random_places(Random& random, size_t count) {
  std::vector<double> places;
  while (places.size() < count) places.push_back(static_cast<double>(pick(random, 10000)) / 10000);
  std::ranges::sort(places);
  return places;
}

std::string join(const std::vector<std::string>& words) {
  std::string all;
  for (size_t i = 0; i < words.size(); ++i) {
    all += (i == 0 ? "" : i + 1 == words.size() ? " and " : ", ") + words[i];
  }
  return all;
}

// `asked` keys with `values` numbers each, and `others` keys nobody asks for.
Puzzle magic_numbers(Random& random, int64_t asked, int64_t values, int64_t others) {
  const std::vector<std::string> keys = distinct_words(random, asked + others);
  Puzzle puzzle;
  puzzle.introduction =
      "Some special magic numbers are hidden in the following text. Remember them: you will be asked.\n";
  for (int64_t k = 0; k < asked + others; ++k) {
    for (int64_t v = 0; v < (k < asked ? values : 1); ++v) {
      const std::string value = number(random, 1000000, 9999999);
      puzzle.hidden.push_back(fmt::format("One of the special magic numbers for {} is: {}.", keys[k], value));
      if (k < asked) puzzle.answers.push_back(value);
    }
  }
  for (size_t i = puzzle.hidden.size(); i > 1; --i) {
    std::swap(puzzle.hidden[i - 1], puzzle.hidden[pick(random, static_cast<int64_t>(i))]);
  }
  puzzle.places = random_places(random, puzzle.hidden.size());
  const std::string names = join({keys.begin(), keys.begin() + asked});
  const bool one = asked * values == 1;
  puzzle.question =
      fmt::format("\nWhat {} the special magic number{} for {} in the text above? The special magic number{} for {} {}",
                  one ? "is" : "are", one ? "" : "s", names, one ? "" : "s", names, one ? "is:" : "are:");
  puzzle.answer_tokens = 14 * asked * values + 4;
  return puzzle;
}

Puzzle multikey(Random& random, int64_t /*context*/) { return magic_numbers(random, 1, 1, 3); }
Puzzle multivalue(Random& random, int64_t /*context*/) { return magic_numbers(random, 1, 4, 0); }
Puzzle multiquery(Random& random, int64_t /*context*/) { return magic_numbers(random, 4, 1, 0); }

// A chain X1 = number, X2 = X1, ...: every variable of it has the number's value.
Puzzle tracking(Random& random, int64_t /*context*/) {
  constexpr int kHops = 4;
  Puzzle puzzle;
  puzzle.introduction = "Follow the chains of variable assignments that are hidden in the following text.\n";
  const std::string value = number(random, 10000, 99999);
  std::set<std::string> names;
  while (names.size() < kHops + 1) {
    std::string name;
    for (int i = 0; i < 5; ++i) name += static_cast<char>('A' + pick(random, 26));
    names.insert(name);
  }
  puzzle.answers.assign(names.begin(), names.end());
  puzzle.hidden.push_back(fmt::format("VAR {} = {}.", puzzle.answers[0], value));
  for (int hop = 0; hop < kHops; ++hop) {
    puzzle.hidden.push_back(fmt::format("VAR {} = VAR {}.", puzzle.answers[hop + 1], puzzle.answers[hop]));
  }
  puzzle.places = random_places(random, puzzle.hidden.size());
  puzzle.question = fmt::format(
      "\nQuestion: find all variables that have the value {0} in the text above. Answer: by the chain of assignments, "
      "the "
      "variables that have the value {0} are:",
      value);
  puzzle.answer_tokens = 40;
  return puzzle;
}

// A list in which 10 words come 30 times each and others 3 times, shuffled. Words beyond the list's get a number.
Puzzle common_words(Random& random, int64_t context) {
  constexpr int64_t kCommon = 10;
  constexpr int64_t kOften = 30;
  constexpr int64_t kRarely = 3;
  Puzzle puzzle;
  puzzle.introduction = "Below is a numbered list of words. Some occur far more often than others; remember those.\n";
  const std::vector<std::string> words = distinct_words(random, kNumWords);
  puzzle.answers.assign(words.begin(), words.begin() + kCommon);
  std::vector<std::string> list;
  for (int64_t i = 0; i < kCommon * kOften; ++i) list.push_back(words[i % kCommon]);
  const int64_t entries =
      std::max<int64_t>(static_cast<int64_t>(list.size()) + 60, context / 6);  // about 6 tokens each
  for (int64_t rare = 0; static_cast<int64_t>(list.size()) < entries; ++rare) {
    const std::string& word = words[kCommon + rare % (kNumWords - kCommon)];
    const int64_t round = rare / (kNumWords - kCommon);
    for (int64_t i = 0; i < kRarely; ++i) list.push_back(round == 0 ? word : word + std::to_string(round));
  }
  for (size_t i = list.size(); i > 1; --i) std::swap(list[i - 1], list[pick(random, static_cast<int64_t>(i))]);
  for (size_t i = 0; i < list.size(); ++i) puzzle.filler.push_back(fmt::format("{}. {} ", i + 1, list[i]));
  puzzle.question =
      "\nQuestion: what are the 10 most common words in the list above? Answer: the 10 most common words are:";
  puzzle.answer_tokens = 60;
  return puzzle;
}

// Words of a made-up language, the r-th most frequent with a frequency of r^-2; the first word is left out of the question's
// answer, as in the paper, where it stands for noise.
Puzzle frequent_words(Random& random, int64_t context) {
  constexpr int kRanks = 50;
  constexpr int kAsked = 3;
  Puzzle puzzle;
  puzzle.introduction = "The following is a coded text. Track how often each coded word occurs; '....' is no word.\n";
  std::vector<std::string> words = {"...."};
  while (static_cast<int>(words.size()) <= kRanks) {
    std::string word;
    for (int i = 0; i < 6; ++i) word += static_cast<char>('a' + pick(random, 26));
    words.push_back(word);
  }
  std::vector<double> up_to;  // cumulative weights
  for (int rank = 1; rank <= kRanks + 1; ++rank) {
    up_to.push_back((up_to.empty() ? 0 : up_to.back()) + 1 / std::pow(rank, 2.0));
  }
  for (int64_t i = 0; i < std::max<int64_t>(64, context / 4); ++i) {  // about 4 tokens each
    const double at = up_to.back() * static_cast<double>(pick(random, 1000000)) / 1000000;
    puzzle.filler.push_back(words[std::ranges::upper_bound(up_to, at) - up_to.begin()] + " ");
  }
  puzzle.answers.assign(words.begin() + 1, words.begin() + 1 + kAsked);
  puzzle.question =
      "\nQuestion: what are the three most frequent words in the coded text above? Answer: the three most frequent "
      "words are:";
  puzzle.answer_tokens = 30;
  return puzzle;
}

}  // namespace

int64_t pick(Random& random, int64_t count) { return static_cast<int64_t>(random() % static_cast<uint64_t>(count)); }

const std::vector<std::string>& noise() {
  static const std::vector<std::string> sentences = {"The grass is green. ", "The sky is blue. ", "The sun is yellow. ",
                                                     "Here we go. ", "There and back again. "};
  return sentences;
}

Puzzle passkey_puzzle(Random& random, double place) {
  const std::string key = number(random, 10000, 99999);
  Puzzle puzzle;
  puzzle.introduction = "There is a pass key hidden in a lot of irrelevant text. Find it and memorize it.\n";
  puzzle.hidden = {fmt::format("The pass key is {0}. Remember it. {0} is the pass key.", key)};
  puzzle.places = {place};
  puzzle.question = "\nWhat is the pass key? The pass key is";
  puzzle.answers = {key};
  puzzle.answer_tokens = 12;
  return puzzle;
}

Puzzle needle_puzzle(Random& random, double place) {
  static const char* const kCities[] = {"Lisbon", "Toronto", "Kyoto", "Prague", "Nairobi", "Bergen", "Lima", "Hanoi"};
  static const char* const kFacts[] = {
      "feed the swans at the old mill",        "eat a sandwich in the botanical garden",
      "climb the tower before sunrise",        "listen to the organ of the small chapel",
      "take the ferry to the fishing village", "read in the library with the glass roof"};
  const std::string city = kCities[pick(random, std::ssize(kCities))];
  const std::string fact = kFacts[pick(random, std::ssize(kFacts))];
  Puzzle puzzle;
  puzzle.introduction = "Read the following text and remember what it says about cities.\n";
  puzzle.hidden = {fmt::format("The best thing to do in {} is to {}.", city, fact)};
  puzzle.places = {place};
  puzzle.question = fmt::format("\nWhat is the best thing to do in {0}? The best thing to do in {0} is to", city);
  puzzle.answers = {fact};
  puzzle.answer_tokens = 16;
  return puzzle;
}

const std::vector<RulerTask>& ruler_tasks() {
  static const std::vector<RulerTask> tasks = {
      {"multikey", "one key asked for among four", multikey},
      {"multivalue", "four values of one key", multivalue},
      {"multiquery", "four keys asked for at once", multiquery},
      {"tracking", "variables assigned to each other, four hops", tracking},
      {"common", "the ten words that come ten times as often as the others", common_words},
      {"frequent", "the three most frequent words of a text with frequencies r^-2", frequent_words},
  };
  return tasks;
}

}  // namespace fasa::cli
