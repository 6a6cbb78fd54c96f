// Plans of a step: which way it takes, by how many CTAs, with how much shared memory.
#include <algorithm>
#include <cmath>
#include <string>

#include "fasa/error.h"
#include "src/ops/paged/paged.h"
#include "src/ops/paged/paged_layout.h"

namespace fasa::ops {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
int32_t floor_power2(int64_t x) {
  int32_t p = 1;
  while (2 * static_cast<int64_t>(p) <= x) p *= 2;
  return p;
}

int64_t attend_rows(const PagedShape& s) {
  const int64_t tokens = static_cast<int64_t>(s.num_seqs) * s.num_query_tokens;
  if (s.tokens_per_query_head != 0) return tokens * s.num_q_heads;
  return tokens * s.num_kv_heads * ceil_div(s.group(), 8);
}

// Whether there are kernels of one launch with keys that several scores share.
bool has_cut_keys(const PagedShape& s) {
  return s.index_dims <= paged::kShortKeyDims && s.head_dim == 128 && (s.group() <= 4 || s.sets_at_once() == 4);
}

// Keys that a CTA publishes so that a random order overflows it less than once in 10^6 rows.
void set_quota(int64_t budget, int32_t ctas, int32_t& quota, int32_t& slots) {
  const double mean = static_cast<double>(budget) / ctas;
  const double wanted = mean + 5 * std::sqrt(mean) + 8;
  quota = static_cast<int32_t>(std::min<double>(static_cast<double>(budget), std::ceil(wanted)));
  slots = static_cast<int32_t>(round_up(quota + quota / 4 + 8, 4));
}

// Of CTAs with so many tokens each, `threads` for each set: whether one has more keys than it keeps all of, and publishes so many
// that there is no room for what is left, or that much of a chunk is, or more than have numbers (paged_sieve.cuh).
bool forgets_too_little(int64_t budget, int32_t ctas, int64_t threads, int64_t tokens) {
  int32_t quota = 0;
  int32_t slots = 0;
  set_quota(budget, ctas, quota, slots);
  return tokens > threads * paged::kChunkKeys &&
         (quota > std::min(6 * threads, tokens / 48) || tokens > int64_t{1} << 18);
}

}  // namespace

bool paged_keys_fit(const PagedShape& s, const PagedPlan& p) {
  const int sets = s.sets_at_once();
  const int of_round = paged::score_round_keys(static_cast<int>(s.index_row_bytes()), sets);
  const int64_t keys = int64_t{p.score_iterations} * of_round;
  if (p.team() != 0) return keys + paged::key_vector(of_round) <= 256;  // 8 bits for the number, a new token's included
  return keys <= paged::kChunkKeys || keys * (32 / sets) <= 65536;      // number and lane in 16 bits
}

namespace paged {

AttendLayout attend_layout(const PagedShape& s, const PagedPlan& p) {
  const int team = p.team();
  const int sets = team != 0 ? s.sets_at_once() : 1;
  const int64_t pages = ceil_div(s.max_length, s.page_size);
  AttendLayout l{};
  // Where two CTAs share an SM no more than 4 KB, as the room is worth more.
  l.table_entries = pages <= (team != 0 && p.ring == 0 ? 1024 : 2048) ? static_cast<int>(pages) : 0;
  l.select = 0;
  l.list = team != 0 ? team_shared_bytes(sets) : kSelectSharedBytes;
  const int entries = team != 0 ? sets * team_entries(s.budget, sets) : s.budget;
  l.inbox = static_cast<int>(round_up(l.list + 4 * entries, 16));
  const int ctas = team > 8 ? 16 : 8;
  l.stats = l.inbox + 4 * p.heads_per_row * s.head_dim + ctas * 128;
  l.warps = l.stats + ctas * 8 * 8;
  l.barrier = l.warps + 8 * 16 * 4;
  l.queries = l.barrier + 32;
  l.table = l.queries + 8 * query_stride(s.head_dim);
  l.slots = whole_lines(l.table + 4 * l.table_entries);
  // Histograms of all CTAs in 16 bits; rows of K and V a team has where its keys were.
  const int rest = team != 0 ? 1024 * team : std::max(8 * p.entries(), kThreads / 32 * attend_stage_bytes(s.head_dim));
  const int query = 16 * s.index_dims * 4 + 16;
  l.total = whole_lines(l.slots + std::max(rest, query));
  return l;
}

}  // namespace paged

void complete_plan(const PagedShape& s, PagedPlan& p) {
  if (p.path == PagedPath::kGeneric) p.path = PagedPath::kFused;
  p.score_rows = static_cast<int32_t>(paged::score_rows(s));
  const bool one = p.path == PagedPath::kOneLaunch;
  if (!one) p.ring = 0;
  // In one launch heads that choose for themselves share a row as they do for scoring.
  const bool quads = one && s.sets_at_once() == 4;
  p.attend_rows = static_cast<int32_t>(quads ? paged::score_rows(s) : attend_rows(s));
  set_quota(s.budget, p.score_ctas, p.quota, p.slots);
  const int together = s.sets_at_once();
  const auto row = static_cast<int>(s.index_row_bytes());
  // The turns of a CTA are units of tokens, its warps' rounds one or several of them.
  const int64_t unit = int64_t{1} << paged::score_unit_log2(p.ring);
  const int64_t units = ceil_div(ceil_div(s.max_length, unit), p.score_ctas) * unit;
  const int64_t round = int64_t{paged::kThreads} / 32 * paged::score_round_tokens(row);
  const int32_t together_rounds = paged::score_rounds_together(p.ring);
  p.score_iterations = static_cast<int32_t>(ceil_div(units, round * together_rounds)) * together_rounds;
  const int heads = paged::score_heads(together == 4 ? 4 : s.fcs_per_query_head != 0 ? 1 : s.group());
  const int part = s.index_type == PagedIndexType::kBF16 || s.index_type == PagedIndexType::kF8E4M3 ? 2 : 1;
  const int64_t pruning = together == 4 ? paged::kPruneSharedBytes4 : paged::kPruneSharedBytes1;
  // A thread's keys of every round (and in one launch that of the new token, which comes after those of the last warp), or what is left of
  // them, a chunk, and numbers.
  const int round_keys = paged::score_round_keys(row, together);
  int64_t keys = int64_t{round_keys} * p.score_iterations;
  if (one) {
    const int64_t before = int64_t{paged::kThreads / 32 - 1} * paged::score_round_tokens(row);  // tokens of a round
    const int64_t rounds = ceil_div(std::max<int64_t>(units - before, 0), round * together_rounds) * together_rounds;
    keys = std::max(keys, rounds * round_keys + paged::key_vector(round_keys));
    if (keys > paged::kDirectKeys) keys = std::max<int64_t>(keys, 16);  // are looked at by 16
  }
  const bool chunks = !one && keys > paged::kChunkKeys;
  const int least_bytes = paged::least_key_bytes(s.index_type, s.index_dims);
  p.key_bytes = !one ? 0 : p.key_bytes == 2 && has_cut_keys(s) ? 2 : least_bytes;
  const int64_t of_thread = chunks ? 6 * paged::kLeftKeys + 4 * paged::kChunkKeys : (one ? p.key_bytes : 4) * keys;
  const int64_t scoring = (one ? 0 : pruning) +
                          paged::score_query_bytes(heads, s.index_dims, part, one, together, p.ring != 0) +
                          paged::kThreads * of_thread;
  const int64_t new_tokens =
      int64_t{paged::kThreads} / 32 * paged::score_new_bytes(heads, s.index_dims, part, together);
  const int64_t ring = int64_t{paged::kThreads} / 32 * p.ring * paged::kRoundBytes;
  p.score_smem = round_up(std::max(scoring, new_tokens), paged::kLineBytes) + ring;
  p.heads_per_row = quads ? std::min(4, s.group()) : s.tokens_per_query_head != 0 ? 1 : std::min(8, s.group());
  const paged::AttendLayout layout = paged::attend_layout(s, p);
  p.attend_smem = layout.total;
  // In one launch rows of K and V come to where the keys were.
  const int64_t stages = int64_t{paged::kThreads} / 32 * paged::attend_stages(p.ring);
  const int64_t stage = layout.slots + stages * paged::attend_stage_bytes(s.head_dim);
  if (one) p.score_smem = std::max(p.score_smem, round_up(stage - p.attend_smem, paged::kLineBytes));
  const int64_t sets = int64_t{s.num_seqs} * s.num_query_tokens * s.num_sets();
  p.workspace_bytes = one ? 0 : round_up(sets * p.entries() * 8, 256) + round_up(sets * p.lists() * 16, 256);
}

namespace {

PagedPlan generic_plan(const PagedShape& s) {
  PagedPlan p;
  const int64_t sets = int64_t{s.num_seqs} * s.num_query_tokens * s.num_sets();
  p.workspace_bytes =
      round_up(sets * s.max_length * 4, 256) + round_up(sets * s.budget * 4, 256) + round_up(sets * 4, 256);
  return p;
}
bool fits(const PagedShape& s, const PagedPlan& p) {
  return p.score_smem <= kPagedSharedMemory && p.attend_smem <= kPagedSharedMemory && p.entries() < 65536 &&
         paged_keys_fit(s, p);
}

// The largest cluster of at most `most` CTAs of which the device runs `rows` at once, by one of its tables; 0: none, or not known.
// spare: with some room for those of the next step, and as they are not always placed as tightly as can be; single CTAs and pairs are.
int32_t largest_cluster(const int32_t (&at_once)[16], int64_t rows, int32_t most, bool spare) {
  for (int32_t size = most; size > 0; --size) {
    const int64_t count = at_once[size - 1];
    if (spare && size > 2 ? count > rows + rows / 8 : count >= rows) return size;
  }
  return 0;
}

// The step in one launch by clusters of a size; a generic plan where they have not the memory for it, or there is no kernel with such keys.
PagedPlan one_launch_of(const PagedShape& s, int32_t cluster, int32_t ring, int32_t key_bytes) {
  PagedPlan p;
  if (cluster == 0) return p;
  p.path = PagedPath::kOneLaunch;
  p.score_ctas = p.cluster = cluster;
  p.ring = ring;
  p.key_bytes = key_bytes;
  complete_plan(s, p);
  return p.score_smem + p.attend_smem <= kPagedSharedMemory && p.key_bytes == key_bytes && paged_keys_fit(s, p)
             ? p
             : PagedPlan();
}

// Two CTAs an SM, which has 1 KB more than one of them may use, and takes 1 KB more for each.
bool two_fit(const PagedPlan& p) { return 2 * (p.score_smem + p.attend_smem) + 1024 <= kPagedSharedMemory; }

// Tokens of a CTA of a step in one launch, at most: its keys are in shared memory, and those that may be kept in registers. need: tokens
// that are chosen; paired: CTAs of a cluster of which two share an SM, 0 where not all run at once.
int64_t shared_tokens(int64_t need, int32_t paired, bool has_ring, bool has_short_keys) {
  const bool is_small = need <= 512;
  const int64_t most = need <= 2048 && (paired <= 8 || has_ring) ? 16384 : 8192;
  if (has_short_keys && (paired <= 8 || (!is_small && paired <= 12)))
    return !is_small && paired > 4 && paired <= 8 ? most * 7 / 3 : 2 * most;
  return paired > 8 || is_small ? most : most * 5 / 4;
}
// The same where four sets are chosen: four keys a token, and four lists. ctas: of all rows, where these have an SM each.
int64_t quad_tokens(int64_t need, int32_t paired, int64_t ctas, int32_t num_sms, bool has_short_keys) {
  if (need > 512 && paired > 8) {
    // Two launches gather with all SMs: one is faster where its CTAs are on most of them, or on half of them and rows are short.
    if (need <= 1024 || 3 * ctas < num_sms) return 0;
    return 3 * ctas < 2 * num_sms ? 1536 : has_short_keys ? 11264 : 8192;
  }
  if (has_short_keys) return need > 1024 ? 6144 : paired > 12 ? 9216 : paired > 8 ? 11264 : 8192;
  if (need <= 512) return paired > 1 ? 6144 : 4096;
  return need > 1024 ? 2752 : 4096;
}

// Tokens of a CTA that has an SM for itself, and so a ring; alone, paired: CTAs of a row if each has one, or two share one. Shorter rows are
// faster with their rounds in registers; where much is kept, two tiles of K and V on their way count sooner.
struct TokenRange {
  int64_t from;
  int64_t to;
};
TokenRange ring_tokens(const PagedShape& s, int32_t alone, int32_t paired, bool has_short_keys) {
  const int64_t need = s.num_chosen();
  const bool is_small = need <= 512;
  const bool is_narrow = s.index_row_bytes() <= 16;
  TokenRange r{2560, has_short_keys ? 65536 : 32768};
  if (paired <= 8) {
    r.from = 56 * 1024 / s.index_row_bytes();
    if (!is_small) r.to = alone > 2 ? 16384 : 4096;
    return need <= 1024 ? r : TokenRange{1, 0};
  }
  if (alone < 8) {
    r.from = 1792;
  } else if (need > 1024 && alone > 8) {
    r.from = 896;
  } else if (is_narrow && is_small) {
    r.from = 4096;
  }
  return r;
}

// CTAs of the clusters that serve four sets each, of at most so many tokens a CTA: as large as run at once in so many waves.
int32_t quad_cluster(const PagedShape& s, const PagedDevice& device, int64_t tokens) {
  const int64_t rows = paged::score_rows(s);
  const int64_t need = s.num_chosen();
  const int32_t least = need <= 512 || s.max_length > 4096 ? 2 : 1;
  for (int64_t waves = 1; waves <= rows; ++waves) {
    // Or all but a few, which take less long than another wave.
    for (const int64_t percent : {100, 95}) {
      if (percent < 100 && waves < (need > 1024 ? 3 : 2)) continue;
      const int64_t at_once = ceil_div(ceil_div(rows * percent, 100), waves);
      const int32_t cluster = largest_cluster(device.clusters_paired, at_once, 8, waves == 1);
      if (cluster >= least && ceil_div(s.max_length, cluster) <= tokens) return cluster;
    }
  }
  return 8;
}

// The step in one launch with keys of so many bytes, or a generic plan where two launches are faster: limits measured on H100 and H200
// (docs/gpu-measurements.md).
PagedPlan one_launch_with(const PagedShape& s, const PagedDevice& device, int32_t key_bytes) {
  const bool quads = s.sets_at_once() == 4;
  const int64_t rows = quads ? paged::score_rows(s) : attend_rows(s);
  const int64_t need = s.num_chosen();
  const bool is_small = need <= 512;
  const int32_t most = paged::team_ctas(1);
  // CTAs that have an SM each, and CTAs of which two share one. What they exchange grows with the cluster, so where these are many for
  // few rows, fewer are faster, but for long rows of which much is kept.
  const int32_t alone = largest_cluster(device.clusters_alone, rows, most, false);
  const int32_t paired = largest_cluster(device.clusters_paired, rows, most, true);
  const bool has_ring = !quads && s.head_dim == 128 && s.group() <= 4;  // others were not measured with few rows
  const bool has_short_keys = key_bytes == 2;
  const int64_t of_quads = quad_tokens(need, paired, rows * std::min(8, alone), device.num_sms, has_short_keys);
  const auto of = [&](int32_t cluster, int32_t ring) { return one_launch_of(s, cluster, ring, key_bytes); };
  int32_t cluster = paired;
  if (has_ring && alone > 1) {
    const int64_t tokens = ceil_div(s.max_length, alone);
    const TokenRange of_ring = ring_tokens(s, alone, paired, has_short_keys);
    if (tokens >= of_ring.from && tokens <= of_ring.to) {
      // Of CTAs with little to read, 8 exchange less than 9.
      const bool reads_little = is_small && tokens * s.index_row_bytes() < 160 * 1024;
      const PagedPlan p = of(reads_little ? std::min(8, alone) : alone, paged::kStepRing);
      if (p.path == PagedPath::kOneLaunch) return p;
    }
  }
  if (paired > 8) {
    if (quads || is_small || s.max_length < 16384) cluster = std::min(8, alone);
  } else if (paired <= 1) {
    // Pairs, also where they run one after another, gain if choosing or gathering takes long or rows are long: their part of the index
    // comes meanwhile.
    const bool gains =
        need > 1024 || (!is_small && s.max_length >= 16384) || (s.max_length > 16384 && s.index_row_bytes() >= 32);
    cluster = gains ? 2 : 1;
  }
  if (quads && has_short_keys && paired <= 8 && of_quads != 0) {
    cluster = quad_cluster(s, device, of_quads);
    if (is_small && cluster > (paired > 2 ? paired : 5)) return {};
  } else if (quads && paired <= 2 && (paired <= 1 || !is_small)) {
    // Up to 4 also where they run one after another.
    const int32_t least = std::max(is_small || (need <= 1024 && s.max_length > 4096) ? 2 : 1, paired);
    cluster = static_cast<int32_t>(std::clamp<int64_t>(ceil_div(s.max_length, of_quads), least, 4));
  }
  PagedPlan p = of(cluster, 0);
  // Where two CTAs do not fit an SM, larger clusters of smaller CTAs, that leave no room for the next step's, or one CTA an SM.
  if (!quads && !is_small && !two_fit(p)) {
    const int32_t larger = largest_cluster(device.clusters_paired, rows, 8, false);
    if (larger > cluster) p = of(larger, 0);
  }
  if (!two_fit(p)) p = of(std::min(alone, paged::team_ctas(s.sets_at_once())), 0);
  if (p.path != PagedPath::kOneLaunch) return p;
  const int64_t most_tokens = quads ? of_quads : shared_tokens(need, paired, has_ring, has_short_keys);
  return ceil_div(s.max_length, p.cluster) <= most_tokens ? p : PagedPlan();
}
PagedPlan one_launch_plan(const PagedShape& s, const PagedDevice& device) {
  const int32_t least_bytes = paged::least_key_bytes(s.index_type, s.index_dims);
  const PagedPlan p = one_launch_with(s, device, least_bytes);
  if (least_bytes == 2 || p.ring != 0) return p;
  const PagedPlan q = one_launch_with(s, device, 2);
  if (p.path != PagedPath::kOneLaunch || q.path != PagedPath::kOneLaunch)
    return q.path == PagedPath::kOneLaunch ? q : p;
  // To score ties again takes some time. But where keys of 16 bits do with smaller clusters, or let two CTAs share an SM as they must, they
  // are faster, unless several waves of small ones gather much.
  const int64_t need = s.num_chosen();
  const int64_t at_once = device.clusters_paired[q.cluster - 1];
  const bool is_one_wave = q.attend_rows <= at_once && q.attend_rows * 5 >= at_once * 4;
  const bool is_smaller = q.cluster < p.cluster && (need <= 512 || need > 1024 || is_one_wave);
  const bool shares = int64_t{q.attend_rows} * q.cluster > device.num_sms;
  return is_smaller || (shares && two_fit(q) && !two_fit(p)) ? q : p;
}

// How far the first CTA of an SM goes ahead of the second. If both begin together they ask for the index together, then both choose while
// the memory waits, then both gather. Measured: nearly half as long as one gathers at full bandwidth, and some of what choosing takes, but
// little longer than half of what it scores; where four sets are chosen that in any case. Not where CTAs are too few to share all SMs, or
// little is gathered: the last ones would end later. Where several run one after another that counts less, so these have one sooner.
void set_lead(const PagedShape& s, const PagedDevice& device, PagedPlan& p) {
  if (p.cluster > 4 || p.ring != 0 || device.memory_gbs == 0 || !two_fit(p)) return;
  if (p.attend_rows * int64_t{10} < device.clusters_paired[p.cluster - 1] * int64_t{9}) return;
  const bool quads = s.sets_at_once() == 4;
  const int64_t kept =
      ceil_div(int64_t{s.budget} * (quads ? p.heads_per_row : 1), p.cluster) * 4 * s.head_dim;  // bytes
  const int64_t index = ceil_div(s.max_length, p.cluster) * s.index_row_bytes();
  const auto ns = [&](int64_t bytes) { return bytes * device.num_sms / device.memory_gbs; };
  int64_t lead = ns(index) / 2 + 2500;
  if (!quads) {
    const bool is_narrow = s.index_row_bytes() <= 16;
    const bool is_one_wave = p.attend_rows <= device.clusters_paired[p.cluster - 1];
    const bool gathers = ns(kept) >= (is_narrow && is_one_wave ? 4500 : 2500);
    if (!gathers && (is_narrow || is_one_wave)) return;
    lead = gathers ? std::min(ns(kept) * 2 / 5 + 1500, lead) : ns(index) / 2;
  }
  p.lead_ctas = device.num_sms / p.cluster * p.cluster;
  p.lead_ns = static_cast<int32_t>(lead);
}

}  // namespace

PagedPlan paged_plan(const PagedShape& s, const PagedDevice& device) {
  check(s);
  if (!paged_fused_refusal(s, device).empty()) return generic_plan(s);
  if (paged_one_launch_refusal(s).empty()) {
    PagedPlan one = one_launch_plan(s, device);
    if (one.path == PagedPath::kOneLaunch) {
      set_lead(s, device, one);
      return one;
    }
  }
  PagedPlan p;
  // One wave of CTAs, with 512 tokens each at least, 2,048 where a row has more than 8 and 4,096 where it has more than 16, as launch
  // 2 reads a list of each; more CTAs where lists are long, and where one would have more keys than it keeps all of and publish so many
  // that there is no room for what is left, or that much of what it looks through is (paged_sieve.cuh).
  const int64_t wave = int64_t{device.num_sms} * paged::kScoreCtas;
  const auto tokens = [&] { return s.max_length / p.score_ctas; };
  p.score_ctas = static_cast<int32_t>(std::clamp<int64_t>(wave / paged::score_rows(s), 1, 64));
  if (p.score_ctas > 16) p.score_ctas = floor_power2(p.score_ctas);
  const auto too_short = [&] {
    return tokens() < (s.sets_at_once() == 4 || p.score_ctas <= 8 ? 512 : p.score_ctas <= 16 ? 2048 : 4096);
  };
  while (p.score_ctas > 1 && too_short()) p.score_ctas = std::max(p.score_ctas / 2, p.score_ctas > 8 ? 8 : 1);
  const int64_t threads = paged::kThreads / s.sets_at_once();  // of a set
  const auto too_long = [&] {
    const int64_t most = ceil_div(ceil_div(s.max_length, 16), p.score_ctas) * 16;  // of a CTA
    return forgets_too_little(s.budget, p.score_ctas, threads, most);
  };
  while (p.score_ctas < 1024 && too_long()) p.score_ctas *= 2;
  // Clusters of which two CTAs share an SM, none with less than 32 tokens a CTA.
  p.cluster = std::max(1, largest_cluster(device.clusters_paired, attend_rows(s), 8, true));
  while (p.cluster > 1 && s.budget / p.cluster < 32) --p.cluster;
  p.attend_alone = 2 * attend_rows(s) * p.cluster <= device.num_sms ? 1 : 0;
  complete_plan(s, p);
  while (p.score_smem > kPagedSharedMemory && p.score_ctas < 1024) {
    p.score_ctas *= 2;
    complete_plan(s, p);
  }
  while (!fits(s, p) && p.score_ctas > 1) {
    p.score_ctas /= 2;
    complete_plan(s, p);
  }
  return fits(s, p) ? p : generic_plan(s);
}

PagedSelectPlan paged_select_plan(const PagedSelectArgs& a, const PagedDevice& device) {
  check(a);
  PagedSelectPlan p;
  // One wave of CTAs, with 1,024 tokens each at least.
  const int64_t wave = int64_t{device.num_sms} * paged::kSelectCtas;
  p.score_ctas = floor_power2(std::clamp<int64_t>(std::min<int64_t>(wave / a.num_rows, a.num_tokens / 1024), 1, 64));
  constexpr int64_t kRound = int64_t{paged::kThreads} * paged::kSelectRoundKeys;
  const auto rounds = [&](int32_t ctas) { return static_cast<int32_t>(ceil_div(a.num_tokens, kRound * ctas)); };
  const auto holds_all = [&](int32_t ctas) { return rounds(ctas) * paged::kSelectRoundKeys <= paged::kSelectKeys; };
  // Fewer where their lists are long, as the second kernel goes through them.
  while (p.score_ctas > 8 && a.budget / p.score_ctas > 24 && holds_all(p.score_ctas / 2)) p.score_ctas /= 2;
  set_quota(a.budget, p.score_ctas, p.quota, p.slots);
  // A warp has room for what the whole CTA publishes, and to spare.
  while (p.score_ctas < 1024 && p.quota > paged::kSelectRoom - 64 && !holds_all(p.score_ctas)) {
    p.score_ctas *= 2;
    set_quota(a.budget, p.score_ctas, p.quota, p.slots);
  }
  p.score_iterations = rounds(p.score_ctas);
  const int64_t left = holds_all(p.score_ctas) ? 0 : paged::kThreads / 32 * 8 * paged::kSelectRoom;
  p.score_smem =
      paged::kPruneSharedBytes1 + left +
      int64_t{4} * paged::kThreads * paged::kSelectRoundKeys * std::min(p.score_iterations, paged::kSelectRing);
  p.select_smem = paged::kSelectSharedBytes + int64_t{8} * p.score_ctas * p.slots;
  const int64_t rows = a.num_rows;
  p.workspace_bytes = round_up(rows * p.score_ctas * p.slots * 8, 256) + round_up(rows * p.score_ctas * 16, 256);
  if (p.score_smem > kPagedSharedMemory || p.select_smem > kPagedSharedMemory || p.score_ctas * p.slots >= 65536) {
    throw Error(ErrorCode::kInvalidArgument, "paged decode: a budget of " + std::to_string(a.budget) +
                                                 " needs more shared memory than a CTA has; lower it");
  }
  return p;
}

}  // namespace fasa::ops
