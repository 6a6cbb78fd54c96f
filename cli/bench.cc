// fasa bench: decode speed against context depth, policies interleaved in one process.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/engine.h"
#include "cli/numbers.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/rows.h"
#include "cli/session.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr int64_t kPrefillSample = 512;  // tokens that prefill_tps is measured with
constexpr int64_t kWarmUp = 4;

struct BenchOptions {
  CommonOptions common;
  RowOptions rows;
  std::vector<int64_t> depths = {0, 4096, 8000};
  int64_t rounds = 6;
  int64_t tokens = 32;
};

// What one lane measured at one depth.
struct Sample {
  std::vector<double> token_ms;
  ReadBytes read;
  double prefill_tps = 0;
};

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// Random tokens that stand for text: no control tokens. The same for the same model.
std::vector<llama_token> random_tokens(const Model& model, int64_t count) {
  std::vector<llama_token> tokens;
  uint64_t state = 1;
  while (static_cast<int64_t>(tokens.size()) < count) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const auto token = static_cast<llama_token>((state >> 33) % static_cast<uint64_t>(model.vocab_size()));
    if (!llama_vocab_is_control(model.vocab(), token)) tokens.push_back(token);
  }
  return tokens;
}

class Bench {
 public:
  explicit Bench(const BenchOptions& options)
      : options_(options),
        session_(
            options.common,
            [&](const Model&) {
              const int64_t deepest = *std::max_element(options.depths.begin(), options.depths.end());
              return ContextOptions{deepest + std::max(kPrefillSample, std::max(options.tokens, kWarmUp)),
                                    num_threads(options.common), 1};
            },
            Session::Full::kShared),
        tokens_(random_tokens(session_.model(), session_.reference().capacity())) {}

  void run() {
    const int32_t trained = session_.model().trained_context();
    std::vector<int64_t> depths = options_.depths;
    std::sort(depths.begin(), depths.end());
    say(fmt::format("{}, {} threads, {} rounds of {} tokens for each policy in turn", session_.model().path(),
                    num_threads(options_.common), options_.rounds, options_.tokens));
    for (const int64_t depth : depths) {
      if (depth > trained) {
        say(
            fmt::format("depth {} is beyond the trained context of {}: the speed is right, the "
                        "text would not be",
                        depth, trained));
      }
      fill(depth);
      measure(depth);
    }
  }

 private:
  void fill(int64_t depth) {
    LlamaContext& reference = session_.reference();
    const int64_t held = reference.size();
    Progress progress(fmt::format("prefill to depth {}", depth), depth - held);
    const auto tokens = std::span(tokens_).subspan(static_cast<size_t>(held), static_cast<size_t>(depth - held));
    reference.prefill(tokens, [&](int64_t done) { progress.update(done); });
    for (const Lane& lane : session_.lanes()) {
      if (lane.context != &reference) lane.context->copy_from(reference);
    }
  }

  double prefill_speed(Lane& lane, int64_t depth) {
    const auto tokens = std::span(tokens_).subspan(static_cast<size_t>(depth), static_cast<size_t>(kPrefillSample));
    const auto start = std::chrono::steady_clock::now();
    lane.context->prefill(tokens);
    const double ms = milliseconds_since(start);
    lane.context->truncate(depth);
    return 1000.0 * static_cast<double>(kPrefillSample) / ms;
  }

  int64_t decode(Lane& lane, int64_t depth, int64_t count, std::vector<double>* token_ms) {
    for (int64_t i = 0; i < count; ++i) {
      const auto start = std::chrono::steady_clock::now();
      lane.context->decode(tokens_[static_cast<size_t>(depth + i)]);
      if (token_ms) token_ms->push_back(milliseconds_since(start));
    }
    lane.context->truncate(depth);
    return count;
  }

  void measure(int64_t depth) {
    std::vector<Lane>& lanes = session_.lanes();
    std::vector<Sample> samples(lanes.size());
    for (size_t i = 0; i < lanes.size(); ++i) {
      session_.measure(lanes[i], [&] { return decode(lanes[i], depth, kWarmUp, nullptr); });
    }
    for (int64_t round = 0; round < options_.rounds; ++round) {
      for (size_t turn = 0; turn < lanes.size(); ++turn) {
        // Every other round backwards, so that drift of the machine falls on all alike.
        const size_t i = round % 2 == 0 ? turn : lanes.size() - 1 - turn;
        samples[i].read =
            session_.measure(lanes[i], [&] { return decode(lanes[i], depth, options_.tokens, &samples[i].token_ms); });
      }
    }
    for (size_t i = 0; i < lanes.size(); ++i) {
      session_.measure(lanes[i], [&] {
        samples[i].prefill_tps = prefill_speed(lanes[i], depth);
        return kPrefillSample;
      });
    }
    report(depth, samples);
  }

  void report(int64_t depth, const std::vector<Sample>& samples) {
    double full_ms = 0;
    for (size_t i = 0; i < samples.size(); ++i) {
      if (session_.lanes()[i].settings.kind == PolicyKind::kFull) {
        full_ms = quantile(samples[i].token_ms, 0.5);
      }
    }
    for (size_t i = 0; i < samples.size(); ++i) {
      const Lane& lane = session_.lanes()[i];
      const double ms = quantile(samples[i].token_ms, 0.5);
      const double p10 = 1000 / quantile(samples[i].token_ms, 0.9);
      const double p90 = 1000 / quantile(samples[i].token_ms, 0.1);
      const double read = samples[i].read.kv + samples[i].read.index;
      const double prefill = samples[i].prefill_tps;
      nlohmann::ordered_json row = {{"policy", lane.policy},
                                    {"depth", depth},
                                    {"threads", num_threads(options_.common)},
                                    {"decode_tps", 1000 / ms},
                                    {"decode_tps_p10", p10},
                                    {"decode_tps_p90", p90},
                                    {"prefill_tps", prefill},
                                    {"kv_bytes_read_per_token", static_cast<int64_t>(read)},
                                    {"index_bytes", lane.index_bytes},
                                    {"peak_rss_bytes", peak_rss_bytes()},
                                    {"ms_per_token", ms},
                                    {"model", session_.model().path()}};
      if (lane.settings.kind != PolicyKind::kFull) {
        row["budget"] = lane.settings.budget;
        row["n_tip"] = options_.common.n_tip;
      }
      if (full_ms > 0) row["speedup"] = full_ms / ms;
      emit_row(options_.rows, row);
      if (options_.rows.json) continue;
      const std::string name = lane.settings.kind == PolicyKind::kFull
                                   ? lane.policy
                                   : fmt::format("{} {}", lane.policy, lane.settings.budget);
      if (!header_) {
        fmt::print("{:>7}  {:<12} {:>9} {:>17} {:>9} {:>8} {:>13} {:>11} {:>10}\n", "depth", "policy", "tokens/s",
                   "[p10, p90]", "ms/token", "speedup", "KV read/token", "index", "prefill/s");
        header_ = true;
      }
      fmt::print("{:>7}  {:<12} {:>9.1f} {:>17} {:>9.2f} {:>8} {:>13} {:>11} {:>10.0f}\n", depth, name, 1000 / ms,
                 fmt::format("[{:.1f}, {:.1f}]", p10, p90), ms,
                 full_ms > 0 ? fmt::format("{:.2f}x", full_ms / ms) : "-", human_bytes(read),
                 lane.index_bytes > 0 ? human_bytes(static_cast<double>(lane.index_bytes)) : "-", prefill);
      std::fflush(stdout);
    }
  }

  const BenchOptions& options_;
  Session session_;
  std::vector<llama_token> tokens_;
  bool header_ = false;
};

}  // namespace

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command =
      app.add_subcommand("bench", "Tokens per second against context depth, llama.cpp's attention and FASA in one run");
  add_common_options(*command, options->common, Arity::kList, Arity::kList, "full,fasa");
  command->add_option("-d,--depth", options->depths, "Tokens in the context before decoding")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->default_str("0,4096,8000");
  command->add_option("--rounds", options->rounds, "Turns that each policy gets at each depth")
      ->check(CLI::Range(1, 1000))
      ->default_str("6");
  command->add_option("--tokens", options->tokens, "Tokens that a policy decodes in a turn")
      ->check(CLI::Range(1, 4096))
      ->default_str("32");
  add_row_options(*command, options->rows);
  command->footer(
      "The context is filled once with random tokens by plain llama.cpp and copied to each "
      "policy.\n"
      "Then the policies take turns; times are per token, the figure is the median. `full` is\n"
      "llama.cpp's own flash attention in a context that FASA's library is not loaded into.\n"
      "prefill_tps is the speed of 512 more tokens at that depth; peak_rss_bytes is the whole\n"
      "process's, all policies and the copy of the state included.\n\n"
      "Examples:\n"
      "  fasa bench                                         the demo's model at 0, 4096 and 8000\n"
      "  fasa bench -m model.gguf --depth 16000 --budget 256,1024\n"
      "  fasa bench --depth 0,4096,8000 --threads 2 --policy full,fasa --budget 256 --json\n");
  command->callback([options] {
    check_policies(options->common);
    Bench(*options).run();
  });
}

}  // namespace fasa::cli
