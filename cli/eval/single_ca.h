// CA of single frequency chunks, as calibration measured it (FASA, section 2: functional sparsity).
#pragma once

#include <string>

#include "cli/eval/results.h"
#include "fasa/profile.h"

namespace fasa::cli {

// heads; best, median: mean over heads of the best and of the median FC; share_above_half: of a head's FCs, those above half of the
// best; heatmap: [layers][FCs], mean over heads. Throws Error(kInvalidArgument) if the profile has no such measure.
Json single_agreement(const Profile& profile, const std::string& criterion);

}  // namespace fasa::cli
