#include "cli/eval/results.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace fasa::cli {
namespace {

TEST(Results, HashIsFnv) {
  EXPECT_EQ(hash_hex(""), "cbf29ce484222325");  // the offset basis of FNV-1a 64
  EXPECT_EQ(hash_hex("a"), "af63dc4c8601ec8c");
}

TEST(Results, HostileLinesAreLeftOut) {
  int64_t skipped = -1;
  const auto rows = parse_results(
      "{\"key\":\"one\",\"kl_mean\":1}\n"
      "\n"
      "{\"key\":\"one\",\"kl_mean\":2}\r\n"
      "{\"key\":7}\n"
      "[1,2]\n"
      "{\"policy\":\"full\"}\n"
      "\xff\xfe{\n"
      "{\"key\":\"cut off\",\"kl_me",
      &skipped);
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows.at("one").at("kl_mean"), 2);
  EXPECT_EQ(skipped, 5);
}

TEST(Results, ARowIsFoundUnderItsSettingsAlone) {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("fasa-results-test-" + std::to_string(getpid()) + ".jsonl");
  const Json settings = {{"policy", "fasa"}, {"budget", 256}};
  Json other = settings;
  other["budget"] = 512;
  std::filesystem::remove(path);
  {
    ResultStore store({.json = false, .out = path.string()});
    EXPECT_EQ(store.find(settings), nullptr);
    store.add(settings, {{"kl_mean", 0.25}});
    ASSERT_NE(store.find(settings), nullptr);
  }
  std::ofstream(path, std::ios::app) << "{\"key\":\"cut";  // a stopped run
  {
    ResultStore store({.json = false, .out = path.string()});
    ASSERT_NE(store.find(settings), nullptr);
    EXPECT_EQ(store.find(settings)->at("kl_mean"), 0.25);
    EXPECT_EQ(store.find(other), nullptr);
    store.add(other, {{"kl_mean", 0.5}});
  }
  const ResultStore store({.json = false, .out = path.string()});
  EXPECT_NE(store.find(settings), nullptr);
  EXPECT_NE(store.find(other), nullptr);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace fasa::cli
