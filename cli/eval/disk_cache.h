// Files that evaluations share: prefilled states and reference logits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace fasa::cli {

class DiskCache {
 public:
  // `dir`: empty for FASA_CACHE_DIR, else $XDG_CACHE_HOME/fasa, else ~/.cache/fasa. Files beyond `max_bytes` in
  // all are removed, the longest unused first. Throws Error(kIo) if the folder cannot be made.
  DiskCache(const std::string& dir, int64_t max_bytes);

  const std::filesystem::path& dir() const { return dir_; }
  // The file of `key` if it is there; its use is noted. Empty if not.
  std::filesystem::path find(const std::string& key) const;
  // Where to write; commit() gives it its name, so that no other process sees half a file.
  std::filesystem::path reserve(const std::string& key) const;
  std::filesystem::path commit(const std::string& key) const;

 private:
  std::filesystem::path path_of(const std::string& key) const;
  void shrink(const std::filesystem::path& keep) const;

  std::filesystem::path dir_;
  int64_t max_bytes_;
};

}  // namespace fasa::cli
