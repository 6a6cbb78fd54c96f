// The program `fasa` calibrates the real model: FASA_PROGRAM, FASA_TEST_MODEL and FASA_SOURCE_DIR
// say where.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "fasa/profile.h"

namespace fasa {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int code;
  std::string output;  // stdout and stderr
};

Outcome run(const std::string& arguments) {
  const std::string command = std::string(FASA_PROGRAM) + " " + arguments + " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  Outcome outcome{-1, ""};
  std::array<char, 4096> buffer{};
  while (const size_t n = fread(buffer.data(), 1, buffer.size(), pipe)) {
    outcome.output.append(buffer.data(), n);
  }
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

class Calibrate : public testing::Test {
 protected:
  Calibrate() : dir_(fs::temp_directory_path() / ("fasa-calibrate-test-" + std::to_string(getpid()))) {
    fs::create_directories(dir_);
    // The project's own prose and code: some 5,000 tokens.
    std::ofstream text(dir_ / "text.txt");
    text << contents(FASA_SOURCE_DIR "/README.md");
    for (const char* header : {"profile.h", "policy.h", "context.h", "tensor.h", "index.h"}) {
      text << contents(std::string(FASA_SOURCE_DIR "/include/fasa/") + header);
    }
  }
  ~Calibrate() override { fs::remove_all(dir_); }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  Outcome calibrate(const std::string& output, const std::string& more) const {
    return run("calibrate -m " FASA_TEST_MODEL " --text " + path("text.txt") + " --context 512 -o " + path(output) +
               " " + more);
  }
  fs::path dir_;
};

TEST_F(Calibrate, MakesAProfileThatLoadsIsTrueAndRepeats) {
  ASSERT_TRUE(fs::exists(FASA_TEST_MODEL)) << "run scripts/setup, which fetches the test model";
  const Outcome first = calibrate("a.json", "--windows 2 --queries 8 --threads 2 --json");
  ASSERT_EQ(first.code, 0) << first.output;
  const auto row = nlohmann::json::parse(first.output.substr(first.output.rfind('{')));
  EXPECT_EQ(row.at("layers_measured"), 30);
  EXPECT_EQ(row.at("queries"), 16);

  const Profile profile = load_profile(path("a.json"));
  EXPECT_EQ(profile.architecture, "llama");
  ASSERT_EQ(profile.layers.size(), 30U);
  const RopeSpec want{RopeLayout::kInterleaved, 64, 64, profile.layers[0].rope.freq_base};
  double best_sum = 0;
  double median_sum = 0;
  int heads = 0;
  for (size_t l = 0; l < profile.layers.size(); ++l) {
    const LayerProfile& layer = profile.layers[l];
    EXPECT_EQ(layer.layer, static_cast<int32_t>(l));
    EXPECT_EQ(layer.num_q_heads, 9);
    EXPECT_EQ(layer.num_kv_heads, 3);
    EXPECT_FALSE(layer.sliding_window);
    EXPECT_EQ(layer.rope, want);
    EXPECT_NE(layer.fingerprint, profile.layers[(l + 1) % 30].fingerprint);
    const std::vector<float>& ca = layer.measures.at("ca64");
    for (int head = 0; head < 9; ++head) {
      std::vector<float> fcs(ca.begin() + head * 32, ca.begin() + (head + 1) * 32);
      std::sort(fcs.begin(), fcs.end());
      best_sum += fcs.back();
      median_sum += fcs[16];
      ++heads;
    }
  }
  // Random: 64 of 384..512 rows, so .14 at most on average.
  EXPECT_GT(best_sum / heads, 0.40);
  EXPECT_LT(median_sum / heads, 0.25);

  const Outcome second = calibrate("b.json", "--windows 2 --queries 8 --threads 2");
  ASSERT_EQ(second.code, 0) << second.output;
  EXPECT_TRUE(contents(path("a.json")) == contents(path("b.json"))) << "two runs differ";

  const Outcome table = run("inspect " + path("a.json"));
  EXPECT_EQ(table.code, 0) << table.output;
  EXPECT_NE(table.output.find("overlap"), std::string::npos);
  const Outcome json = run("inspect " + path("a.json") + " --json --n-tip 8 --criterion ca64");
  ASSERT_EQ(json.code, 0) << json.output;
  const auto seen = nlohmann::json::parse(json.output);
  PolicySettings settings;
  settings.fc_count = 8;
  settings.criterion = "ca64";
  EXPECT_EQ(seen["layers"][7]["fcs"], nlohmann::json(dominant_fcs(profile.layers[7], settings)));
}

TEST_F(Calibrate, TellsTheUserWhatIsWrong) {
  const auto expect = [](const Outcome& outcome, const std::string& sentence) {
    EXPECT_NE(outcome.code, 0);
    EXPECT_NE(outcome.output.find(sentence), std::string::npos) << outcome.output;
  };
  expect(calibrate("c.json", "--windows 100"), "the text is too short: it has ");
  expect(run("calibrate -m " FASA_TEST_MODEL " --context 8 --text " + path("text.txt")),
         "--context 8 is outside 512..");
  expect(calibrate("c.json", "--queries 0"), "--queries 0 is outside");
  expect(calibrate("no/dir/c.json", ""), "cannot be written");
  expect(run("calibrate -m /nowhere.gguf --text " + path("text.txt")), "no model file");
  expect(run("calibrate -m " FASA_TEST_MODEL " --text /nowhere.txt"), "no text file /nowhere.txt");
  expect(run("inspect /nowhere.json"), "there is no such profile");
  expect(run("inspect " + path("text.txt")), "not valid JSON");
  EXPECT_FALSE(fs::exists(path("c.json")));
}

}  // namespace
}  // namespace fasa
