// append: write new K (or V) rows into the cache, and the index rows that follow from them.
//
//   cache[rows[i], h, :] = round(src[i, h, :])
//   index[plane, rows[i], fc, 0..1] = quantise(cache[rows[i], kv_head(plane), dims[plane][fc][0..1]])
//   with a basis: value j of the index row = quantise(basis[plane][j] . cache[rows[i], kv_head(plane), :])
//
// The index is made from the rounded cache, so that a row appended and a row rebuilt are the same bytes.
// int8: scale = max|x| / 127 over the row's dims of a plane (f16-rounded up, so nothing clips), int4: / 7.
#pragma once

#include <span>

#include "fasa/index.h"
#include "fasa/tensor.h"
#include "src/ops/implementation.h"

namespace fasa::ops {

struct AppendArgs {
  CacheView src;                  // [num_new, num_kv_heads, head_dim]; data null: rebuild `index` from `cache`
  std::span<const int64_t> rows;  // [num_new] physical rows of cache, distinct, each in 0..cache.num_rows-1
  CacheView cache;                // [num_rows, num_kv_heads, head_dim]
  IndexView index;                // data null: no index (V, or a dense layer)
};

void check(const AppendArgs& args);     // throws Error(kInvalidArgument)
int64_t bytes(const AppendArgs& args);  // that must move
std::span<const Implementation<AppendArgs>> append_implementations();
void append(Context& context, const AppendArgs& args);  // check, choose, run

}  // namespace fasa::ops
