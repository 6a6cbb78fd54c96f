#include "cli/paths.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "fasa/error.h"

namespace fasa::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDemoModel = "SmolLM2-135M-Instruct.Q4_1.gguf";

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

std::string executable_dir() {
  std::error_code failed;
  const fs::path self = fs::read_symlink("/proc/self/exe", failed);
  return failed ? "." : self.parent_path().string();
}

std::string llama_lib_dir() {
  const fs::path here = executable_dir();
  for (const fs::path& dir : {here / ".." / FASA_INSTALL_LIBDIR, here / "../lib", here}) {
    if (is_file(dir / "libggml-cpu.so")) return fs::weakly_canonical(dir).string();
  }
  return FASA_LLAMA_LIB_DIR;
}

std::string llama_server_path() {
  for (const fs::path& dir : {fs::path(executable_dir()), fs::path(FASA_LLAMA_BIN_DIR)}) {
    if (is_file(dir / "llama-server")) return (dir / "llama-server").string();
  }
  throw Error(ErrorCode::kNotFound, fmt::format("llama-server is neither beside this program nor in {}: build it with "
                                                "scripts/setup, or put it there",
                                                FASA_LLAMA_BIN_DIR));
}

std::string backend_path() {
  const std::string given = environment("FASA_GGML_BACKEND");
  if (!given.empty()) {
    if (is_file(given)) return given;
    throw Error(ErrorCode::kNotFound,
                fmt::format("FASA_GGML_BACKEND names {}, which is no file: correct it, or unset it "
                            "to use the library beside this program",
                            given));
  }
  const fs::path here = executable_dir();
  for (const fs::path& dir : {here / "../lib", here / ".." / FASA_INSTALL_LIBDIR, here}) {
    if (is_file(dir / "libggml-fasa.so")) {
      return fs::weakly_canonical(dir / "libggml-fasa.so").string();
    }
  }
  throw Error(ErrorCode::kNotFound,
              fmt::format("libggml-fasa.so is not in {}: build it, or name it in FASA_GGML_BACKEND",
                          fs::weakly_canonical(here / "../lib").string()));
}

std::string find_model(const std::string& given) {
  if (!given.empty()) {
    if (is_file(given)) return given;
    throw Error(ErrorCode::kNotFound, fmt::format("there is no model file {}: give a GGUF file with -m", given));
  }
  const std::string from_environment = environment("FASA_MODEL");
  if (!from_environment.empty()) {
    if (is_file(from_environment)) return from_environment;
    throw Error(ErrorCode::kNotFound, fmt::format("FASA_MODEL names {}, which is no file: correct it, or give a GGUF "
                                                  "file with -m",
                                                  from_environment));
  }
  const fs::path here = executable_dir();
  for (const char* dir : {"../../deps/models", "../share/fasa/models"}) {
    if (is_file(here / dir / kDemoModel)) return (here / dir / kDemoModel).lexically_normal();
  }
  throw Error(ErrorCode::kNotFound,
              "no model given and the demo's is not here: give a GGUF file with -m, or run "
              "scripts/setup, which fetches one");
}

std::string profile_path_beside(const std::string& model) {
  return fs::path(model).replace_extension(".fasa.json").string();
}

std::string find_profile(const std::string& given, const std::string& model) {
  if (!given.empty()) {
    if (is_file(given)) return given;
    throw Error(ErrorCode::kNotFound, fmt::format("there is no profile {}: make it with `fasa calibrate -m {} --text "
                                                  "SOME-LONG-TEXT.txt -o {}`",
                                                  given, model, given));
  }
  const std::string beside = profile_path_beside(model);
  const std::string local = fs::path(beside).filename().string();
  for (const std::string& path : {beside, local}) {
    if (is_file(path)) return path;
  }
  throw Error(ErrorCode::kNotFound,
              fmt::format("this model has no profile yet ({} and ./{} do not exist): make it with "
                          "`fasa calibrate -m {} --text SOME-LONG-TEXT.txt`, or name one with "
                          "--profile",
                          beside, local, model));
}

}  // namespace fasa::cli
