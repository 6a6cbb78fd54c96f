// A progress bar with the time left, on stderr; a line now and then when that is no terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace fasa::cli {

class Progress {
 public:
  Progress(std::string label, int64_t total);
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done);
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  int64_t total_;
  bool terminal_;
  bool shown_ = false;
  Clock::time_point start_;
  Clock::time_point last_;
};

// A message for people, on stderr.
void say(const std::string& line);
std::string human_bytes(double bytes);

}  // namespace fasa::cli
