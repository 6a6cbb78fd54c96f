// The paged decode step, scalar, f64 but for what paged.h fixes bit by bit (index codes, rounded queries).
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "src/core/dtype.h"
#include "src/ops/paged/paged.h"

namespace fasa::ops {
namespace {

char* cache_row(const PagedCache& c, int64_t block, int64_t head, int64_t token) {
  return static_cast<char*>(c.data) + block * c.block_stride + head * c.head_stride + token * c.token_stride;
}
char* rows_row(const PagedRows& r, int64_t seq, int64_t token, int64_t head) {
  return static_cast<char*>(r.data) + seq * r.seq_stride + token * r.token_stride + head * r.head_stride;
}
uint16_t half_bits(const char* row, int64_t i) {
  uint16_t bits = 0;
  std::memcpy(&bits, row + 2 * i, 2);
  return bits;
}
// Magnitudes of the codes 0..126; 127 is NaN.
const std::array<float, 127>& e4m3_magnitudes() {
  static const std::array<float, 127> table = [] {
    std::array<float, 127> t{};
    for (int b = 0; b < 127; ++b) t[b] = b < 8 ? std::ldexp(b, -9) : std::ldexp(8 + b % 8, b / 8 - 10);
    return t;
  }();
  return table;
}
float e4m3_to_f32(uint8_t b) {
  if ((b & 127) == 127) return std::numeric_limits<float>::quiet_NaN();
  return (b & 128) != 0 ? -e4m3_magnitudes()[b & 127] : e4m3_magnitudes()[b];
}
// Nearest code, even on a tie, clamped to +-448; NaN stays NaN.
uint8_t f32_to_e4m3(float x) {
  const int sign = std::signbit(x) ? 128 : 0;
  if (std::isnan(x)) return static_cast<uint8_t>(sign | 127);
  const auto& table = e4m3_magnitudes();
  const float magnitude = std::min(std::fabs(x), 448.0F);
  const auto above = static_cast<int>(std::lower_bound(table.begin(), table.end(), magnitude) - table.begin());
  if (above == 0) return static_cast<uint8_t>(sign);
  const double closer =
      (double{magnitude} - table[above - 1]) - (double{table[above]} - magnitude);  // to the upper one
  return static_cast<uint8_t>(sign | (closer > 0 || (closer == 0 && above % 2 == 0) ? above : above - 1));
}

float load_query(PagedKvType type, const char* row, int64_t i) {
  return type == PagedKvType::kF16 ? f16_to_f32(half_bits(row, i)) : bf16_to_f32(half_bits(row, i));
}
float load_kv(PagedKvType type, const char* row, int64_t i) {
  return type == PagedKvType::kF8E4M3 ? e4m3_to_f32(static_cast<uint8_t>(row[i])) : load_query(type, row, i);
}

void encode_row(const PagedShape& s, const int16_t* dims, const float* scale, const char* k, char* out) {
  for (int32_t i = 0; i < s.index_dims; ++i) {
    float x = load_kv(s.kv_type, k, dims[i]) * (1.0F / scale[i]);
    if (std::isnan(x)) x = 0;
    if (s.index_type == PagedIndexType::kBF16) {
      const float largest = std::bit_cast<float>(0x7F7F0000U);
      const uint16_t code = f32_to_bf16(std::clamp(x, -largest, largest));
      std::memcpy(out + int64_t{2} * i, &code, 2);
    } else if (s.index_type == PagedIndexType::kF8E4M3) {
      out[i] = static_cast<char>(f32_to_e4m3(x));
    } else if (s.index_type == PagedIndexType::kI8) {
      out[i] = static_cast<char>(std::lrint(std::clamp(x, -127.0F, 127.0F)));
    } else {
      const int code = static_cast<int>(std::lrint(std::clamp(x, -7.0F, 7.0F))) & 15;
      out[i / 2] = static_cast<char>(i % 2 == 0 ? code : (out[i / 2] & 15) | code << 4);
    }
  }
}
double decode(PagedIndexType type, const char* row, int64_t i) {
  if (type == PagedIndexType::kBF16) return bf16_to_f32(half_bits(row, i));
  if (type == PagedIndexType::kF8E4M3) return e4m3_to_f32(static_cast<uint8_t>(row[i]));
  if (type == PagedIndexType::kI8) return static_cast<int8_t>(row[i]);
  const int nibble = (row[i / 2] >> (i % 2 * 4)) & 15;
  return nibble < 8 ? nibble : nibble - 16;
}

struct Step {
  const PagedArgs& a;
  const PagedShape& s;

  int64_t block(int64_t seq, int64_t position) const {
    return a.block_table[seq * a.block_table_stride + position / s.page_size];
  }
  const char* row(const PagedCache& c, int64_t seq, int64_t head, int64_t position) const {
    return cache_row(c, block(seq, position), head, position % s.page_size);
  }
  int32_t plane(int32_t head) const { return s.fcs_per_query_head != 0 ? head : head / s.group(); }

  void append(int32_t seq, int32_t token, int64_t position) const {
    const int64_t offset = position % s.page_size;
    for (int32_t head = 0; head < s.num_kv_heads; ++head) {
      for (const auto& [from, to] : {std::pair{&a.k_new, &a.k}, std::pair{&a.v_new, &a.v}}) {
        const char* in = rows_row(*from, seq, token, head);
        char* out = cache_row(*to, block(seq, position), head, offset);
        if (s.kv_type != PagedKvType::kF8E4M3) {
          std::memcpy(out, in, static_cast<size_t>(s.head_dim) * 2);
          continue;
        }
        for (int32_t d = 0; d < s.head_dim; ++d) out[d] = static_cast<char>(f32_to_e4m3(load_query(s.kv_type, in, d)));
      }
    }
    for (int32_t p = 0; p < s.num_planes(); ++p) {
      const int32_t head = s.fcs_per_query_head != 0 ? p / s.group() : p;
      encode_row(s, a.dims + int64_t{p} * s.index_dims, a.index_scale + int64_t{p} * s.index_dims,
                 row(a.k, seq, head, position), cache_row(a.index, block(seq, position), p, offset));
    }
  }

  // q * index_scale of heads first..first+count-1, rounded as paged.h says.
  std::vector<double> queries(int32_t seq, int32_t token, int32_t first, int32_t count) const {
    std::vector<double> q;
    float largest = 0;
    for (int32_t h = first; h < first + count; ++h) {
      for (int32_t i = 0; i < s.index_dims; ++i) {
        const int64_t at = int64_t{plane(h)} * s.index_dims + i;
        const float x = load_query(s.kv_type, rows_row(a.q, seq, token, h), a.dims[at]) * a.index_scale[at];
        q.push_back(x);
        largest = std::fmax(largest, std::fabs(x));
      }
    }
    if (s.index_type == PagedIndexType::kBF16) return q;
    const bool is_fp8 = s.index_type == PagedIndexType::kF8E4M3;
    const float inverse = (is_fp8                                ? 4.0F
                           : s.index_type == PagedIndexType::kI8 ? 32512.0F
                                                                 : 127.0F) /
                          std::fmax(largest, 1e-30F);
    for (double& x : q) {
      const float scaled = static_cast<float>(x) * inverse;
      x = is_fp8 ? f16_to_f32(f32_to_f16(scaled)) : std::nearbyint(scaled);
    }
    return q;
  }

  std::vector<int32_t> keep(int32_t seq, int32_t token, int32_t set, int64_t seen) const {
    std::vector<int32_t> kept(static_cast<size_t>(std::min<int64_t>(seen, s.budget)));
    std::iota(kept.begin(), kept.end(), 0);
    if (seen <= s.budget) return kept;
    const int32_t count = s.tokens_per_query_head != 0 ? 1 : s.group();
    const int32_t first = set * count;
    const std::vector<double> q = queries(seq, token, first, count);
    std::vector<std::pair<double, int32_t>> scores;  // (-S, token)
    for (int64_t t = s.sinks; t < seen - s.recent; ++t) {
      double best = -std::numeric_limits<double>::infinity();
      for (int32_t h = 0; h < count; ++h) {
        double sum = 0;
        const char* codes = row(a.index, seq, plane(first + h), t);
        for (int32_t i = 0; i < s.index_dims; ++i) sum += q[h * s.index_dims + i] * decode(s.index_type, codes, i);
        best = std::max(best, sum);
      }
      scores.emplace_back(-best, static_cast<int32_t>(t));
    }
    const int32_t chosen = s.num_chosen();
    std::partial_sort(scores.begin(), scores.begin() + chosen, scores.end());
    for (int32_t i = 0; i < chosen; ++i) kept[s.sinks + i] = scores[i].second;
    for (int32_t i = 0; i < s.recent; ++i) kept[s.sinks + chosen + i] = static_cast<int32_t>(seen - s.recent + i);
    return kept;
  }

  void attend(int32_t seq, int32_t token, int32_t head, const std::vector<int32_t>& kept) const {
    const int32_t kv_head = head / s.group();
    const char* q = rows_row(a.q, seq, token, head);
    std::vector<double> logits;
    for (const int32_t t : kept) {
      double sum = 0;
      for (int32_t d = 0; d < s.head_dim; ++d) {
        sum += static_cast<double>(load_query(s.kv_type, q, d)) * load_kv(s.kv_type, row(a.k, seq, kv_head, t), d);
      }
      sum *= a.scale;
      logits.push_back(a.softcap > 0 ? a.softcap * std::tanh(sum / a.softcap) : sum);
    }
    double peak = -std::numeric_limits<double>::infinity();
    const bool has_sink = a.sink_logits != nullptr && !kept.empty();
    if (has_sink) peak = a.sink_logits[head];
    for (const double x : logits) peak = std::max(peak, x);
    double sum = has_sink ? std::exp(a.sink_logits[head] - peak) : 0.0;
    std::vector<double> out(static_cast<size_t>(s.head_dim));
    for (size_t i = 0; i < kept.size(); ++i) {
      const double weight = std::exp(logits[i] - peak);
      sum += weight;
      for (int32_t d = 0; d < s.head_dim; ++d) {
        out[d] += weight * load_kv(s.kv_type, row(a.v, seq, kv_head, kept[i]), d);
      }
    }
    for (int32_t d = 0; d < s.head_dim; ++d) {
      const auto x = static_cast<float>(kept.empty() ? 0.0 : out[d] / sum);
      const uint16_t bits = s.kv_type == PagedKvType::kF16 ? f32_to_f16(x) : f32_to_bf16(x);
      std::memcpy(rows_row(a.out, seq, token, head) + int64_t{2} * d, &bits, 2);
    }
    if (a.lse != nullptr) {
      a.lse[(int64_t{seq} * s.num_query_tokens + token) * s.num_q_heads + head] =
          static_cast<float>(kept.empty() ? -std::numeric_limits<double>::infinity() : peak + std::log(sum));
    }
  }
};

}  // namespace

void paged_decode_ref(const PagedArgs& args) {
  check(args);
  const PagedShape& s = args.shape;
  const Step step{args, s};
  for (int32_t seq = 0; seq < s.num_seqs; ++seq) {
    const int64_t first = int64_t{args.lengths[seq]} - s.num_query_tokens;
    for (int32_t i = 0; i < s.num_query_tokens && args.k_new.data != nullptr; ++i) {
      if (first + i >= 0) step.append(seq, i, first + i);
    }
    for (int32_t i = 0; i < s.num_query_tokens; ++i) {
      for (int32_t set = 0; set < s.num_sets(); ++set) {
        const auto kept = step.keep(seq, i, set, std::max<int64_t>(0, first + i + 1));
        const int32_t heads = s.num_q_heads / s.num_sets();
        for (int32_t head = set * heads; head < (set + 1) * heads; ++head) step.attend(seq, i, head, kept);
        if (args.kept == nullptr) continue;
        int32_t* out = args.kept + ((int64_t{seq} * s.num_query_tokens + i) * s.num_sets() + set) * s.budget;
        std::fill(std::copy(kept.begin(), kept.end(), out), out + s.budget, -1);
      }
    }
  }
}

void paged_write_index_ref(const PagedIndexArgs& args) {
  check(args);
  const PagedShape& s = args.shape;
  for (int64_t i = 0; i < args.num_slots; ++i) {
    if (args.slots[i] < 0) continue;
    const int64_t block = args.slots[i] / s.page_size;
    const int64_t offset = args.slots[i] % s.page_size;
    for (int32_t p = 0; p < s.num_planes(); ++p) {
      const int32_t head = s.fcs_per_query_head != 0 ? p / s.group() : p;
      encode_row(s, args.dims + int64_t{p} * s.index_dims, args.index_scale + int64_t{p} * s.index_dims,
                 cache_row(args.k, block, head, offset), cache_row(args.index, block, p, offset));
    }
  }
}

void paged_select_ref(const PagedSelectArgs& args) {
  check(args);
  for (int32_t r = 0; r < args.num_rows; ++r) {
    const float* scores = args.scores + r * args.row_stride;
    std::vector<std::pair<float, int32_t>> order;  // (-score, token)
    for (int32_t t = 0; t < args.num_tokens; ++t) {
      if (!std::isnan(scores[t])) order.emplace_back(-scores[t], t);
    }
    const size_t n = std::min(order.size(), static_cast<size_t>(args.budget));
    std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(n), order.end());
    int32_t* kept = args.kept + int64_t{r} * args.budget;
    std::fill(kept, kept + args.budget, -1);
    for (size_t i = 0; i < n; ++i) kept[i] = order[i].second;
  }
}

}  // namespace fasa::ops
