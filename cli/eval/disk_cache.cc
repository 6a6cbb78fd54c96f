#include "cli/eval/disk_cache.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "fasa/error.h"

namespace fasa::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSuffix = ".fasa-cache";
constexpr const char* kUnfinished = ".part";
constexpr auto kAbandoned = std::chrono::hours(24);  // an unfinished file this old is of a stopped run

fs::path default_dir() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  if (const std::string given = variable("FASA_CACHE_DIR"); !given.empty()) return given;
  if (const std::string cache = variable("XDG_CACHE_HOME"); !cache.empty()) return fs::path(cache) / "fasa";
  const std::string home = variable("HOME");
  return (home.empty() ? fs::temp_directory_path() : fs::path(home) / ".cache") / "fasa";
}

}  // namespace

DiskCache::DiskCache(const std::string& dir, int64_t max_bytes)
    : dir_(dir.empty() ? default_dir() : fs::path(dir)), max_bytes_(max_bytes) {
  std::error_code failed;
  fs::create_directories(dir_, failed);
  if (failed || access(dir_.c_str(), W_OK) != 0) {
    throw Error(ErrorCode::kIo, fmt::format("the folder {} for prefilled states cannot be written to: name another "
                                            "with --cache",
                                            dir_.string()));
  }
}

fs::path DiskCache::path_of(const std::string& key) const { return dir_ / (key + kSuffix); }

fs::path DiskCache::find(const std::string& key) const {
  fs::path path = path_of(key);
  std::error_code failed;
  if (!fs::is_regular_file(path, failed)) return {};
  fs::last_write_time(path, fs::file_time_type::clock::now(), failed);
  return path;
}

fs::path DiskCache::reserve(const std::string& key) const {
  return dir_ / fmt::format("{}.{}{}", key, getpid(), kUnfinished);
}

fs::path DiskCache::commit(const std::string& key) const {
  fs::path path = path_of(key);
  std::error_code failed;
  fs::rename(reserve(key), path, failed);
  if (failed) {
    throw Error(ErrorCode::kIo, fmt::format("{} cannot be written: {}", path.string(), failed.message()));
  }
  shrink(path);
  return path;
}

void DiskCache::shrink(const fs::path& keep) const {
  struct File {
    fs::path path;
    fs::file_time_type used;
    int64_t bytes;
  };
  std::vector<File> files;
  int64_t total = 0;
  std::error_code failed;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir_, failed)) {
    if (entry.path().extension() == kUnfinished) {
      if (entry.last_write_time(failed) + kAbandoned < fs::file_time_type::clock::now())
        fs::remove(entry.path(), failed);
      continue;
    }
    if (entry.path().extension() != kSuffix) continue;
    const auto bytes = static_cast<int64_t>(entry.file_size(failed));
    if (failed) continue;  // another process removed it
    files.push_back({entry.path(), entry.last_write_time(failed), bytes});
    total += bytes;
  }
  std::ranges::sort(files, {}, &File::used);
  for (const File& file : files) {
    if (total <= max_bytes_) break;
    if (file.path == keep) continue;
    fs::remove(file.path, failed);
    total -= file.bytes;
  }
}

}  // namespace fasa::cli
