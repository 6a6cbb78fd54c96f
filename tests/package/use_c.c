/* Exits with 0 if four equal keys attend to the mean of their values. */
#include <fasa/fasa.h>
#include <math.h>

int main(void) {
  enum { kRows = 4, kDim = 64 };
  static float k[kRows][kDim], v[kRows][kDim], q[kDim], out[kDim];
  for (int row = 0; row < kRows; ++row) {
    for (int dim = 0; dim < kDim; ++dim) {
      k[row][dim] = 1;
      v[row][dim] = (float)row;
    }
  }
  fasa_context* context = 0;
  if (fasa_context_create(1, &context) != FASA_OK) return 1;
  fasa_attend_args args = {0};
  args.q = (fasa_heads){q, 1, kDim, kDim};
  args.k = (fasa_cache){k, FASA_F32, kRows, 1, kDim, sizeof k[0], 0};
  args.v = (fasa_cache){v, FASA_F32, kRows, 1, kDim, sizeof v[0], 0};
  args.scale = 0.125F;
  args.num_rows = kRows;
  args.out = (fasa_heads){out, 1, kDim, kDim};
  const int failed = fasa_attend(context, &args) != FASA_OK || fabsf(out[3] - 1.5F) > 1e-3F;
  const int refused = fasa_context_create(0, 0) != FASA_OK && fasa_last_error()[0] != 0;
  fasa_context_destroy(context);
  return failed || !refused;
}
