// fasa run --compare: the same prefilled state, decoded by full attention and by another policy.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/run_options.h"
#include "cli/session.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kShownTokens = 16;  // of each answer where they part

struct Answer {
  Generation generation;
  double first_seconds = 0;  // the last prompt token's step: makes the first token
  ReadBytes read;
  double kv_bytes = 0;
};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string lane_name(const Lane& lane) {
  if (lane.settings.kind == PolicyKind::kFull) return "full";
  return fmt::format("{}, budget {}", lane.policy, lane.settings.budget);
}

Answer decode_lane(const RunOptions& options, Session& session, Lane& lane, const std::vector<llama_token>& prompt) {
  fmt::print("--- {}\n", lane_name(lane));
  Answer answer;
  Sampler sampler(options.sampling);
  // This step may make the index from the copied state: it is no part of what later tokens read.
  session.measure(lane, [&] {
    const auto start = Clock::now();
    answer.generation.stopped = !lane.context->decode(prompt.back());
    answer.first_seconds = seconds_since(start);
    return int64_t{1};
  });
  if (answer.generation.stopped) return answer;
  answer.read = session.measure(lane, [&] {
    answer.generation = generate(session.model(), *lane.context, sampler, options.limit, options.ignore_end,
                                 [](const std::string& piece) {
                                   std::fputs(piece.c_str(), stdout);
                                   std::fflush(stdout);
                                 });
    return static_cast<int64_t>(answer.generation.token_ms.size());
  });
  answer.kv_bytes = lane.context->kv_bytes_of(session.model(), static_cast<double>(lane.context->size()));
  fmt::print("\n\n");
  return answer;
}

void print_row(const std::string& label, const std::string& full, const std::string& other, const std::string& note) {
  fmt::print("{:<26} {:>14} {:>18}   {}\n", label, full, other, note);
}

std::string speed(const Answer& answer) {
  if (answer.generation.token_ms.empty()) return "-";
  return fmt::format("{:.1f}", 1000 / quantile(answer.generation.token_ms, 0.5));
}

void print_table(const Session& session, const std::vector<Lane>& lanes, const std::vector<Answer>& answers,
                 double prefill_seconds) {
  const Answer& full = answers[0];
  const Answer& other = answers[1];
  const auto read = [](const Answer& answer) {
    return answer.generation.token_ms.empty() ? std::string("-") : human_bytes(answer.read.kv + answer.read.index);
  };
  print_row("", lane_name(lanes[0]), lane_name(lanes[1]), "");
  std::string note;
  if (!full.generation.token_ms.empty() && !other.generation.token_ms.empty()) {
    note = fmt::format("{:.2f}x", quantile(full.generation.token_ms, 0.5) / quantile(other.generation.token_ms, 0.5));
  }
  print_row("tokens/s (median)", speed(full), speed(other), note);
  print_row("time to first token", fmt::format("{:.2f} s", prefill_seconds + full.first_seconds),
            fmt::format("{:.2f} s", prefill_seconds + other.first_seconds), "");
  note.clear();
  const double other_read = other.read.kv + other.read.index;
  if (other_read > 0) note = fmt::format("1/{:.1f}", full.read.kv / other_read);
  print_row("KV bytes read a token", read(full), read(other), note);
  print_row("KV cache", human_bytes(full.kv_bytes), human_bytes(other.kv_bytes), "");
  note.clear();
  if (other.kv_bytes > 0 && lanes[1].index_bytes > 0) {
    note = fmt::format("{:.1f}% of the KV cache", 100 * static_cast<double>(lanes[1].index_bytes) / other.kv_bytes);
  }
  print_row("index", "-", human_bytes(static_cast<double>(lanes[1].index_bytes)), note);
  fmt::print("peak memory of the process {}, both contexts, the model ({}) and a copy of the state\n",
             human_bytes(static_cast<double>(peak_rss_bytes())),
             human_bytes(static_cast<double>(llama_model_size(session.model().get()))));
}

void print_divergence(const Model& model, const std::vector<Lane>& lanes, const std::vector<Answer>& answers) {
  const std::vector<llama_token>& a = answers[0].generation.tokens;
  const std::vector<llama_token>& b = answers[1].generation.tokens;
  const size_t shorter = std::min(a.size(), b.size());
  size_t same = 0;
  while (same < shorter && a[same] == b[same]) ++same;
  if (same == a.size() && same == b.size()) {
    fmt::print("the answers are the same, all {} tokens\n", same);
    return;
  }
  fmt::print("the answers part at token {}:\n", same + 1);
  for (size_t i = 0; i < 2; ++i) {
    const auto tokens = std::span(answers[i].generation.tokens);
    const size_t count = std::min(kShownTokens, tokens.size() - same);
    std::string text = model.text(tokens.subspan(same, count));
    std::replace(text.begin(), text.end(), '\n', ' ');
    fmt::print("  {:<18} {}\n", lane_name(lanes[i]), count == 0 ? "(ends)" : "..." + text + "...");
  }
}

}  // namespace

void run_compare(const RunOptions& given) {
  RunOptions options = given;
  const std::string policy = options.common.policies.front();
  if (parse_policy(policy) == PolicyKind::kFull) {
    throw Error(ErrorCode::kInvalidArgument,
                "--compare sets full attention against another policy: give --policy fasa or oracle");
  }
  options.common.policies = {"full", policy};
  std::vector<llama_token> prompt;
  Session session(
      options.common,
      [&](const Model& model) {
        prompt = prompt_tokens(options, model);
        return ContextOptions{context_size(options, model, static_cast<int64_t>(prompt.size())),
                              num_threads(options.common), 1};
      },
      Session::Full::kShared);
  StopOnInterrupt stop;
  const auto start = Clock::now();
  {
    Progress progress("reading the prompt", static_cast<int64_t>(prompt.size()));
    const auto most = std::span(prompt).first(prompt.size() - 1);
    if (!session.reference().prefill(most, [&](int64_t done) { progress.update(done); })) return;
  }
  const double prefill_seconds = seconds_since(start);
  say(fmt::format("{} prompt tokens read once, in {:.1f} s, with {} threads; both answer from there", prompt.size(),
                  prefill_seconds, num_threads(options.common)));
  session.lanes()[1].context->copy_from(session.reference());
  std::vector<Answer> answers;
  for (Lane& lane : session.lanes()) {
    answers.push_back(decode_lane(options, session, lane, prompt));
    if (answers.back().generation.stopped && answers.back().generation.tokens.empty()) return;
    LlamaContext::stop = false;
  }
  print_table(session, session.lanes(), answers, prefill_seconds);
  print_divergence(session.model(), session.lanes(), answers);
}

}  // namespace fasa::cli
