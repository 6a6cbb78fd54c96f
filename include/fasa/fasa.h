/* The C ABI of FASA: the operations of one decode step, for callers that are not C++.
 *
 * A call returns FASA_OK or an error code, and never prints, exits or throws. fasa_last_error() then says what was
 * wrong. Memory belongs to the caller; strides are 64-bit and in the unit that each comment names. */
#ifndef FASA_FASA_H_
#define FASA_FASA_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  FASA_OK = 0,
  FASA_INVALID_ARGUMENT = 1, /* a shape, option or value that cannot work */
  FASA_UNSUPPORTED = 2,      /* valid, but nothing here implements it */
  FASA_NOT_FOUND = 3,
  FASA_BAD_FORMAT = 4,
  FASA_MISMATCH = 5,
  FASA_OUT_OF_MEMORY = 6,
  FASA_IO = 7,
  FASA_INTERNAL = 8 /* a bug of ours */
};

enum { FASA_F32 = 0, FASA_F16 = 1, FASA_BF16 = 2, FASA_Q8_0 = 3 };
enum { FASA_INDEX_F16 = 0, FASA_INDEX_I8 = 1, FASA_INDEX_I4 = 2 };
enum { FASA_REDUCE_NONE = 0, FASA_REDUCE_MAX = 1 };

const char* fasa_version(void);
/* The calling thread's last error, one sentence; valid until its next failing call. Empty if there was none. */
const char* fasa_last_error(void);

/* Threads and scratch memory; not for use from two threads at a time. */
typedef struct fasa_context fasa_context;
int fasa_context_create(int num_threads, fasa_context** out);
void fasa_context_destroy(fasa_context* context); /* NULL is fine */

/* Value (row, head, dim) at data + row * row_stride + head * head_stride, dims contiguous; strides in bytes. */
typedef struct fasa_cache {
  void* data;
  int32_t dtype;
  int64_t num_rows;
  int64_t num_heads;
  int64_t head_dim;
  int64_t row_stride;
  int64_t head_stride;
} fasa_cache;

/* Value (head, dim) at data[head * head_stride + dim]; the stride in floats. */
typedef struct fasa_heads {
  float* data;
  int64_t num_heads;
  int64_t head_dim;
  int64_t head_stride;
} fasa_heads;

/* The dominant dims of every key. */
typedef struct fasa_index {
  void* data; /* 64-byte aligned, fasa_index_bytes() */
  int32_t type;
  int64_t num_planes; /* the KV heads, or the query heads */
  int64_t num_fcs;
  int64_t num_rows;    /* capacity */
  const int16_t* dims; /* [num_planes][num_fcs][2] */
} fasa_index;

/* Bytes of an index of this shape (data and dims are not looked at); a negative number on error. */
int64_t fasa_index_bytes(const fasa_index* index);

/* cache[rows[i]] = src[i] and the index rows that follow. src NULL: rebuild the index from the cache.
 * index NULL: none (V, or a dense layer). */
int fasa_append(fasa_context* context, const fasa_cache* src, const int64_t* rows, int64_t num_rows,
                const fasa_cache* cache, const fasa_index* index);

/* scores[h * scores_stride + t] = sum over the dominant dims of q[h] . key t, plus bias[t] (bias may be NULL).
 * FASA_REDUCE_MAX: a row of scores for each KV head, the max over its query heads. */
int fasa_score(fasa_context* context, const fasa_heads* q, int64_t num_kv_heads, const fasa_index* index,
               int64_t num_rows, const float* bias, int32_t reduce, float* scores, int64_t scores_stride);

/* For each set of scores: the forced rows (ascending, at most budget) and the best others, `budget` rows in all or
 * as many as there are; ascending. rows is [num_sets][budget], num_kept [num_sets]. */
int fasa_select(fasa_context* context, const float* scores, int64_t scores_stride, int64_t num_sets, int64_t num_rows,
                int64_t budget, const int32_t* forced, int64_t num_forced, int32_t* rows, int64_t* num_kept);

/* Exact softmax attention of one query token over k's and v's kept rows, or over all of them. */
typedef struct fasa_attend_args {
  fasa_heads q;
  fasa_cache k;
  fasa_cache v;
  float scale;
  float softcap;            /* 0: none */
  const float* sink_logits; /* [num_q_heads] or NULL */
  const int32_t* rows;      /* set s keeps rows[s * rows_stride ..+ num_kept[s]]; NULL: dense */
  int64_t rows_stride;
  const int64_t* num_kept;
  int64_t num_sets;  /* the query heads, or the KV heads */
  int64_t num_rows;  /* dense: how many */
  const float* bias; /* dense: [num_rows] added, or NULL */
  fasa_heads out;
  float* lse; /* [num_q_heads] or NULL */
} fasa_attend_args;
int fasa_attend(fasa_context* context, const fasa_attend_args* args);

/* A calibrated profile. */
typedef struct fasa_profile fasa_profile;
int fasa_profile_load(const char* path, fasa_profile** out);
void fasa_profile_destroy(fasa_profile* profile); /* NULL is fine */
/* The dims of one layer's index: the best num_fcs FCs of each KV head (share_fcs != 0) or query head, by the criterion
 * (NULL: the default one). dims holds `capacity` values; *count is set to num_planes * num_fcs * 2, also when that is
 * more than capacity (FASA_INVALID_ARGUMENT). */
int fasa_profile_dims(const fasa_profile* profile, int32_t layer, int64_t num_fcs, int share_fcs, const char* criterion,
                      int16_t* dims, int64_t capacity, int64_t* count);

#ifdef __cplusplus
}
#endif

#endif /* FASA_FASA_H_ */
