#include "src/ops/paged/paged.h"

#include "fasa/error.h"
#include "src/ops/paged/paged_layout.h"

namespace fasa::ops {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "paged decode: " + message);
}
void require(bool ok, const std::string& message) {
  if (!ok) refuse(message);
}
std::string number(int64_t x) { return std::to_string(x); }

void check_cache(const PagedCache& cache, const char* name, int64_t alignment) {
  require(cache.data != nullptr, std::string(name) + " has no data; pass the cache's first byte");
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(cache.data));
  require((address | cache.block_stride | cache.head_stride | cache.token_stride) % alignment == 0,
          std::string(name) + " rows must start at multiples of " + number(alignment) +
              " bytes; change its address or strides");
}
void check_rows(const PagedRows& rows, const char* name, int64_t alignment) {
  require(rows.data != nullptr, std::string(name) + " has no data; pass its first byte");
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(rows.data));
  require((address | rows.seq_stride | rows.token_stride | rows.head_stride) % alignment == 0,
          std::string(name) + " rows must start at multiples of " + number(alignment) +
              " bytes; change its address or strides");
}

}  // namespace

void check(const PagedShape& s) {
  require(s.num_seqs >= 1, "num_seqs is " + number(s.num_seqs) + "; give at least 1");
  require(s.num_query_tokens >= 1 && s.num_query_tokens <= kPagedMaxQueryTokens,
          "num_query_tokens is " + number(s.num_query_tokens) + "; give 1 to 8");
  require(
      s.num_kv_heads >= 1 && s.num_q_heads >= 1 && s.num_q_heads % s.num_kv_heads == 0 && s.group() <= kPagedMaxGroup,
      "num_q_heads " + number(s.num_q_heads) + " must be 1 to 16 times num_kv_heads " + number(s.num_kv_heads));
  require(s.head_dim == 64 || s.head_dim == 96 || s.head_dim == 128 || s.head_dim == 192 || s.head_dim == 256,
          "head_dim is " + number(s.head_dim) + "; give 64, 96, 128, 192 or 256");
  require(s.page_size >= 1 && s.page_size <= 256, "page_size is " + number(s.page_size) + "; give 1 to 256");
  require(static_cast<int32_t>(s.kv_type) >= 0 && static_cast<int32_t>(s.kv_type) <= 2,
          "kv_type is unknown; give bf16, f16 or fp8 e4m3");
  require(static_cast<int32_t>(s.index_type) >= 0 && static_cast<int32_t>(s.index_type) <= 3,
          "index_type is unknown; give bf16, fp8 e4m3, int8 or int4");
  require(
      s.index_dims >= 2 && s.index_dims % 2 == 0 && s.index_dims <= s.head_dim,
      "index_dims is " + number(s.index_dims) + "; give an even number (two dims a frequency chunk) up to head_dim");
  require(s.budget >= 1, "budget is " + number(s.budget) + "; give at least 1");
  require(s.sinks >= 0 && s.recent >= 0 && s.sinks <= s.budget && s.recent <= s.budget - s.sinks,
          "sinks " + number(s.sinks) + " and recent " + number(s.recent) + " must fit the budget " + number(s.budget));
  require(s.max_length >= 1 && s.max_length < (int64_t{1} << 31) - 4096,
          "max_length is " + number(s.max_length) + "; give 1 to 2^31 - 4096");
  require(s.num_q_heads <= 4096, "num_q_heads is " + number(s.num_q_heads) + "; give at most 4096");
  require(
      paged::score_rows(s) <= 65535 && static_cast<int64_t>(s.num_seqs) * s.num_query_tokens * s.num_sets() <= 65535,
      "num_seqs times num_query_tokens times the heads exceeds 65535; split the batch");
}

void check(const PagedArgs& a) {
  const PagedShape& s = a.shape;
  check(s);
  const int64_t kv = s.kv_type == PagedKvType::kF8E4M3 ? 1 : 16;
  const int64_t row = s.index_row_bytes();
  check_rows(a.q, "q", 16);
  check_rows(a.out, "out", 2);
  require((a.k_new.data == nullptr) == (a.v_new.data == nullptr),
          "k_new and v_new come together; pass both or neither");
  if (a.k_new.data != nullptr) {
    check_rows(a.k_new, "k_new", 16);
    check_rows(a.v_new, "v_new", 16);
  }
  check_cache(a.k, "k", kv);
  check_cache(a.v, "v", kv);
  check_cache(a.index, "index", row == 16 || row == 32 || row == 64 ? 16 : 1);
  require(a.block_table != nullptr && a.lengths != nullptr, "block_table and lengths must be given");
  require(
      a.block_table_stride >= (s.max_length + s.page_size - 1) / s.page_size,
      "block_table_stride " + number(a.block_table_stride) + " is too short for max_length " + number(s.max_length));
  require(a.dims != nullptr && a.index_scale != nullptr, "dims and index_scale must be given");
  require(reinterpret_cast<uintptr_t>(a.dims) % 16 == 0 && reinterpret_cast<uintptr_t>(a.index_scale) % 16 == 0,
          "dims and index_scale must be 16-byte aligned");
}

void check(const PagedIndexArgs& a) {
  check(a.shape);
  require(a.num_slots >= 0, "num_slots is negative");
  if (a.num_slots == 0) return;
  check_cache(a.k, "k", a.shape.kv_type == PagedKvType::kF8E4M3 ? 1 : 2);
  check_cache(a.index, "index", 1);
  require(a.slots != nullptr && a.dims != nullptr && a.index_scale != nullptr,
          "slots, dims and index_scale must be given");
}

void check(const PagedSelectArgs& a) {
  require(a.scores != nullptr && a.kept != nullptr, "scores and kept must be given");
  require(a.num_rows >= 1 && a.num_rows <= 65535, "give 1 to 65535 rows of scores");
  require(a.num_tokens >= 1 && a.num_tokens <= a.row_stride, "num_tokens must be 1 to row_stride");
  require(a.num_tokens <= 1 << 30, "num_tokens is " + number(a.num_tokens) + "; give at most 2^30");
  require(reinterpret_cast<uintptr_t>(a.scores) % 16 == 0 && a.row_stride % 4 == 0,
          "rows of scores must start at multiples of 16 bytes");
  require(a.budget >= 1 && a.budget <= a.num_tokens, "budget must be 1 to num_tokens");
}

int64_t paged_bytes(const PagedShape& s, const int32_t* lengths) {
  check(s);
  const int64_t kv_row = s.head_dim * (s.kv_type == PagedKvType::kF8E4M3 ? 1 : 2);
  int64_t sum = 0;
  for (int32_t b = 0; b < s.num_seqs; ++b) {
    for (int32_t i = 0; i < s.num_query_tokens; ++i) {
      const int64_t seen = int64_t{lengths[b]} - s.num_query_tokens + i + 1;
      if (seen <= 0) continue;
      // The index is read once for all query tokens, kept rows once for each.
      if (i == s.num_query_tokens - 1 && seen > s.budget) {
        sum += seen * s.num_planes() * s.index_row_bytes();
      }
      sum += std::min<int64_t>(seen, s.budget) * s.num_sets() * 2 * kv_row;
      sum += s.num_kv_heads * 2 * 2 * kv_row + s.num_planes() * s.index_row_bytes();
      sum += int64_t{2} * s.num_q_heads * s.head_dim * 2;
    }
  }
  return sum;
}

std::string paged_fused_refusal(const PagedShape& s, const PagedDevice& device) {
  const int32_t cc = device.compute_capability;
  if (cc != 90 && cc != 100 && cc != 103) return "the device has no clusters of its size";
  if (s.kv_type == PagedKvType::kF8E4M3) return "K and V are fp8";
  const int32_t d = s.index_dims;
  const bool known = s.index_type == PagedIndexType::kI4     ? d == 32 || d == 64
                     : s.index_type == PagedIndexType::kBF16 ? d == 16 || d == 32
                                                             : d == 16 || d == 32 || d == 64;
  if (!known) return "the index row has a width without a kernel";
  if (s.fcs_per_query_head != 0 && s.tokens_per_query_head == 0 && s.group() > 1) {
    return "heads with frequency chunks of their own choose tokens together";
  }
  return "";
}

std::string paged_one_launch_refusal(const PagedShape& s) {
  if (s.kv_type != PagedKvType::kBF16) return "K and V are not bf16";
  if (s.num_query_tokens != 1) return "a sequence has several query tokens";
  if (s.fcs_per_query_head != 0) return "query heads have frequency chunks of their own";
  if (s.page_size % 16 != 0) return "pages are not multiples of 16 tokens";
  const int32_t d = s.index_dims;
  const bool known = s.index_type == PagedIndexType::kI4     ? d == 32 || d == 64
                     : s.index_type == PagedIndexType::kBF16 ? false
                                                             : d == 16 || d == 32;
  if (!known) return "the index row has a width without a kernel";
  const int32_t together = s.sets_at_once() == 4 ? 4 : s.group();  // heads that one cluster serves
  if (!(s.head_dim == 128 && together <= 8) && !(s.head_dim == 64 && together <= 4)) {
    return "there is no kernel for the head size and group";
  }
  return "";
}

}  // namespace fasa::ops
