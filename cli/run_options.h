// Options of `fasa run`, and its two ways.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/generate.h"
#include "cli/options.h"

namespace fasa::cli {

struct RunOptions {
  CommonOptions common;
  SamplingOptions sampling;
  std::string prompt;
  std::string file;
  std::string system;
  int64_t limit = 256;
  int64_t context = 0;  // 0: as much as needed
  bool chat = false;
  bool compare = false;
  bool raw = false;
  bool ignore_end = false;
};

// The prompt's tokens; throws Error(kInvalidArgument) if they and the answer cannot fit.
std::vector<llama_token> prompt_tokens(const RunOptions& options, const Model& model);
// Tokens that the context must hold for a prompt of `prompt` tokens.
int64_t context_size(const RunOptions& options, const Model& model, int64_t prompt);

// Full attention and another policy answer from the same prefilled document.
void run_compare(const RunOptions& options);

}  // namespace fasa::cli
