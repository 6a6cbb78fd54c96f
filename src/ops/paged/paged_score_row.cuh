// What a row of launch 1 is about: (sequence, query token, KV head [, quad of heads]).
#pragma once

#include "src/ops/paged/paged_device.cuh"

namespace fasa::ops::paged {

// Which heads, plane and set a score row is about.
struct ScoreRow {
  int seq;
  int query;
  int kv_head;
  int plane;
  int head0;          // first query head
  int heads;          // how many
  int set0;           // first set
  bool writes_kv;     // appends K and V of kv_head
  bool writes_index;  // appends the index of plane
};

template <int kSets>
// x: row of the token; token: (sequence, query token) as one number.
__device__ __forceinline__ ScoreRow score_row(const StepParams& p, int x, int token) {
  const PagedShape& s = p.a.shape;
  ScoreRow r;
  const int group = p.group;
  const int quads = (group + 3) / 4;
  r.seq = s.num_query_tokens == 1 ? token : token / s.num_query_tokens;
  r.query = token - r.seq * s.num_query_tokens;
  const bool first = r.query == 0;
  if (s.fcs_per_query_head != 0) {
    r.head0 = r.plane = r.set0 = x;
    r.heads = 1;
    r.kv_head = x / group;
    r.writes_kv = first && x % group == 0;
    r.writes_index = first;
  } else if (kSets == 1) {
    r.kv_head = r.plane = r.set0 = x;
    r.head0 = x * group;
    r.heads = group;
    r.writes_kv = r.writes_index = first;
  } else {
    r.kv_head = r.plane = x / quads;
    const int quad = x - r.kv_head * quads;
    r.head0 = r.set0 = r.kv_head * group + 4 * quad;
    r.heads = min(4, group - 4 * quad);
    r.writes_kv = r.writes_index = first && quad == 0;
  }
  return r;
}

// Which list the keys of this thread's set go to; set: past set0, or 0 where the row has no such head.
__device__ __forceinline__ int64_t list_of(const StepParams& p, const ScoreRow& r, int set, int rank) {
  const PagedShape& s = p.a.shape;
  const int64_t token = static_cast<int64_t>(r.seq) * s.num_query_tokens + r.query;
  return (token * s.num_sets() + r.set0 + set) * p.plan.lists() + rank;
}

// What a sequence's length means for a row: tokens lo..hi-1 are scored, those from first_new on are new.
struct Span {
  bool scores;  // nothing at all where every token is kept
  int lo;
  int hi;
  int first_new;

  __device__ __forceinline__ Span(const StepParams& p, int length, int query) {
    const PagedShape& s = p.a.shape;
    const int seen = length - s.num_query_tokens + query + 1;
    first_new = p.a.k_new.data != nullptr ? max(0, length - s.num_query_tokens) : length;
    scores = seen > s.budget && s.budget > s.sinks + s.recent;
    lo = s.sinks;
    hi = scores ? seen - s.recent : 0;
  }
};

}  // namespace fasa::ops::paged
