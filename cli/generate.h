// Prompts in, tokens out.
#pragma once

#include <llama.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/engine.h"

namespace fasa::cli {

struct Message {
  std::string role;  // system, user, assistant
  std::string content;
};

bool has_chat_template(const Model& model);
// The conversation in the model's own format, up to where the assistant speaks; throws
// Error(kUnsupported) if the model has no template or llama.cpp does not know it.
std::string apply_chat_template(const Model& model, const std::vector<Message>& messages);

struct SamplingOptions {
  float temperature = 0;  // 0: greedy
  float top_p = 0.95f;
  uint32_t seed = 1;
};

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  llama_token sample(LlamaContext& context) { return llama_sampler_sample(chain_.get(), context.get(), -1); }

 private:
  std::unique_ptr<llama_sampler, decltype(&llama_sampler_free)> chain_;
};

// While it lives, Ctrl-C stops the generation; a second one ends the program.
class StopOnInterrupt {
 public:
  StopOnInterrupt();
  ~StopOnInterrupt();
  StopOnInterrupt(const StopOnInterrupt&) = delete;
  StopOnInterrupt& operator=(const StopOnInterrupt&) = delete;
};

struct Generation {
  std::vector<llama_token> tokens;  // without the end of generation
  std::vector<double> token_ms;     // of the decode steps, one fewer than samples
  bool stopped = false;             // by Ctrl-C
};

// Generates up to `limit` tokens after the context's last one, whose logits it holds.
Generation generate(const Model& model, LlamaContext& context, Sampler& sampler, int64_t limit, bool ignore_end,
                    const std::function<void(const std::string&)>& emit);

}  // namespace fasa::cli
