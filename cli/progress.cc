#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace fasa::cli {
namespace {

constexpr int kBarWidth = 30;

std::string human_seconds(double seconds) {
  const int64_t whole = std::lround(seconds);
  if (whole < 60) return fmt::format("{} s", whole);
  return fmt::format("{}:{:02} min", whole / 60, whole % 60);
}

}  // namespace

Progress::Progress(std::string label, int64_t total)
    : label_(std::move(label)),
      total_(std::max<int64_t>(1, total)),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      last_(start_) {}

void Progress::update(int64_t done) {
  const auto now = Clock::now();
  const std::chrono::duration<double> pause = now - last_;
  if (pause.count() < (terminal_ ? 0.1 : 10.0)) return;
  last_ = now;
  shown_ = true;
  const std::chrono::duration<double> spent = now - start_;
  const double share = static_cast<double>(done) / static_cast<double>(total_);
  const double left = share > 0 ? spent.count() * (1 - share) / share : 0;
  if (terminal_) {
    const int filled = std::clamp(static_cast<int>(share * kBarWidth), 0, kBarWidth);
    fmt::print(stderr, "\r\033[K{} [{:#<{}}{:.<{}}] {:3.0f}%, {} left", label_, "", filled, "", kBarWidth - filled,
               100 * share, human_seconds(left));
  } else {
    fmt::print(stderr, "{}: {:.0f}%, {} left\n", label_, 100 * share, human_seconds(left));
  }
  std::fflush(stderr);
}

void Progress::finish() {
  if (shown_ && terminal_) fmt::print(stderr, "\r\033[K");
  shown_ = false;
}

void say(const std::string& line) {
  fmt::print(stderr, "{}\n", line);
  std::fflush(stderr);
}

std::string human_bytes(double bytes) {
  if (bytes < 1024) return fmt::format("{:.0f} B", bytes);
  if (bytes < 1024.0 * 1024) return fmt::format("{:.1f} KiB", bytes / 1024);
  if (bytes < 1024.0 * 1024 * 1024) return fmt::format("{:.1f} MiB", bytes / (1024.0 * 1024));
  return fmt::format("{:.2f} GiB", bytes / (1024.0 * 1024 * 1024));
}

}  // namespace fasa::cli
