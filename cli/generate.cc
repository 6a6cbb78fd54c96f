#include "cli/generate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <csignal>

#include "fasa/error.h"

namespace fasa::cli {
namespace {

void on_interrupt(int) {
  if (LlamaContext::stop.exchange(true)) _exit(130);
}

struct sigaction& former_action() {
  static struct sigaction action;  // signals belong to the process
  return action;
}

}  // namespace

bool has_chat_template(const Model& model) { return llama_model_chat_template(model.get(), nullptr) != nullptr; }

std::string apply_chat_template(const Model& model, const std::vector<Message>& messages) {
  const char* chat_template = llama_model_chat_template(model.get(), nullptr);
  if (!chat_template) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("{} has no chat template: give the prompt as it is with --raw", model.path()));
  }
  std::vector<llama_chat_message> chat;
  size_t size = 256;
  for (const Message& message : messages) {
    chat.push_back({message.role.c_str(), message.content.c_str()});
    size += 2 * message.content.size() + 64;
  }
  std::string text(size, '\0');
  int32_t length = llama_chat_apply_template(chat_template, chat.data(), chat.size(), true, text.data(),
                                             static_cast<int32_t>(text.size()));
  if (length > static_cast<int32_t>(text.size())) {
    text.resize(static_cast<size_t>(length));
    length = llama_chat_apply_template(chat_template, chat.data(), chat.size(), true, text.data(), length);
  }
  if (length < 0) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("llama.cpp's library does not know the chat template of {}: give the "
                            "prompt as it is with --raw, or use `fasa serve`",
                            model.path()));
  }
  text.resize(static_cast<size_t>(length));
  return text;
}

Sampler::Sampler(const SamplingOptions& options)
    : chain_(llama_sampler_chain_init(llama_sampler_chain_default_params()), llama_sampler_free) {
  if (options.temperature <= 0) {
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_greedy());
    return;
  }
  llama_sampler_chain_add(chain_.get(), llama_sampler_init_top_p(options.top_p, 1));
  llama_sampler_chain_add(chain_.get(), llama_sampler_init_temp(options.temperature));
  llama_sampler_chain_add(chain_.get(), llama_sampler_init_dist(options.seed));
}

StopOnInterrupt::StopOnInterrupt() {
  LlamaContext::stop = false;
  struct sigaction action {};
  action.sa_handler = on_interrupt;  // no SA_RESTART: a read of the terminal ends too
  sigaction(SIGINT, &action, &former_action());
}

StopOnInterrupt::~StopOnInterrupt() {
  sigaction(SIGINT, &former_action(), nullptr);
  LlamaContext::stop = false;
}

Generation generate(const Model& model, LlamaContext& context, Sampler& sampler, int64_t limit, bool ignore_end,
                    const std::function<void(const std::string&)>& emit) {
  using Clock = std::chrono::steady_clock;
  Generation result;
  for (int64_t i = 0; i < limit; ++i) {
    const auto start = Clock::now();
    const llama_token token = sampler.sample(context);
    if (!ignore_end && llama_vocab_is_eog(model.vocab(), token)) break;
    result.tokens.push_back(token);
    emit(model.piece(token));
    if (i + 1 == limit || context.size() >= context.capacity()) break;
    if (!context.decode(token)) {
      result.stopped = true;
      break;
    }
    result.token_ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  return result;
}

}  // namespace fasa::cli
