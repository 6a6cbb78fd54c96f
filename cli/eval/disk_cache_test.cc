#include "cli/eval/disk_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <fstream>

#include "fasa/error.h"

namespace fasa::cli {
namespace {

namespace fs = std::filesystem;

class DiskCacheTest : public testing::Test {
 protected:
  void TearDown() override { fs::remove_all(dir); }
  static void store(const DiskCache& cache, const std::string& key, size_t bytes) {
    std::ofstream(cache.reserve(key)) << std::string(bytes, 'x');
    cache.commit(key);
  }
  // Makes the file look unused for `minutes`.
  static void age(const DiskCache& cache, const std::string& key, int minutes) {
    const fs::path path = cache.find(key);
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::minutes(minutes));
  }
  fs::path dir = fs::temp_directory_path() / ("fasa-cache-test-" + std::to_string(getpid()));
};

TEST_F(DiskCacheTest, FindsWhatWasCommittedOnly) {
  const DiskCache cache((dir / "a" / "b").string(), 1000);
  EXPECT_TRUE(cache.find("one").empty());
  std::ofstream(cache.reserve("one")) << "half";
  EXPECT_TRUE(cache.find("one").empty());
  cache.commit("one");
  EXPECT_EQ(fs::file_size(cache.find("one")), 4U);
}

TEST_F(DiskCacheTest, TheLongestUnusedGoesFirst) {
  const DiskCache cache(dir.string(), 250);
  store(cache, "old", 100);
  store(cache, "used", 100);
  age(cache, "old", 20);
  age(cache, "used", 30);
  EXPECT_FALSE(cache.find("used").empty());  // this is a use
  store(cache, "new", 100);
  EXPECT_TRUE(cache.find("old").empty());
  EXPECT_FALSE(cache.find("used").empty());
  EXPECT_FALSE(cache.find("new").empty());
}

TEST_F(DiskCacheTest, WhatIsTooLargeStaysForItsOwnRun) {
  const DiskCache cache(dir.string(), 50);
  store(cache, "large", 100);
  EXPECT_FALSE(cache.find("large").empty());
  store(cache, "next", 10);
  EXPECT_TRUE(cache.find("large").empty());
}

TEST_F(DiskCacheTest, AFolderThatCannotBe) {
  fs::create_directories(dir);
  std::ofstream(dir / "file") << "x";
  EXPECT_THROW(DiskCache((dir / "file").string(), 1), Error);
}

}  // namespace
}  // namespace fasa::cli
