// Where the program finds what it needs: relative to itself when installed, else where it was
// built.
#pragma once

#include <string>

namespace fasa::cli {

std::string executable_dir();
std::string llama_lib_dir();      // llama.cpp's own backends (libggml-cpu*.so)
std::string llama_server_path();  // throws Error(kNotFound)
std::string backend_path();       // libggml-fasa.so; throws Error(kNotFound)

// `given`, else FASA_MODEL, else the demo's model; throws Error(kNotFound).
std::string find_model(const std::string& given);
// model.gguf -> model.fasa.json
std::string profile_path_beside(const std::string& model);
// `given`, else the profile beside the model, else that in the current directory; throws
// Error(kNotFound) with the command that makes one.
std::string find_profile(const std::string& given, const std::string& model);

}  // namespace fasa::cli
