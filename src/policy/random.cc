// random: as many rows as any other policy, drawn anew for every query. What selection is worth shows against it.
#include <bit>

#include "src/policy/decode_step.h"

namespace fasa {
namespace {

// splitmix64's finaliser.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

}  // namespace

DecodeReport decode_random(Context& context, const PolicySettings& settings, const DecodeStep& step) {
  const int64_t num_sets = num_selections(settings, step);
  int64_t stride = 0;
  float* scores = score_scratch(context, num_sets, step.k.num_rows, &stride);
  for (int64_t set = 0; set < num_sets; ++set) {
    // The query's bits tell layers and steps apart.
    const auto bits = std::bit_cast<uint32_t>(step.q.at(set * step.q.num_heads / num_sets)[0]);
    const uint64_t base = mix(static_cast<uint64_t>(settings.seed) * 0x9e3779b97f4a7c15U + bits);
    for (int64_t row = 0; row < step.k.num_rows; ++row) {
      const uint64_t draw = mix(base + static_cast<uint64_t>(row) * 0x9e3779b97f4a7c15U) >> 40;
      scores[set * stride + row] = static_cast<float>(draw) + (step.bias == nullptr ? 0.0F : step.bias[row]);
    }
  }
  return attend_selected(context, settings, step, scores, stride);
}

}  // namespace fasa
