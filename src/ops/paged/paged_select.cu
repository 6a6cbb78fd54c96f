#include "src/ops/paged/paged_select.cuh"

#include <cmath>

#include "src/ops/paged/paged_attend.cuh"
#include "src/ops/paged/paged_warp_list.cuh"

namespace fasa::ops::paged {
namespace {

constexpr int kFirstRounds = kSelectKeys / kRoundKeys;

__global__ void __launch_bounds__(kThreads, kSelectCtas) prune_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ __align__(kLineBytes) u32 shared[];
  auto& s = *reinterpret_cast<PruneShared<1>*>(shared);
  u32* keys = shared + kPruneSharedBytes1 / 4;
  constexpr int nt = kThreads;
  const int tid = threadIdx.x;
  const int lane = tid & 31;
  const int warp = tid >> 5;
  const int tokens = p.a.num_tokens;
  const float* row = p.a.scores + static_cast<int64_t>(blockIdx.y) * p.a.row_stride;
  // First token of a lane's j-th four of a round.
  const auto token_at = [&](int round, int j, int of) {
    const int k = ((round * (nt >> 5) + warp) * 4 + j) * 8 + (of >> 2);
    return spread_unit(k, blockIdx.x, gridDim.x) * 16 + (of & 3) * 4;
  };
  KeyStore<4> store{keys};
  const int rounds = p.plan.score_iterations;
  // All rounds but the last have tokens for all threads, and perhaps it has, too.
  const int full = tokens / (static_cast<int>(gridDim.x) * nt * kRoundKeys);
  // A round's scores go to shared memory, where the thread that asks for them is the only one to read them: key i of the ring's
  // part at i of a KeyStore.
  const auto ask = [&](int round) {
    if (round < rounds) {
      const u32 to = shared_address(keys + (round % kSelectRing * kRoundKeys * nt + 4 * tid));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int t = token_at(round, j, lane);
        if (round < full || t < tokens) copy_async16(to + j * 16 * nt, row + t);
      }
    }
    copy_async_commit();
  };
  // Scores that are not there are NaN, in rounds that not all threads have tokens for.
  const auto drop_absent = [&](int round, Scores& scores) {
    if (round < full) return;
#pragma unroll
    for (int i = 0; i < kRoundKeys; ++i) {
      if (token_at(round, i / 4, lane) + i % 4 >= tokens) scores.v[i] = NAN;
    }
  };
  const auto score_at = [&](int round, Scores& scores) {
#pragma unroll
    for (int i = 0; i < kRoundKeys; i += 4) {
      u32 four[4];
      store.get(round % kSelectRing * kRoundKeys + i, four);
#pragma unroll
      for (int e = 0; e < 4; ++e) scores.v[i + e] = __uint_as_float(four[e]);
    }
  };
  s.clear();
  grid_wait();
  grid_launch_dependents();
#pragma unroll
  for (int round = 0; round < kSelectRing; ++round) ask(round);
  __syncthreads();
  const u32 quota = static_cast<u32>(p.plan.quota);
  copy_async_wait<kSelectRing - kFirstRounds>();
  for (int round = 0; round < min(rounds, kFirstRounds); ++round) {
    Scores scores;
    score_at(round, scores);
    drop_absent(round, scores);
#pragma unroll
    for (int i = 0; i < kRoundKeys; i += 4) {
      const u32 key[4] = {key_of(scores.v[i]), key_of(scores.v[i + 1]), key_of(scores.v[i + 2]),
                          key_of(scores.v[i + 3])};
      store.put(key);
    }
  }
  // Where a thread has more keys it holds what is left of them.
  const bool hold = rounds <= kFirstRounds;
  uint2* entries = reinterpret_cast<uint2*>(keys + kSelectRing * kRoundKeys * nt) + warp * kSelectRoom;
  WarpList list;
  u32 forgotten = 0;
  if (!hold) {
    list.cut = first_cut<1, true>(s, store, 0, quota, false);
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
      copy_async_wait<kSelectRing - 1>();
      Scores scores;
      score_at(round, scores);
      if (round < kFirstRounds) {
        for (float& v : scores.v) v = value_of(__float_as_uint(v));  // keys by now
      } else {
        drop_absent(round, scores);
      }
      ask(round + kSelectRing);
      list.take(entries, scores, static_cast<u32>(round * kRoundKeys * 32 + lane), quota);
    }
    atomicMax(&s.lost[0], list.cut - 1U);
    constexpr u32 kFew = 8;
    const u32 most = __syncthreads_or(list.n > 32 * kFew ? 1 : 0) != 0 ? kSelectRoom / 32 : kFew;
    forgotten = s.lost[0];
    store = KeyStore<4>{keys};
    for (u32 i = 0; i < most; i += 4) {
      u32 key[4];
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        const u32 at = (i + e) * 32 + static_cast<u32>(lane);
        key[e] = at < list.n ? key_of(__uint_as_float(entries[at].x)) : 0U;
      }
      store.put(key);
    }
  }
  const int64_t where = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const auto token_of = [&](int i) {
    int number = i;
    int of = lane;
    if (!hold) {
      const u32 id = entries[i * 32 + lane].y;
      number = static_cast<int>(id >> 5);
      of = static_cast<int>(id & 31U);
    }
    return token_at(number / kRoundKeys, number / 4 % 4, of) + number % 4;
  };
  prune<1, true>(s, store, quota, p.plan.slots, p.slots + where * p.plan.slots, p.bounds + where, token_of,
                 hold ? 0 : store.n, !hold, forgotten);
}

__global__ void __launch_bounds__(kThreads) pick_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ __align__(kLineBytes) char memory[];
  auto& s = *reinterpret_cast<SelectShared*>(memory);
  uint2* slots = reinterpret_cast<uint2*>(memory + kSelectSharedBytes);
  const int count = p.plan.score_ctas * p.plan.slots;
  const int tid = threadIdx.x;
  constexpr int nt = kThreads;
  int32_t* kept = p.a.kept + static_cast<int64_t>(blockIdx.x) * p.a.budget;
  s.clear();
  grid_wait();
  grid_launch_dependents();
  Lists lists{slots, count, {}};
  lists.copy(p.slots + static_cast<int64_t>(blockIdx.x) * count);
  const uint4 bounds = join_bounds(p.bounds + static_cast<int64_t>(blockIdx.x) * p.plan.score_ctas, p.plan.score_ctas);
  __syncthreads();  // for s.clear()
  copy_async_wait();
  lists.hold();
  const Threshold t = find_threshold(s, lists, p.a.budget, bounds);
  u32 n = t.kept;
  if (t.exact) {
    emit_kept(
        s, lists, t, [](u32) { return true; }, [&](int token, u32 i) { kept[i] = token; });
  } else {
    const float* row = p.a.scores + static_cast<int64_t>(blockIdx.x) * p.a.row_stride;
    __syncthreads();
    exact_select<false>(
        *reinterpret_cast<ExactShared*>(memory), 0, p.a.num_tokens, p.a.budget,
        [&](int token) { return key_of(__ldg(row + token)); },
        [&](int token, u32, u32 position) { kept[position] = token; }, &n);
  }
  for (u32 i = n + tid; i < static_cast<u32>(p.a.budget); i += nt) kept[i] = -1;
}

}  // namespace

SelectKernel select_prune_kernel() { return prune_kernel; }
SelectKernel select_pick_kernel() { return pick_kernel; }

}  // namespace fasa::ops::paged
