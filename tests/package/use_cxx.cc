// Exits with 0 if the installed headers and library agree with the mathematics of RoPE.
#include <fasa/context.h>
#include <fasa/error.h>
#include <fasa/index.h>
#include <fasa/policy.h>
#include <fasa/profile.h>
#include <fasa/rope.h>
#include <fasa/tensor.h>

#include <cmath>

int main() {
  const fasa::RopeSpec spec{fasa::RopeLayout::kHalf, 64, 64, 10000.0};
  if (!(fasa::fc_dims(spec, 5) == fasa::DimPair{5, 37})) return 1;
  if (std::abs(fasa::fc_frequency(spec, 32 / 2) - 0.01) > 1e-9) return 2;
  fasa::Context context(fasa::make_thread_executor(2));
  if (context.num_workers() != 2) return 3;
  try {
    fasa::load_profile("no such file");
  } catch (const fasa::Error& error) {
    return error.code() == fasa::ErrorCode::kNotFound ? 0 : 4;
  }
  return 5;
}
