// select by a full sort. See select.h for the rule.
#include <algorithm>
#include <cmath>
#include <vector>

#include "src/ops/select/select_impl.h"

namespace fasa::ops {

std::string select_ref_supports(const SelectArgs& /*args*/) { return {}; }

void select_ref(Context& /*context*/, const SelectArgs& args) {
  for (int64_t set = 0; set < args.num_sets; ++set) {
    const float* scores = args.scores + set * args.scores_stride;
    std::vector<int32_t> kept(args.forced.begin(), args.forced.end());
    std::vector<int32_t> others;
    for (int32_t row = 0; row < args.num_rows; ++row) {
      const bool visible = !std::isnan(scores[row]) && scores[row] != -INFINITY;
      if (visible && !std::binary_search(args.forced.begin(), args.forced.end(), row)) others.push_back(row);
    }
    std::stable_sort(others.begin(), others.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    const size_t room = static_cast<size_t>(args.budget) - kept.size();
    others.resize(std::min(others.size(), room));
    kept.insert(kept.end(), others.begin(), others.end());
    std::sort(kept.begin(), kept.end());
    std::copy(kept.begin(), kept.end(), args.rows + set * args.budget);
    args.num_kept[set] = static_cast<int64_t>(kept.size());
  }
}

}  // namespace fasa::ops
