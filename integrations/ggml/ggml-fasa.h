/* libggml-fasa: FASA inside llama.cpp, as a loadable ggml backend.
 *
 * An unmodified llama.cpp tool takes it from the environment:
 *   GGML_BACKEND_PATH=libggml-fasa.so FASA_PROFILE=model.fasa.json llama-completion -m model.gguf ...
 * A program that loads it with ggml_backend_load() may configure it through ggml_backend_reg_get_proc_address()
 * with the names and types below. Contexts take the configuration that holds when they are created.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* "fasa_ggml_configure": settings as "key=value" pairs separated by spaces or commas, the same keys as the environment
 * variables in lower case without FASA_: profile=PATH policy=fasa|full|oracle|... budget=256 sinks=4 recent=32
 * n_tip=50%|8 criterion=energy share_fcs=1 share_tokens=0 dense_layers=2 index=auto|int4|int8|f16 page=16 window=32
 * basis=post|pre seed=1 dense_list=5+7 weights=slope n_tip_by_layer=0 budget_slope=0.3 verbose=0
 * Keys not named keep their defaults (not their former values). Returns 0, or non-zero and *message (valid until the
 * thread's next call) says what is wrong; then the configuration stays as it was. */
typedef int (*fasa_ggml_configure_t)(const char* settings, const char** message);

struct fasa_ggml_stats {
  int64_t sparse_calls;  /* query tokens x layers that were decoded sparsely */
  int64_t dense_calls;   /* the same, by our dense attention */
  int64_t kv_bytes_read; /* bytes of K and V that those read */
  int64_t index_bytes_read;
  int64_t index_bytes; /* memory that all indices hold now, their bookkeeping included */
  int64_t
      rows_rebuilt; /* index rows made from K later than written (state load, shift, copy, rows within the budget) */
};
/* "fasa_ggml_stats": sums over all contexts of the process since the last reset (index_bytes: now). */
typedef void (*fasa_ggml_stats_t)(struct fasa_ggml_stats* out, int reset);

/* "fasa_ggml_check_index": makes every index row again from K and returns how many differ: 0, unless there is a bug. */
typedef int64_t (*fasa_ggml_check_index_t)(void);

/* How the rows that a query attended to compare with its exact scores, summed over the queries since probing began. */
struct fasa_ggml_agreement {
  int32_t layer;
  int32_t head; /* query head */
  int64_t queries;
  double agreement; /* |kept rows, best rows by q.k| / number of kept rows */
  double mass;      /* attention weight on the kept rows */
};
/* "fasa_ggml_probe": from now on (on) sparse steps are compared so, which costs the time of exact scores; sums start at 0. */
typedef void (*fasa_ggml_probe_t)(int on);
/* "fasa_ggml_agreement": writes up to `capacity` entries, one a layer and head, and returns how many there are. */
typedef int64_t (*fasa_ggml_agreement_t)(struct fasa_ggml_agreement* out, int64_t capacity);

#ifdef __cplusplus
}
#endif
