// The paged operations without a GPU: checks, byte counts, and the scalar reference against a plain recomputation.
// paged_gpu_test.py tests the kernels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "fasa/error.h"
#include "src/core/dtype.h"
#include "src/ops/paged/paged.h"
#include "src/ops/paged/paged_test_shape.h"

namespace fasa::ops {
namespace {

std::string refusal(const PagedShape& s) {
  try {
    check(s);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(PagedCheck, SaysWhatIsWrongWithAShape) {
  EXPECT_EQ(refusal(llama_shape()), "");
  const auto with = [](const auto& change) {
    PagedShape s = llama_shape();
    change(s);
    return refusal(s);
  };
  EXPECT_NE(with([](auto& s) { s.num_seqs = 0; }).find("num_seqs is 0"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.num_query_tokens = 9; }).find("give 1 to 8"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.num_kv_heads = 1; }).find("1 to 16 times"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.num_kv_heads = 5; }).find("1 to 16 times"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.num_q_heads = 8192, s.num_kv_heads = 512; }).find("at most 4096"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.head_dim = 80; }).find("64, 96, 128, 192 or 256"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.page_size = 257; }).find("give 1 to 256"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.index_dims = 31; }).find("even number"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.index_dims = 130; }).find("up to head_dim"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.budget = 0; }).find("budget is 0"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.sinks = 200, s.recent = 57; }).find("must fit the budget"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.max_length = int64_t{1} << 31; }).find("max_length"), std::string::npos);
  EXPECT_NE(with([](auto& s) { s.num_seqs = 10000; }).find("split the batch"), std::string::npos);
}

TEST(PagedBytes, CountsWhatOneStepMoves) {
  PagedShape s = llama_shape();
  const int32_t lengths[] = {131072};
  const int64_t new_rows = 8 * (2 * 2 * 256 + 32);
  const int64_t q_and_out = 2 * 32 * 256;
  EXPECT_EQ(paged_bytes(s, lengths), int64_t{131072} * 8 * 32 + 256 * 8 * 2 * 256 + new_rows + q_and_out);
  const int32_t shorter[] = {200};  // every token is kept: no index is read
  EXPECT_EQ(paged_bytes(s, shorter), 200 * 8 * 2 * 256 + new_rows + q_and_out);
  const int32_t none[] = {0};
  EXPECT_EQ(paged_bytes(s, none), 0);
  s.tokens_per_query_head = 1;
  EXPECT_EQ(paged_bytes(s, lengths), int64_t{131072} * 8 * 32 + 256 * 32 * 2 * 256 + new_rows + q_and_out);
}

// A decode step over f32 copies of everything, with bf16 caches of 2 KV heads, group 2, head_dim 64, pages of 4.
class PagedReference : public ::testing::Test {
 protected:
  static constexpr int32_t kDim = 64;
  static constexpr int32_t kPage = 4;
  static constexpr int32_t kBlocks = 16;

  void SetUp() override {
    s_.num_seqs = 2;
    s_.num_query_tokens = 2;
    s_.num_q_heads = 4;
    s_.num_kv_heads = 2;
    s_.head_dim = kDim;
    s_.page_size = kPage;
    s_.index_dims = 8;
    s_.budget = 6;
    s_.sinks = 1;
    s_.recent = 2;
    s_.max_length = 24;
    lengths_ = {21, 5};
    table_.resize(2 * 6);
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), random_);
    const auto fill = [&](std::vector<uint16_t>& v, size_t count) {
      v.resize(count);
      for (auto& x : v) x = f32_to_bf16(normal_(random_));
    };
    fill(k_, kBlocks * 2 * kPage * kDim);
    fill(v_, kBlocks * 2 * kPage * kDim);
    fill(q_, 2 * 2 * 4 * kDim);
    fill(k_new_, 2 * 2 * 2 * kDim);
    fill(v_new_, 2 * 2 * 2 * kDim);
    out_.assign(2 * 2 * 4 * kDim, 0x7FC0);
    index_.assign(kBlocks * 2 * kPage * 8, 0);
    for (int i = 0; i < 16; ++i) {
      dims_[i] = static_cast<int16_t>((i * 7) % kDim);
      scale_[i] = 0.02F + 0.001F * static_cast<float>(i);
    }
    std::vector<int64_t> slots(kBlocks * kPage);
    std::iota(slots.begin(), slots.end(), 0);
    paged_write_index_ref(
        {s_, cache(k_), index_cache(), slots.data(), static_cast<int64_t>(slots.size()), dims_, scale_});
    kept_.assign(2 * 2 * 2 * 6, -7);
    lse_.assign(2 * 2 * 4, 0);
  }
  PagedCache cache(std::vector<uint16_t>& v) {
    return {v.data(), int64_t{2} * kPage * kDim * 2, int64_t{kPage} * kDim * 2, int64_t{kDim} * 2};
  }
  PagedCache index_cache() { return {index_.data(), int64_t{2} * kPage * 8, int64_t{kPage} * 8, 8}; }
  static PagedRows rows(std::vector<uint16_t>& v, int64_t heads) {
    return {v.data(), 2 * heads * kDim * 2, heads * kDim * 2, int64_t{kDim} * 2};
  }
  PagedArgs args() {
    PagedArgs a;
    a.shape = s_;
    a.q = rows(q_, 4);
    a.k_new = rows(k_new_, 2);
    a.v_new = rows(v_new_, 2);
    a.k = cache(k_);
    a.v = cache(v_);
    a.index = index_cache();
    a.block_table = table_.data();
    a.block_table_stride = 6;
    a.lengths = lengths_.data();
    a.dims = dims_;
    a.index_scale = scale_;
    a.scale = 0.125F;
    a.out = rows(out_, 4);
    a.lse = lse_.data();
    a.kept = kept_.data();
    return a;
  }
  size_t row(int seq, int head, int token) const {
    return static_cast<size_t>(((table_[seq * 6 + token / kPage] * 2 + head) * kPage + token % kPage) * kDim);
  }

  PagedShape s_;
  std::mt19937 random_{7};
  std::normal_distribution<float> normal_;
  std::vector<int32_t> lengths_, table_, kept_;
  std::vector<uint16_t> k_, v_, q_, k_new_, v_new_, out_;
  std::vector<int8_t> index_;
  std::vector<float> lse_;
  alignas(16) int16_t dims_[16] = {};
  alignas(16) float scale_[16] = {};
};

TEST_F(PagedReference, AppendsScoresSelectsAndAttends) {
  paged_decode_ref(args());
  for (int seq = 0; seq < 2; ++seq) {
    for (int i = 0; i < 2; ++i) {
      const int position = lengths_[seq] - 2 + i;
      for (int kv = 0; kv < 2; ++kv) {
        const size_t from = static_cast<size_t>(((seq * 2 + i) * 2 + kv) * kDim);
        EXPECT_EQ(std::memcmp(&k_[row(seq, kv, position)], &k_new_[from], kDim * 2), 0) << "appended";
        EXPECT_EQ(std::memcmp(&v_[row(seq, kv, position)], &v_new_[from], kDim * 2), 0);
        const auto key = [&](int t, int d) { return bf16_to_f32(k_[row(seq, kv, t) + dims_[kv * 8 + d]]); };
        const auto code = [&](int t, int d) {
          return static_cast<double>(std::lrint(std::clamp(key(t, d) * (1.0F / scale_[kv * 8 + d]), -127.0F, 127.0F)));
        };
        for (int d = 0; d < 8; ++d) EXPECT_EQ(index_[row(seq, kv, position) / kDim * 8 + d], code(position, d));

        // The tokens, by sorting plain scores (q is rounded to 16 bits, so scores nearer than that may swap).
        const int seen = position + 1;
        std::set<int> want;
        std::vector<std::pair<double, int>> scores;
        for (int t = 0; t < seen; ++t) {
          if (seen <= 6 || t < 1 || t >= seen - 2) {
            want.insert(t);
            continue;
          }
          double best = -1e30;
          for (int h = 2 * kv; h < 2 * kv + 2; ++h) {
            double sum = 0;
            for (int d = 0; d < 8; ++d) {
              const float x = bf16_to_f32(q_[static_cast<size_t>(((seq * 2 + i) * 4 + h) * kDim + dims_[kv * 8 + d])]);
              sum += static_cast<double>(x) * scale_[kv * 8 + d] * code(t, d);
            }
            best = std::max(best, sum);
          }
          scores.emplace_back(best, t);
        }
        std::sort(scores.rbegin(), scores.rend());
        for (size_t j = 0; j < 3 && j < scores.size(); ++j) want.insert(scores[j].second);
        const int32_t* kept = &kept_[static_cast<size_t>(((seq * 2 + i) * 2 + kv) * 6)];
        std::set<int> got(kept, kept + 6);
        got.erase(-1);
        EXPECT_EQ(got, want);

        for (int h = 2 * kv; h < 2 * kv + 2; ++h) {
          const size_t head = static_cast<size_t>((seq * 2 + i) * 4 + h);
          double sum = 0;
          std::vector<double> out(kDim);
          for (const int t : want) {
            double a = 0;
            for (int d = 0; d < kDim; ++d) a += bf16_to_f32(q_[head * kDim + d]) * bf16_to_f32(k_[row(seq, kv, t) + d]);
            sum += std::exp(a * 0.125);
            for (int d = 0; d < kDim; ++d) out[d] += std::exp(a * 0.125) * bf16_to_f32(v_[row(seq, kv, t) + d]);
          }
          EXPECT_NEAR(lse_[head], std::log(sum), 1e-5);
          for (int d = 0; d < kDim; ++d) EXPECT_NEAR(bf16_to_f32(out_[head * kDim + d]), out[d] / sum, 0.01);
        }
      }
    }
  }
}

TEST_F(PagedReference, LeavesInactiveQueriesAlone) {
  lengths_ = {1, 0};  // token 0 of sequence 0 lies before it starts
  const auto k = k_;
  paged_decode_ref(args());
  for (const int row : {0, 2, 3}) {
    for (int h = 0; h < 4; ++h) {
      EXPECT_EQ(lse_[row * 4 + h], -std::numeric_limits<float>::infinity());
      for (int d = 0; d < kDim; ++d) EXPECT_EQ(out_[static_cast<size_t>((row * 4 + h) * kDim + d)], 0);
    }
    for (int j = 0; j < 12; ++j) EXPECT_EQ(kept_[row * 12 + j], -1);
  }
  EXPECT_EQ(kept_[12], 0);
  for (size_t i = 0; i < k.size(); ++i) {
    const bool first = (i >= row(0, 0, 0) && i < row(0, 0, 0) + kDim) || (i >= row(0, 1, 0) && i < row(0, 1, 0) + kDim);
    EXPECT_TRUE(first || k[i] == k_[i]);
  }
}

TEST_F(PagedReference, SoftcapAndSinkLogits) {
  s_.budget = 24;  // all tokens
  PagedArgs a = args();
  const float sinks[] = {0.5F, -1.0F, 3.0F, 0.0F};
  a.softcap = 2.0F;
  a.sink_logits = sinks;
  kept_.assign(2 * 2 * 2 * 24, -7);
  a.kept = kept_.data();
  paged_decode_ref(a);
  for (int h = 0; h < 4; ++h) {
    double sum = std::exp(sinks[h]);
    for (int t = 0; t < 21; ++t) {
      double x = 0;
      for (int d = 0; d < kDim; ++d) x += bf16_to_f32(q_[(4 + h) * kDim + d]) * bf16_to_f32(k_[row(0, h / 2, t) + d]);
      sum += std::exp(2.0 * std::tanh(x * 0.125 / 2.0));
    }
    EXPECT_NEAR(lse_[4 + h], std::log(sum), 1e-5);
  }
}

TEST_F(PagedReference, RefusesWrongArguments) {
  const auto message = [&](const auto& change) -> std::string {
    PagedArgs a = args();
    change(a);
    try {
      check(a);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message([](auto&) {}), "");
  EXPECT_NE(message([](auto& a) { a.k.data = nullptr; }).find("k has no data"), std::string::npos);
  EXPECT_NE(message([](auto& a) { a.v.token_stride += 8; }).find("v rows must start at multiples of 16"),
            std::string::npos);
  EXPECT_NE(message([](auto& a) { a.v_new.data = nullptr; }).find("come together"), std::string::npos);
  EXPECT_NE(message([](auto& a) { a.block_table_stride = 5; }).find("too short for max_length"), std::string::npos);
  EXPECT_NE(message([](auto& a) { ++a.dims; }).find("16-byte aligned"), std::string::npos);
}

TEST(PagedSelect, KeepsTheBestAndNeverNan) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  alignas(16) float scores[2 * 64];
  for (float& x : scores) x = normal(random);
  for (int i = 0; i < 64; i += 2) scores[64 + i] = std::numeric_limits<float>::quiet_NaN();
  scores[7] = std::numeric_limits<float>::infinity();
  std::vector<int32_t> kept(2 * 40);
  paged_select_ref({scores, 64, 2, 64, 40, kept.data()});
  std::vector<float> sorted(scores, scores + 64);
  std::sort(sorted.rbegin(), sorted.rend());
  for (int i = 0; i < 40; ++i) EXPECT_EQ(scores[kept[static_cast<size_t>(i)]], sorted[static_cast<size_t>(i)]);
  EXPECT_EQ(std::count(kept.begin() + 40, kept.end(), -1), 8) << "32 of 64 are numbers";
}

}  // namespace
}  // namespace fasa::ops
