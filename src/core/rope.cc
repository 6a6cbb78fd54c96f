#include "fasa/rope.h"

#include <cmath>
#include <string>

#include "fasa/error.h"

namespace fasa {

void check(const RopeSpec& spec) {
  const auto bad = [&](const char* what) {
    throw Error(ErrorCode::kInvalidArgument, std::string("RoPE: ") + what + " (head_dim " +
                                                 std::to_string(spec.head_dim) + ", rotary_dim " +
                                                 std::to_string(spec.rotary_dim) + ")");
  };
  if (spec.head_dim <= 0 || spec.head_dim > 4096 || spec.head_dim % 2 != 0) bad("head_dim must be even and in 2..4096");
  if (spec.rotary_dim <= 0 || spec.rotary_dim > spec.head_dim || spec.rotary_dim % 2 != 0)
    bad("rotary_dim must be even and in 2..head_dim");
  if (!(spec.freq_base > 0) || !std::isfinite(spec.freq_base)) bad("freq_base must be positive");
}

int32_t num_fcs(const RopeSpec& spec) { return spec.head_dim / 2; }

DimPair fc_dims(const RopeSpec& spec, int32_t fc) {
  const int32_t rotating = spec.rotary_dim / 2;
  if (fc >= rotating || spec.layout == RopeLayout::kInterleaved) return {2 * fc, 2 * fc + 1};
  return {fc, fc + rotating};
}

double fc_frequency(const RopeSpec& spec, int32_t fc) {
  if (fc >= spec.rotary_dim / 2) return 0.0;
  return std::pow(spec.freq_base, -2.0 * fc / spec.rotary_dim);
}

void rope_rotate(const RopeSpec& spec, double position, float* head) {
  for (int32_t fc = 0; fc < spec.rotary_dim / 2; ++fc) {
    const DimPair d = fc_dims(spec, fc);
    const double angle = position * fc_frequency(spec, fc);
    const double x = head[d.first];
    const double y = head[d.second];
    head[d.first] = static_cast<float>(x * std::cos(angle) - y * std::sin(angle));
    head[d.second] = static_cast<float>(x * std::sin(angle) + y * std::cos(angle));
  }
}

}  // namespace fasa
