// What a row of attention is about: (sequence, query token, up to 8 query heads that keep the same tokens).
#pragma once

#include "src/ops/paged/paged_device.cuh"

namespace fasa::ops::paged {

struct AttendRow {
  int seq;
  int query;
  int kv_head;
  int head0;
  int heads;
  int64_t set;   // (seq, query, set) as one number
  bool reports;  // writes the kept tokens
};

__device__ __forceinline__ AttendRow attend_row(const StepParams& p, int row) {
  const PagedShape& s = p.a.shape;
  AttendRow r;
  const int group = p.group;
  const bool own = s.tokens_per_query_head != 0;
  const int parts = (group + 7) / 8;  // 1 or 2
  const int rows = own ? s.num_q_heads : s.num_kv_heads * parts;
  const int token = divided(row, p.attend_factor);
  const int x = row - token * rows;
  r.seq = s.num_query_tokens == 1 ? token : token / s.num_query_tokens;
  r.query = token - r.seq * s.num_query_tokens;
  if (own) {
    r.head0 = x;
    r.heads = 1;
    r.kv_head = divided(x, p.group_factor);
    r.set = static_cast<int64_t>(token) * s.num_q_heads + x;
    r.reports = true;
  } else {
    r.kv_head = parts == 1 ? x : x / 2;
    const int part = x - r.kv_head * parts;
    r.head0 = r.kv_head * group + 8 * part;
    r.heads = min(8, group - 8 * part);
    r.set = static_cast<int64_t>(token) * s.num_kv_heads + r.kv_head;
    r.reports = part == 0;
  }
  return r;
}

}  // namespace fasa::ops::paged
