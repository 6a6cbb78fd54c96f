/* Drives append, score, select and attend through the C ABI, compiled as C, against naive loops. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fasa/fasa.h"

enum { kRows = 300, kCapacity = 320, kKvHeads = 2, kQHeads = 6, kDim = 64, kFcs = 8, kBudget = 40, kForced = 5 };

static float keys[kRows * kKvHeads * kDim];
static float values[kRows * kKvHeads * kDim];
static float k_cache[kCapacity * kKvHeads * kDim];
static float v_cache[kCapacity * kKvHeads * kDim];
static float q[kQHeads * kDim];
static float out[kQHeads * kDim];
static float lse[kQHeads];
static float scores[kQHeads * kRows];
static int16_t dims[kKvHeads * kFcs * 2];
static int64_t rows[kRows];
static int32_t kept[kQHeads * kBudget];
static int64_t num_kept[kQHeads];

static uint32_t state = 1;
static float uniform(void) { /* -1..1 */
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / 8388608.0f - 1.0f;
}

#define EXPECT(condition)                                                                         \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      fprintf(stderr, "line %d: %s (last error: %s)\n", __LINE__, #condition, fasa_last_error()); \
      exit(1);                                                                                    \
    }                                                                                             \
  } while (0)

static fasa_cache cache_of(float* data, int64_t num_rows) {
  const fasa_cache c = {data, FASA_F32, num_rows, kKvHeads, kDim, kKvHeads * kDim * 4, kDim * 4};
  return c;
}

static void expect_scores(void) {
  for (int h = 0; h < kQHeads; ++h)
    for (int t = 0; t < kRows; ++t) {
      const int g = h / (kQHeads / kKvHeads);
      double sum = 0;
      for (int i = 0; i < kFcs * 2; ++i) {
        const int d = dims[g * kFcs * 2 + i];
        sum += (double)q[h * kDim + d] * keys[(t * kKvHeads + g) * kDim + d];
      }
      /* 16 dims, |q| <= 1, keys off by half a step of 1/127 */
      EXPECT(fabs(scores[h * kRows + t] - sum) < 16 * 0.5 / 127 + 1e-3);
    }
}

/* Every kept row is forced or scores at least as high as every row left out. */
static void expect_selection(void) {
  for (int h = 0; h < kQHeads; ++h) {
    char is_kept[kRows] = {0};
    EXPECT(num_kept[h] == kBudget);
    for (int i = 0; i < kBudget; ++i) {
      const int32_t row = kept[h * kBudget + i];
      EXPECT(row >= 0 && row < kRows && (i == 0 || row > kept[h * kBudget + i - 1]));
      is_kept[row] = 1;
    }
    for (int t = 0; t < kForced; ++t) EXPECT(is_kept[t]);
    float lowest = INFINITY;
    float highest = -INFINITY;
    for (int t = kForced; t < kRows; ++t) {
      const float s = scores[h * kRows + t];
      if (is_kept[t] && s < lowest) lowest = s;
      if (!is_kept[t] && s > highest) highest = s;
    }
    EXPECT(lowest >= highest);
  }
}

static void expect_attention(void) {
  for (int h = 0; h < kQHeads; ++h) {
    const int g = h / (kQHeads / kKvHeads);
    double sum = 0;
    double expected[kDim] = {0};
    for (int i = 0; i < kBudget; ++i) {
      const int t = kept[h * kBudget + i];
      double a = 0;
      for (int d = 0; d < kDim; ++d) a += (double)q[h * kDim + d] * keys[(t * kKvHeads + g) * kDim + d];
      const double weight = exp(a * 0.125);
      sum += weight;
      for (int d = 0; d < kDim; ++d) expected[d] += weight * values[(t * kKvHeads + g) * kDim + d];
    }
    for (int d = 0; d < kDim; ++d) EXPECT(fabs(out[h * kDim + d] - expected[d] / sum) < 1e-5);
    EXPECT(fabs(lse[h] - log(sum)) < 1e-5);
  }
}

static void expect_errors(fasa_context* context, const fasa_index* index) {
  fasa_context* none = NULL;
  fasa_profile* profile = NULL;
  const fasa_heads heads = {q, kQHeads, kDim, kDim};
  EXPECT(fasa_context_create(0, &none) == FASA_INVALID_ARGUMENT && none == NULL);
  EXPECT(strstr(fasa_last_error(), "threads") != NULL);
  EXPECT(fasa_append(context, NULL, NULL, 1, NULL, NULL) == FASA_INVALID_ARGUMENT);
  EXPECT(fasa_append(context, NULL, rows, -1, NULL, NULL) == FASA_INVALID_ARGUMENT);
  EXPECT(fasa_score(context, &heads, 4, index, kRows, NULL, 0, scores, kRows) == FASA_INVALID_ARGUMENT);
  EXPECT(fasa_score(context, &heads, kKvHeads, index, kRows, NULL, 9, scores, kRows) == FASA_INVALID_ARGUMENT);
  EXPECT(fasa_score(NULL, &heads, kKvHeads, index, kRows, NULL, 0, scores, kRows) == FASA_INVALID_ARGUMENT);
  EXPECT(fasa_select(context, scores, kRows, kQHeads, kRows, 0, NULL, 0, kept, num_kept) == FASA_INVALID_ARGUMENT);
  EXPECT(fasa_attend(context, NULL) == FASA_INVALID_ARGUMENT);
  EXPECT(fasa_profile_load("no/such/profile.json", &profile) != FASA_OK && profile == NULL);
  EXPECT(strstr(fasa_last_error(), "no/such/profile.json") != NULL);
  EXPECT(fasa_index_bytes(NULL) < 0);
}

int main(void) {
  fasa_context* context = NULL;
  EXPECT(strlen(fasa_version()) >= 5);
  EXPECT(strcmp(fasa_last_error(), "") == 0);
  EXPECT(fasa_context_create(2, &context) == FASA_OK);
  for (int i = 0; i < kRows * kKvHeads * kDim; ++i) {
    keys[i] = uniform();
    values[i] = uniform();
  }
  for (int i = 0; i < kQHeads * kDim; ++i) q[i] = uniform();
  for (int i = 0; i < kKvHeads * kFcs * 2; ++i) dims[i] = (int16_t)(i * 5 % kDim);
  for (int i = 0; i < kRows; ++i) rows[i] = i;

  fasa_index index = {NULL, FASA_INDEX_I8, kKvHeads, kFcs, kCapacity, dims};
  EXPECT(fasa_index_bytes(&index) == kKvHeads * (kCapacity / 32) * (kFcs * 64 + 64));
  index.data = aligned_alloc(64, (size_t)fasa_index_bytes(&index));
  EXPECT(index.data != NULL);

  const fasa_cache key_source = cache_of(keys, kRows);
  const fasa_cache value_source = cache_of(values, kRows);
  const fasa_cache k = cache_of(k_cache, kCapacity);
  const fasa_cache v = cache_of(v_cache, kCapacity);
  const fasa_heads heads = {q, kQHeads, kDim, kDim};
  const int32_t forced[kForced] = {0, 1, 2, 3, 4};
  EXPECT(fasa_append(context, &key_source, rows, kRows, &k, &index) == FASA_OK);
  EXPECT(fasa_append(context, &value_source, rows, kRows, &v, NULL) == FASA_OK);
  EXPECT(memcmp(k_cache, keys, sizeof keys) == 0 && memcmp(v_cache, values, sizeof values) == 0);
  EXPECT(fasa_score(context, &heads, kKvHeads, &index, kRows, NULL, FASA_REDUCE_NONE, scores, kRows) == FASA_OK);
  expect_scores();
  EXPECT(fasa_select(context, scores, kRows, kQHeads, kRows, kBudget, forced, kForced, kept, num_kept) == FASA_OK);
  expect_selection();

  fasa_attend_args args;
  memset(&args, 0, sizeof args);
  args.q = heads;
  args.k = k;
  args.v = v;
  args.scale = 0.125f;
  args.rows = kept;
  args.rows_stride = kBudget;
  args.num_kept = num_kept;
  args.num_sets = kQHeads;
  args.out.data = out;
  args.out.num_heads = kQHeads;
  args.out.head_dim = kDim;
  args.out.head_stride = kDim;
  args.lse = lse;
  EXPECT(fasa_attend(context, &args) == FASA_OK);
  expect_attention();
  expect_errors(context, &index);

  free(index.data);
  fasa_context_destroy(context);
  fasa_context_destroy(NULL);
  fasa_profile_destroy(NULL);
  return 0;
}
