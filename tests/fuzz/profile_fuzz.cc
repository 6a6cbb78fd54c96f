// libFuzzer target of the profile's parser; see CMakeLists.txt beside it.
#include <cstdint>
#include <cstdlib>

#include "fasa/error.h"
#include "fasa/profile.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const fasa::Profile profile = fasa::parse_profile({reinterpret_cast<const char*>(data), size}, "fuzz");
    const std::string text = fasa::profile_to_json(profile);
    if (fasa::profile_to_json(fasa::parse_profile(text, "fuzz")) != text) std::abort();
  } catch (const fasa::Error& e) {
    if (e.code() != fasa::ErrorCode::kBadFormat) std::abort();
  }
  return 0;
}
