#include "cli/eval/haystack.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/eval/metrics.h"
#include "fasa/error.h"

namespace fasa::cli {

std::vector<std::string> sentences(const std::string& text, const std::string& name) {
  std::vector<std::string> all;
  std::string sentence;
  for (const char c : text) {
    const bool blank = c == ' ' || c == '\n' || c == '\r' || c == '\t';
    if (!blank) {
      sentence += c;
      continue;
    }
    if (sentence.empty() || sentence.back() == ' ') continue;
    const bool ends = sentence.find_last_of(".!?") == sentence.size() - 1;
    sentence += ' ';
    if (!ends) continue;
    all.push_back(std::move(sentence));
    sentence.clear();
  }
  constexpr size_t kFew = 10;
  if (all.size() < kFew) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} has {} sentences, too few to hide something in: give a longer text", name, all.size()));
  }
  return all;
}

std::vector<llama_token> prompt_of(const Model& model, const Puzzle& puzzle, int64_t context,
                                   const std::vector<std::string>& filler, int64_t first) {
  const std::vector<std::string>& parts = puzzle.filler.empty() ? filler : puzzle.filler;
  std::vector<llama_token> prompt = model.tokenize(puzzle.introduction, true, false);
  const std::vector<llama_token> question = model.tokenize(puzzle.question, false, false);
  std::vector<std::vector<llama_token>> hidden;
  auto left = context - static_cast<int64_t>(prompt.size() + question.size());
  for (const std::string& sentence : puzzle.hidden) {
    hidden.push_back(model.tokenize(sentence + " ", false, false));
    left -= static_cast<int64_t>(hidden.back().size());
  }
  std::vector<std::vector<llama_token>> straw;
  const auto count = static_cast<int64_t>(parts.size());
  for (int64_t i = 0; left > 0; ++i) {
    straw.push_back(model.tokenize(parts[static_cast<size_t>((first + i) % count)], false, false));
    left -= static_cast<int64_t>(straw.back().size());
    if (left >= 0) continue;
    straw.pop_back();  // one too many
    break;
  }
  if (straw.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a context of {} tokens has no room for a hidden text and its question: give 512 or more",
                            context));
  }
  const auto append = [&](const std::vector<llama_token>& tokens) {
    prompt.insert(prompt.end(), tokens.begin(), tokens.end());
  };
  size_t next = 0;
  for (size_t i = 0; i <= straw.size(); ++i) {
    for (; next < hidden.size() &&
           (i == straw.size() || puzzle.places[next] * static_cast<double>(straw.size()) <= static_cast<double>(i));
         ++next) {
      append(hidden[next]);
    }
    if (i < straw.size()) append(straw[i]);
  }
  append(question);
  return prompt;
}

Item item_of(const Model& model, const Puzzle& puzzle, int64_t context, const std::vector<std::string>& filler,
             int64_t first) {
  Item item;
  item.turns.push_back({prompt_of(model, puzzle, context, filler, first), puzzle.answer_tokens});
  item.score = [answers = puzzle.answers](const std::string& answer) { return match_all_score(answer, answers); };
  return item;
}

void check_context(const Model& model, int64_t context, int64_t answer_tokens) {
  if (context + answer_tokens <= model.trained_context()) return;
  throw Error(
      ErrorCode::kInvalidArgument,
      fmt::format(
          "a context of {} tokens and an answer of {} exceed the trained context of {} tokens: give a shorter one",
          context, answer_tokens, model.trained_context()));
}

}  // namespace fasa::cli
