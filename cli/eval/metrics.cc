#include "cli/eval/metrics.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string_view>

namespace fasa::cli {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_punctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; }

std::string lower(std::string text) {
  for (char& c : text) c = lower(c);
  return text;
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : text) {
    if (!is_blank(c)) {
      word += c;
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  if (!word.empty()) words.push_back(std::move(word));
  return words;
}

std::vector<std::string> numbers_of(const std::string& text) {
  std::vector<std::string> numbers;
  for (size_t i = 0; i < text.size();) {
    size_t end = i;
    while (end < text.size() && is_digit(text[end])) ++end;
    if (end > i) numbers.push_back(text.substr(i, end - i));
    i = std::max(end, i + 1);
  }
  return numbers;
}

double share_equal(const std::vector<std::string>& numbers, const std::string& wanted) {
  if (numbers.empty()) return 0;
  return static_cast<double>(std::ranges::count(numbers, wanted)) / static_cast<double>(numbers.size());
}

// table[i][j]: length of the longest common subsequence of the first i of a and the first j of b.
template <class Sequence>
std::vector<std::vector<int>> lcs_table(const Sequence& a, const Sequence& b) {
  std::vector<std::vector<int>> table(a.size() + 1, std::vector<int>(b.size() + 1, 0));
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      table[i][j] = a[i - 1] == b[j - 1] ? table[i - 1][j - 1] + 1 : std::max(table[i - 1][j], table[i][j - 1]);
    }
  }
  return table;
}

using Sentences = std::vector<std::vector<std::string>>;

Sentences sentences_of(const std::string& text) {
  Sentences sentences;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('.', begin), text.size());
    if (end > begin) {
      sentences.push_back(words_of(std::string_view(text).substr(begin, end - begin)));
      // The package joins the words of a sentence again and splits at blanks: an empty one has one empty word.
      if (sentences.back().empty()) sentences.back().emplace_back();
    }
    begin = end + 1;
  }
  return sentences;
}

void add_lcs_words(const std::vector<std::string>& reference, const std::vector<std::string>& other,
                   std::set<std::string>& words) {
  const auto table = lcs_table(reference, other);
  size_t i = reference.size();
  size_t j = other.size();
  while (i > 0 && j > 0) {
    if (reference[i - 1] == other[j - 1]) {
      words.insert(reference[i - 1]);
      --i;
      --j;
    } else if (table[i - 1][j] > table[i][j - 1]) {
      --i;
    } else {
      --j;
    }
  }
}

double num_distinct_words(const Sentences& sentences) {
  std::set<std::string> words;
  for (const auto& sentence : sentences) words.insert(sentence.begin(), sentence.end());
  return static_cast<double>(words.size());
}

std::string first_code_line(const std::string& text) {
  size_t begin = std::min(text.find_first_not_of('\n'), text.size());
  while (begin <= text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (line.find('`') == std::string::npos && line.find('#') == std::string::npos &&
        line.find("//") == std::string::npos) {
      return line;
    }
    begin = end + 1;
  }
  return "";
}

}  // namespace

std::string normalize_answer(const std::string& text) {
  std::string plain;
  for (const char c : text) {
    if (!is_punctuation(c)) plain += lower(c);
  }
  std::string result;
  for (const std::string& word : words_of(plain)) {
    if (word == "a" || word == "an" || word == "the") continue;
    result += (result.empty() ? "" : " ") + word;
  }
  return result;
}

double f1_score(const std::string& prediction, const std::string& truth) {
  const std::vector<std::string> ours = words_of(normalize_answer(prediction));
  const std::vector<std::string> theirs = words_of(normalize_answer(truth));
  std::map<std::string, int> left;
  for (const std::string& word : theirs) ++left[word];
  int same = 0;
  for (const std::string& word : ours) {
    const auto at = left.find(word);
    if (at == left.end() || at->second == 0) continue;
    --at->second;
    ++same;
  }
  if (same == 0) return 0;
  const double precision = same / static_cast<double>(ours.size());
  const double recall = same / static_cast<double>(theirs.size());
  return 2 * precision * recall / (precision + recall);
}

double rouge_l_score(const std::string& prediction, const std::string& truth) {
  const Sentences ours = sentences_of(prediction);
  const Sentences theirs = sentences_of(truth);
  if (ours.empty() || theirs.empty()) return 0;
  std::set<std::string> common;
  for (const auto& reference : theirs) {
    for (const auto& sentence : ours) add_lcs_words(reference, sentence, common);
  }
  const double recall = static_cast<double>(common.size()) / num_distinct_words(theirs);
  const double precision = static_cast<double>(common.size()) / num_distinct_words(ours);
  return 2 * precision * recall / (precision + recall + 1e-8);
}

double classification_score(const std::string& prediction, const std::string& truth,
                            std::span<const std::string> classes) {
  int found = 0;
  bool right = false;
  for (const std::string& name : classes) {
    if (prediction.find(name) == std::string::npos) continue;
    if (name != truth && truth.find(name) != std::string::npos) continue;
    ++found;
    right = right || name == truth;
  }
  return right ? 1.0 / found : 0;
}

double retrieval_score(const std::string& prediction, const std::string& truth) {
  const size_t at = truth.find("Paragraph ");
  const std::vector<std::string> wanted = numbers_of(at == std::string::npos ? truth : truth.substr(at));
  return wanted.empty() ? 0 : share_equal(numbers_of(prediction), wanted.front());
}

double count_score(const std::string& prediction, const std::string& truth) {
  return share_equal(numbers_of(prediction), truth);
}

double code_similarity_score(const std::string& prediction, const std::string& truth) {
  const std::string line = first_code_line(prediction);
  if (line.empty() || truth.empty()) return 0;
  const int common = lcs_table(line, truth)[line.size()][truth.size()];
  return std::round(200.0 * common / static_cast<double>(line.size() + truth.size())) / 100;
}

double match_all_score(const std::string& prediction, std::span<const std::string> wanted) {
  if (wanted.empty()) return 0;
  const std::string text = lower(prediction);
  const auto found = std::ranges::count_if(
      wanted, [&](const std::string& word) { return text.find(lower(word)) != std::string::npos; });
  return static_cast<double>(found) / static_cast<double>(wanted.size());
}

std::string last_number(const std::string& text) {
  size_t end = text.find_last_of("0123456789");
  if (end == std::string::npos) return "";
  ++end;
  size_t begin = end;
  while (begin > 0 && (is_digit(text[begin - 1]) || ((text[begin - 1] == ',' || text[begin - 1] == '.') && begin > 1 &&
                                                     is_digit(text[begin - 2])))) {
    --begin;
  }
  std::string number;
  if (begin > 0 && text[begin - 1] == '-') number += '-';
  for (size_t i = begin; i < end; ++i) {
    if (text[i] != ',') number += text[i];
  }
  if (number.find('.') != std::string::npos) {
    number.erase(number.find_last_not_of('0') + 1);
    if (number.back() == '.') number.pop_back();
  }
  return number;
}

double last_number_score(const std::string& prediction, const std::string& truth) {
  const size_t mark = truth.rfind("####");
  const std::string wanted = last_number(mark == std::string::npos ? truth : truth.substr(mark));
  return !wanted.empty() && wanted == last_number(prediction) ? 1 : 0;
}

}  // namespace fasa::cli
