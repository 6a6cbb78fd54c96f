// Settings of the backend: from the environment, or from fasa_ggml_configure.
#pragma once

#include <memory>
#include <string>

#include "fasa/policy.h"
#include "fasa/profile.h"

namespace fasa::ggml {

struct Config {
  PolicySettings settings;
  std::string profile_path;
  std::shared_ptr<const Profile> profile;  // null: everything is left to llama.cpp
  bool verbose = false;
  std::string problem;  // why there is no profile, one sentence

  // The profile's layer, if FASA may run it.
  const LayerProfile* sparse_layer(int layer) const;
};

// The configuration that holds now; the first call reads the environment. Never null, never throws.
std::shared_ptr<const Config> current_config();

// Replaces it ("key=value" pairs, see ggml-fasa.h). Throws Error, and then nothing changes.
void configure(const std::string& pairs);

// Logs `message` as a warning through ggml, unless the same was said before.
void warn_once(const std::string& message);

}  // namespace fasa::ggml
