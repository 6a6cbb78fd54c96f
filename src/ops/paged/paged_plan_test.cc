// Plans: that they fit the device and cover every token, and which way a step takes.
#include <gtest/gtest.h>

#include <algorithm>

#include "fasa/error.h"
#include "src/ops/paged/paged.h"
#include "src/ops/paged/paged_layout.h"
#include "src/ops/paged/paged_test_shape.h"

namespace fasa::ops {
namespace {

// As one says of itself; their GPCs differ.
const PagedDevice kH200{90,
                        132,
                        {132, 66, 39, 30, 22, 17, 15, 15, 9, 7, 7, 7, 7, 7, 7, 7},
                        {264, 132, 79, 62, 47, 39, 32, 30, 23, 21, 16, 16, 14, 14, 14, 14},
                        4814};

// A plan for kH200 with so much memory, and rounds of so many tokens, that it can do the step.
void expect_fits(int32_t batch, int64_t length, int32_t budget, bool own_tokens, PagedIndexType type, int32_t dims) {
  PagedShape s = llama_shape(batch, length, budget);
  s.tokens_per_query_head = own_tokens ? 1 : 0;
  s.index_type = type;
  s.index_dims = dims;
  const PagedPlan p = paged_plan(s, kH200);
  EXPECT_EQ(p.workspace_bytes % 256, 0);
  if (p.path == PagedPath::kGeneric) {
    EXPECT_TRUE(budget > 2048 || length > 131072) << batch << " " << length << " " << budget;
    EXPECT_GE(p.workspace_bytes, int64_t{batch} * s.num_sets() * (length * 4 + int64_t{budget} * 4));
    return;
  }
  EXPECT_LE(p.score_smem, kPagedSharedMemory);
  EXPECT_LE(p.attend_smem, kPagedSharedMemory);
  EXPECT_GE(p.score_ctas, 1);
  EXPECT_LT(p.score_ctas, 65536) << "spread_unit";
  if (p.path == PagedPath::kOneLaunch) {
    EXPECT_EQ(p.score_ctas, p.cluster);
    EXPECT_EQ(p.workspace_bytes, 0);
    EXPECT_LE(p.score_smem + p.attend_smem, kPagedSharedMemory);
    EXPECT_LT(p.score_iterations * paged::score_round_keys(static_cast<int>(s.index_row_bytes()), own_tokens ? 4 : 1),
              256)
        << "8 bits of a key's id";
    EXPECT_LE(p.cluster, own_tokens ? 8 : 16);
    // Pairs may run one after another, and where four sets are chosen any.
    const auto& at_once = p.ring != 0 ? kH200.clusters_alone : kH200.clusters_paired;
    EXPECT_TRUE(own_tokens || p.cluster <= 2 || batch * s.num_kv_heads <= at_once[p.cluster - 1])
        << batch << " " << p.cluster;
  } else {
    EXPECT_GE(p.workspace_bytes, int64_t{batch} * s.num_sets() * p.lists() * (8 * p.slots + 16));
  }
  EXPECT_TRUE(p.path == PagedPath::kOneLaunch || p.cluster <= 8);
  const auto row = static_cast<int>(s.index_row_bytes());
  EXPECT_GE(int64_t{p.score_iterations} * (paged::kThreads / 32) * paged::score_round_tokens(row) * p.score_ctas,
            length);
  EXPECT_GE(int64_t{p.quota} * p.score_ctas, budget) << "the lists can hold the answer";
  EXPECT_GE(p.slots, p.quota);
  EXPECT_EQ(p.slots % 4, 0);
  EXPECT_LT(p.entries(), 65536) << "counts are 16 bits";
  const paged::AttendLayout layout = paged::attend_layout(s, p);
  EXPECT_GE(p.attend_smem, layout.slots + (p.team() == 0 ? 8 * p.entries() : 1024 * p.team()));
  EXPECT_EQ(layout.slots % 128, 0) << "rows are copied to whole lines";
  EXPECT_TRUE(p.path != PagedPath::kOneLaunch || (p.attend_smem + p.score_smem) % 128 == 0) << "where the ring ends";
  // Beside each other: the queries and a thread's keys of every round, or of a chunk and what is left of those before.
  const int64_t queries =
      paged::score_query_bytes(s.group(), s.index_dims, 1, p.team() != 0, s.sets_at_once(), p.ring != 0);
  const int64_t keys = int64_t{paged::score_round_keys(row, own_tokens ? 4 : 1)} * p.score_iterations;
  const int64_t at_once = std::min<int64_t>(keys, paged::kChunkKeys);
  EXPECT_GE(p.score_smem, queries + (p.team() != 0 ? p.key_bytes : 4) * int64_t{paged::kThreads} * at_once);
  const int64_t set_threads = paged::kThreads / s.sets_at_once();
  EXPECT_TRUE(keys <= paged::kChunkKeys || p.path == PagedPath::kOneLaunch || p.quota <= 6 * set_threads)
      << "room for what is left";
  EXPECT_TRUE(paged_keys_fit(s, p)) << "16 bits for a key's number and lane";
}

TEST(PagedPlan, FitsTheDeviceAndCoversEveryToken) {
  for (const int32_t batch : {1, 2, 3, 4, 7, 16, 64, 200}) {
    for (const int64_t length : {int64_t{1}, int64_t{300}, int64_t{8192}, int64_t{24000}, int64_t{65536},
                                 int64_t{131072}, int64_t{1} << 20, int64_t{5} << 20, (int64_t{1} << 31) - 5000}) {
      for (const int32_t budget : {1, 16, 256, 2048, 8192, 50000}) {
        for (const bool own_tokens : {false, true}) {
          expect_fits(batch, length, budget, own_tokens, PagedIndexType::kI8, 32);
          expect_fits(batch, length, budget, own_tokens, PagedIndexType::kF8E4M3, 16);
          expect_fits(batch, length, budget, own_tokens, PagedIndexType::kI4, 32);
        }
      }
    }
  }
}

TEST(PagedPlan, TakesTheFusedPathWhereItHasAKernel) {
  const auto refused = [](const auto& change, const PagedDevice& device = kH200) {
    PagedShape s = llama_shape();
    change(s);
    EXPECT_EQ(paged_plan(s, device).path == PagedPath::kGeneric, !paged_fused_refusal(s, device).empty());
    return paged_fused_refusal(s, device);
  };
  EXPECT_EQ(refused([](auto&) {}), "");
  EXPECT_EQ(refused([](auto&) {}, {100, 148}), "");
  EXPECT_NE(refused([](auto&) {}, {80, 108}), "");
  EXPECT_NE(refused([](auto&) {}, {120, 188}), "");
  EXPECT_NE(refused([](auto& s) { s.kv_type = PagedKvType::kF8E4M3; }), "");
  EXPECT_NE(refused([](auto& s) { s.index_dims = 30; }), "");
  EXPECT_NE(refused([](auto& s) { s.fcs_per_query_head = 1; }), "");
  EXPECT_EQ(refused([](auto& s) { s.fcs_per_query_head = s.tokens_per_query_head = 1; }), "");
  EXPECT_EQ(refused([](auto& s) { s.tokens_per_query_head = 1; }), "");
}

TEST(PagedPlan, TakesOneLaunchWhereRowsAreShortEnough) {
  const auto path = [](int32_t batch, int64_t length, int32_t budget, const auto& change) {
    PagedShape s = llama_shape(batch, length, budget);
    change(s);
    return paged_plan(s, kH200).path;
  };
  const auto same = [](auto&) {};
  EXPECT_EQ(path(1, 8192, 256, same), PagedPath::kOneLaunch);
  EXPECT_EQ(path(16, 32768, 256, same), PagedPath::kOneLaunch);
  EXPECT_EQ(path(64, 8192, 256, same), PagedPath::kOneLaunch);
  EXPECT_EQ(path(1, 131072, 256, same), PagedPath::kOneLaunch) << "by clusters of 9";
  EXPECT_EQ(path(2, 131072, 256, same), PagedPath::kOneLaunch) << "by clusters of 6";
  EXPECT_EQ(path(4, 131072, 256, same), PagedPath::kOneLaunch) << "by keys of 16 bits";
  EXPECT_EQ(path(4, 262144, 256, same), PagedPath::kFused) << "one cluster would score for too long";
  EXPECT_EQ(path(16, 32768, 2048, same), PagedPath::kOneLaunch);
  EXPECT_EQ(path(16, 32768, 4096, same), PagedPath::kOneLaunch);
  EXPECT_EQ(path(64, 32768, 1024, same), PagedPath::kOneLaunch) << "pairs, one after another";
  EXPECT_EQ(path(64, 32768, 256, same), PagedPath::kOneLaunch) << "pairs, one after another";
  EXPECT_EQ(path(64, 131072, 256, same), PagedPath::kFused) << "an SM has no room for the keys of two";
  EXPECT_EQ(path(1, 8192, 256, [](auto& s) { s.num_query_tokens = 2; }), PagedPath::kFused);
  const auto own_tokens = [](auto& s) { s.tokens_per_query_head = 1; };
  EXPECT_EQ(path(1, 8192, 256, own_tokens), PagedPath::kOneLaunch);
  EXPECT_EQ(path(64, 8192, 512, own_tokens), PagedPath::kOneLaunch);
  EXPECT_EQ(path(16, 32768, 256, own_tokens), PagedPath::kOneLaunch)
      << "clusters of 4, hardly more than run in two waves";
  EXPECT_EQ(path(16, 65536, 256, own_tokens), PagedPath::kFused) << "the keys of four sets fill an SM's memory";
  EXPECT_EQ(path(4, 8192, 1024, own_tokens), PagedPath::kOneLaunch);
  EXPECT_EQ(path(1, 8192, 1024, own_tokens), PagedPath::kFused) << "more candidates than registers hold";
  EXPECT_EQ(path(1, 8192, 2048, own_tokens), PagedPath::kOneLaunch);
  EXPECT_EQ(path(1, 16384, 2048, own_tokens), PagedPath::kFused) << "its 64 CTAs would gather with half of the SMs";
  EXPECT_EQ(path(2, 65536, 2048, own_tokens), PagedPath::kOneLaunch) << "96 CTAs";
  EXPECT_EQ(path(64, 16384, 1024, own_tokens), PagedPath::kOneLaunch) << "clusters of 4, one after another";
  const auto int4 = [](auto& s) { s.index_type = PagedIndexType::kI4; };
  EXPECT_EQ(path(4, 131072, 256, int4), PagedPath::kOneLaunch) << "keys of 16 bits";
  EXPECT_EQ(path(64, 65536, 256, int4), PagedPath::kFused);
  EXPECT_EQ(path(1, 8192, 256, [](auto& s) { s.fcs_per_query_head = s.tokens_per_query_head = 1; }), PagedPath::kFused);
  EXPECT_EQ(path(1, 8192, 256, [](auto& s) { s.kv_type = PagedKvType::kF16; }), PagedPath::kFused);
  EXPECT_EQ(path(1, 8192, 256, [](auto& s) { s.page_size = 24; }), PagedPath::kFused)
      << "16 tokens lie beside each other";
  EXPECT_EQ(path(1, 8192, 256, [](auto& s) { s.head_dim = 256; }), PagedPath::kFused);
}

TEST(PagedPlan, TakesKeysOf16BitsWhereTheyDoWithSmallerClusters) {
  const auto key_bytes = [](int32_t batch, int64_t length, int32_t budget, int32_t own_tokens, PagedIndexType type,
                            int32_t dims = 32) {
    PagedShape s = llama_shape(batch, length, budget);
    s.tokens_per_query_head = own_tokens;
    s.index_type = type;
    s.index_dims = dims;
    return paged_plan(s, kH200).key_bytes;
  };
  EXPECT_EQ(key_bytes(1, 131072, 256, 0, PagedIndexType::kI8), 4) << "there is room, and no tie is scored again";
  EXPECT_EQ(key_bytes(4, 131072, 256, 0, PagedIndexType::kI8), 2);
  EXPECT_EQ(key_bytes(4, 131072, 2048, 0, PagedIndexType::kI8), 2) << "by clusters of 6, not 7";
  EXPECT_EQ(key_bytes(1, 524288, 2048, 0, PagedIndexType::kI8), 2);
  EXPECT_EQ(key_bytes(1, 524288, 1024, 0, PagedIndexType::kI8), 2);
  EXPECT_EQ(key_bytes(1, 524288, 256, 0, PagedIndexType::kI8), 2);
  EXPECT_EQ(key_bytes(1, 1048576, 256, 0, PagedIndexType::kI8), 0) << "two launches";
  EXPECT_EQ(key_bytes(64, 32768, 256, 0, PagedIndexType::kF8E4M3, 16), 2);
  EXPECT_EQ(key_bytes(16, 16384, 256, 1, PagedIndexType::kI8), 2);
  EXPECT_EQ(key_bytes(64, 8192, 256, 1, PagedIndexType::kI8), 4);
  EXPECT_EQ(key_bytes(1, 45056, 256, 1, PagedIndexType::kI8), 4)
      << "two CTAs of 16 bits would fit an SM, but each has its own";
  EXPECT_EQ(key_bytes(2, 32768, 2048, 1, PagedIndexType::kI8), 4);
  EXPECT_EQ(key_bytes(1, 8192, 256, 0, PagedIndexType::kI4), 2) << "each of one score";
  EXPECT_EQ(key_bytes(1, 8192, 256, 0, PagedIndexType::kI4, 64), 4);
}

TEST(PagedPlan, TakesClustersThatRunAtOnce) {
  const auto plan = [](int32_t batch, int64_t length, int32_t budget, const PagedDevice& device = kH200) {
    return paged_plan(llama_shape(batch, length, budget), device);
  };
  PagedPlan p = plan(1, 131072, 256);
  EXPECT_EQ(p.cluster, 9) << "8 clusters of 10 have no SM for each CTA";
  EXPECT_NE(p.ring, 0);
  EXPECT_EQ(p.score_iterations % 2, 0) << "rounds that are scored together";
  EXPECT_EQ(plan(1, 32768, 256).cluster, 8);
  EXPECT_NE(plan(1, 32768, 256).ring, 0);
  EXPECT_EQ(plan(1, 8192, 256).ring, 0) << "short rows have their rounds in registers";
  const auto narrow = [](int64_t length) {
    PagedShape s = llama_shape(1, length, 256);
    s.index_type = PagedIndexType::kI4;
    return paged_plan(s, kH200);
  };
  EXPECT_EQ(narrow(32768).ring, 0) << "there is little to read";
  EXPECT_NE(narrow(49152).ring, 0);
  EXPECT_NE(narrow(393216).ring, 0) << "two launches take longer";
  EXPECT_NE(plan(1, 8192, 2048).ring, 0) << "but where two tiles of K and V on their way count";
  EXPECT_EQ(plan(1, 16384, 1024).cluster, 16) << "of which two CTAs share an SM";
  EXPECT_EQ(plan(2, 8192, 256).cluster, 6) << "which have an SM each";
  EXPECT_EQ(plan(4, 32768, 2048).cluster, 6) << "two of 7 of the 32 clusters would wait";
  EXPECT_EQ(plan(4, 32768, 1024).cluster, 3) << "two tiles of K and V on their way count";
  EXPECT_EQ(plan(4, 65536, 1024).cluster, 6) << "but reading counts more";
  EXPECT_EQ(plan(4, 32768, 256).cluster, 3) << "with an SM each, and so rounds in shared memory";
  EXPECT_NE(plan(4, 32768, 256).ring, 0);
  EXPECT_NE(plan(8, 65536, 256).ring, 0);
  EXPECT_EQ(plan(16, 8192, 256).ring, 0) << "one CTA a row reads slower than two on an SM";
  EXPECT_EQ(plan(2, 131072, 2048).cluster, 6) << "two launches took a third longer";
  EXPECT_EQ(plan(8, 32768, 1024).cluster, 3);
  EXPECT_EQ(plan(16, 16384, 256).cluster, 2);
  EXPECT_EQ(plan(64, 8192, 256).cluster, 1);
  EXPECT_EQ(plan(64, 8192, 2048).cluster, 2) << "one after another";
  EXPECT_GT(plan(64, 8192, 256).lead_ns, 2500);
  EXPECT_EQ(plan(64, 8192, 256).lead_ctas, 132);
  EXPECT_GT(plan(16, 16384, 1024).lead_ns, 3000) << "all run at once, two on every SM";
  EXPECT_EQ(plan(12, 16384, 1024).lead_ns, 0) << "some have an SM to themselves";
  PagedShape of_16_bytes = llama_shape(64, 8192, 256);
  of_16_bytes.index_type = PagedIndexType::kF8E4M3;
  of_16_bytes.index_dims = 16;
  EXPECT_GT(paged_plan(of_16_bytes, kH200).lead_ns, 2500) << "its rows run one after another";
  of_16_bytes.num_seqs = 16;
  EXPECT_EQ(paged_plan(of_16_bytes, kH200).lead_ns, 0);
  p = plan(4, 131072, 2048);
  EXPECT_EQ(p.path, PagedPath::kOneLaunch);
  EXPECT_EQ(p.cluster, 6) << "two CTAs of 6 a row have the memory of an SM if keys have 16 bits";
  EXPECT_EQ(plan(4, 262144, 2048).cluster, 7);
  p = plan(4, 524288, 2048);
  EXPECT_EQ(p.path, PagedPath::kFused);
  EXPECT_EQ(p.cluster, 6);
  EXPECT_EQ(p.attend_alone, 0) << "192 CTAs of launch 2 share SMs";
  p = plan(1, 524288, 256);
  EXPECT_EQ(p.path, PagedPath::kOneLaunch) << "by clusters of 9, each CTA with 58K keys of 16 bits";
  EXPECT_EQ(plan(2, 360448, 2048).path, PagedPath::kOneLaunch);
  EXPECT_EQ(plan(8, 106496, 256).path, PagedPath::kOneLaunch);
  p = plan(1, 1048576, 256);
  EXPECT_EQ(p.path, PagedPath::kFused);
  EXPECT_EQ(p.cluster, 8);
  EXPECT_EQ(p.attend_alone, 1);
  p = plan(1, 131072, 256, {90, 132});
  EXPECT_EQ(p.path, PagedPath::kFused) << "where it is not known which clusters run at once";
  EXPECT_EQ(p.cluster, 1);
  PagedShape s = llama_shape();
  s.head_dim = 64;
  EXPECT_EQ(paged_plan(s, kH200).ring, 0) << "there is no kernel";
  p = plan(1, 131072, 256);
  PagedPlan again = p;
  s.head_dim = 128;
  complete_plan(s, again);
  EXPECT_EQ(again, p);
}

TEST(PagedPlan, SelectionAloneFits) {
  float scores = 0;
  int32_t kept = 0;
  for (const int32_t rows : {1, 8, 128, 5000}) {
    for (const int32_t tokens : {16, 4096, 131072}) {
      for (const int32_t budget : {1, 16, 1024, 2048}) {
        if (budget > tokens) continue;
        alignas(16) float aligned[4] = {};
        PagedSelectArgs a{aligned, tokens, rows, tokens, budget, &kept};
        const PagedSelectPlan p = paged_select_plan(a, kH200);
        EXPECT_GE(int64_t{p.score_iterations} * paged::kThreads * 16 * p.score_ctas, tokens);
        EXPECT_GE(int64_t{p.quota} * p.score_ctas, budget);
        EXPECT_LE(std::max(p.score_smem, p.select_smem), kPagedSharedMemory);
        const bool holds_all = p.score_iterations * paged::kSelectRoundKeys <= paged::kSelectKeys;
        EXPECT_TRUE(holds_all || p.quota <= paged::kSelectRoom - 32) << "a warp's room";
      }
    }
  }
  EXPECT_THROW(check(PagedSelectArgs{&scores, 4, 1, 4, 5, &kept}), Error);
  alignas(16) float aligned[4] = {};
  EXPECT_THROW(check(PagedSelectArgs{aligned, int64_t{1} << 31, 1, (1 << 30) + 1, 1, &kept}), Error);
}

}  // namespace
}  // namespace fasa::ops
