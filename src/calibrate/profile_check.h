// What makes a profile valid, for reading and for writing.
#pragma once

#include <cstdint>
#include <string>

#include "fasa/profile.h"

namespace fasa {

inline constexpr int32_t kMaxLayers = 4096;
inline constexpr int32_t kMaxHeads = 1024;
// 126 layers of 128 heads of 64 FCs with 6 measures make about 56 MB.
inline constexpr int64_t kMaxProfileBytes = int64_t{128} << 20;

// Empty, or what is wrong, to follow "... : ".
std::string layer_problem(const LayerProfile& layer);
std::string profile_problem(const Profile& profile);

}  // namespace fasa
