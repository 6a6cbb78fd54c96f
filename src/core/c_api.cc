// The C ABI: every call turns plain structs into views, and errors into codes with a message per thread.
#include <algorithm>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "fasa/context.h"
#include "fasa/error.h"
#include "fasa/fasa.h"
#include "fasa/profile.h"
#include "src/ops/append/append.h"
#include "src/ops/attend/attend.h"
#include "src/ops/score/score.h"
#include "src/ops/select/select.h"

struct fasa_context {
  fasa::Context context;
};

struct fasa_profile {
  fasa::Profile profile;
};

namespace fasa {
namespace {

thread_local std::string last_error;

int code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return FASA_INVALID_ARGUMENT;
    case ErrorCode::kUnsupported:
      return FASA_UNSUPPORTED;
    case ErrorCode::kNotFound:
      return FASA_NOT_FOUND;
    case ErrorCode::kBadFormat:
      return FASA_BAD_FORMAT;
    case ErrorCode::kMismatch:
      return FASA_MISMATCH;
    case ErrorCode::kOutOfMemory:
      return FASA_OUT_OF_MEMORY;
    case ErrorCode::kIo:
      return FASA_IO;
  }
  return FASA_INTERNAL;
}

int remember(int code, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
  return code;
}

template <class Body>
int guarded(const Body& body) noexcept {
  try {
    body();
    return FASA_OK;
  } catch (const Error& error) {
    return remember(code_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return remember(FASA_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return remember(FASA_INTERNAL, error.what());
  } catch (...) {
    return remember(FASA_INTERNAL, "an unknown error");
  }
}

template <class T>
T& need(T* pointer, const char* what) {
  if (pointer == nullptr) throw Error(ErrorCode::kInvalidArgument, std::string(what) + " is NULL");
  return *pointer;
}

void need_count(int64_t count, const char* what) {
  if (count < 0) throw Error(ErrorCode::kInvalidArgument, std::string(what) + " is negative");
}

CacheView view(const fasa_cache& c) {
  if (c.dtype < FASA_F32 || c.dtype > FASA_Q8_0)
    throw Error(ErrorCode::kInvalidArgument, "dtype " + std::to_string(c.dtype) + " is none of FASA_F32..FASA_Q8_0");
  return {static_cast<std::byte*>(c.data),
          static_cast<DType>(c.dtype),
          c.num_rows,
          c.num_heads,
          c.head_dim,
          c.row_stride,
          c.head_stride};
}

HeadsView view(const fasa_heads& h) { return {h.data, h.num_heads, h.head_dim, h.head_stride}; }

IndexView view(const fasa_index& i) {
  if (i.type < FASA_INDEX_F16 || i.type > FASA_INDEX_I4)
    throw Error(ErrorCode::kInvalidArgument, "index type " + std::to_string(i.type) + " is none of FASA_INDEX_*");
  if (i.num_planes < 1 || i.num_fcs < 1 || i.num_rows < 0)
    throw Error(ErrorCode::kInvalidArgument, "an index needs at least one plane and one FC");
  return {
      static_cast<std::byte*>(i.data), {static_cast<IndexType>(i.type), i.num_planes, i.num_fcs, i.num_rows}, i.dims};
}

}  // namespace
}  // namespace fasa

using fasa::guarded;
using fasa::need;
using fasa::need_count;
using fasa::view;

const char* fasa_version(void) { return FASA_VERSION; }

const char* fasa_last_error(void) { return fasa::last_error.c_str(); }

int fasa_context_create(int num_threads, fasa_context** out) {
  return guarded([&] {
    need(out, "out") = nullptr;
    *out = new fasa_context{fasa::Context(fasa::make_thread_executor(num_threads))};
  });
}

void fasa_context_destroy(fasa_context* context) { delete context; }

int64_t fasa_index_bytes(const fasa_index* index) {
  int64_t bytes = 0;
  const int code = guarded([&] { bytes = view(need(index, "index")).shape.total_bytes(); });
  return code == FASA_OK ? bytes : -1;
}

int fasa_append(fasa_context* context, const fasa_cache* src, const int64_t* rows, int64_t num_rows,
                const fasa_cache* cache, const fasa_index* index) {
  return guarded([&] {
    need_count(num_rows, "num_rows");
    if (num_rows > 0) need(rows, "rows");
    fasa::ops::AppendArgs args;
    if (src != nullptr) args.src = view(*src);
    args.rows = {rows, static_cast<size_t>(num_rows)};
    args.cache = view(need(cache, "cache"));
    if (index != nullptr) args.index = view(*index);
    fasa::ops::append(need(context, "context").context, args);
  });
}

int fasa_score(fasa_context* context, const fasa_heads* q, int64_t num_kv_heads, const fasa_index* index,
               int64_t num_rows, const float* bias, int32_t reduce, float* scores, int64_t scores_stride) {
  return guarded([&] {
    if (reduce != FASA_REDUCE_NONE && reduce != FASA_REDUCE_MAX)
      throw fasa::Error(fasa::ErrorCode::kInvalidArgument, "reduce is neither FASA_REDUCE_NONE nor FASA_REDUCE_MAX");
    fasa::ops::ScoreArgs args;
    args.q = view(need(q, "q"));
    args.num_kv_heads = num_kv_heads;
    args.index = view(need(index, "index"));
    args.num_rows = num_rows;
    args.bias = bias;
    args.reduce = static_cast<fasa::ops::GroupReduce>(reduce);
    args.scores = scores;
    args.scores_stride = scores_stride;
    fasa::ops::score(need(context, "context").context, args);
  });
}

int fasa_select(fasa_context* context, const float* scores, int64_t scores_stride, int64_t num_sets, int64_t num_rows,
                int64_t budget, const int32_t* forced, int64_t num_forced, int32_t* rows, int64_t* num_kept) {
  return guarded([&] {
    need_count(num_forced, "num_forced");
    if (num_forced > 0) need(forced, "forced");
    fasa::ops::SelectArgs args;
    args.scores = scores;
    args.scores_stride = scores_stride;
    args.num_sets = num_sets;
    args.num_rows = num_rows;
    args.budget = budget;
    args.forced = {forced, static_cast<size_t>(num_forced)};
    args.rows = rows;
    args.num_kept = num_kept;
    fasa::ops::select(need(context, "context").context, args);
  });
}

int fasa_attend(fasa_context* context, const fasa_attend_args* a) {
  return guarded([&] {
    need(a, "args");
    fasa::ops::AttendArgs args;
    args.q = view(a->q);
    args.k = view(a->k);
    args.v = view(a->v);
    args.scale = a->scale;
    args.softcap = a->softcap;
    args.sink_logits = a->sink_logits;
    args.rows = a->rows;
    args.rows_stride = a->rows_stride;
    args.num_kept = a->num_kept;
    args.num_sets = a->num_sets;
    args.num_rows = a->num_rows;
    args.bias = a->bias;
    args.out = view(a->out);
    args.lse = a->lse;
    fasa::ops::attend(need(context, "context").context, args);
  });
}

int fasa_profile_load(const char* path, fasa_profile** out) {
  return guarded([&] {
    need(out, "out") = nullptr;
    *out = new fasa_profile{fasa::load_profile(&need(path, "path"))};
  });
}

void fasa_profile_destroy(fasa_profile* profile) { delete profile; }

int fasa_profile_dims(const fasa_profile* profile, int32_t layer, int64_t num_fcs, int share_fcs, const char* criterion,
                      int16_t* dims, int64_t capacity, int64_t* count) {
  return guarded([&] {
    const fasa::LayerProfile* found = need(profile, "profile").profile.find(layer);
    if (found == nullptr)
      throw fasa::Error(fasa::ErrorCode::kNotFound, "the profile has no layer " + std::to_string(layer));
    if (num_fcs < 1 || num_fcs > fasa::num_fcs(found->rope))
      throw fasa::Error(fasa::ErrorCode::kInvalidArgument,
                        "num_fcs must be in 1.." + std::to_string(fasa::num_fcs(found->rope)));
    fasa::PolicySettings settings;
    settings.fc_count = num_fcs;
    settings.share_fcs = share_fcs != 0;
    if (criterion != nullptr) settings.criterion = criterion;
    const std::vector<int16_t> chosen = fasa::dominant_dims(*found, settings);
    need(count, "count") = static_cast<int64_t>(chosen.size());
    if (static_cast<int64_t>(chosen.size()) > capacity)
      throw fasa::Error(fasa::ErrorCode::kInvalidArgument,
                        "dims needs room for " + std::to_string(chosen.size()) + " values");
    std::copy(chosen.begin(), chosen.end(), &need(dims, "dims"));
  });
}
