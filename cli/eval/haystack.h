// Puzzles as prompts of a given number of tokens.
#pragma once

#include <string>
#include <vector>

#include "cli/engine.h"
#include "cli/eval/answers.h"
#include "cli/eval/prompts.h"

namespace fasa::cli {

// The sentences of a text, each with the blank after it: what needles are hidden in. Throws Error(kInvalidArgument) if it has fewer
// than 10.
std::vector<std::string> sentences(const std::string& text, const std::string& name);

// `context` tokens, or a little fewer: introduction, filler with the hidden sentences at their places, question. The filler is the
// puzzle's own, else `filler` from sentence `first` on, again from the start where it ends. Throws Error(kInvalidArgument) if the
// context has no room for what must stand there.
std::vector<llama_token> prompt_of(const Model& model, const Puzzle& puzzle, int64_t context,
                                   const std::vector<std::string>& filler, int64_t first = 0);

// prompt_of() as an item that asks once and is scored by the share of the puzzle's answers that it finds.
Item item_of(const Model& model, const Puzzle& puzzle, int64_t context, const std::vector<std::string>& filler,
             int64_t first);

// Throws Error(kInvalidArgument) unless `context` tokens and an answer fit into the trained context.
void check_context(const Model& model, int64_t context, int64_t answer_tokens);

}  // namespace fasa::cli
