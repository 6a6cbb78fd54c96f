#include "integrations/python/csrc/tensor_args.h"

#include <limits>
#include <string>
#include <vector>

#include "fasa/error.h"

namespace fasa::python {
namespace {

using torch::headeronly::ScalarType;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "fasa.paged: " + message);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}
std::string shape_text(const Tensor& t) {
  const auto sizes = t.sizes();
  return shape_text(std::vector<int64_t>(sizes.begin(), sizes.end()));
}

// The device, and what each tensor must be.
class Checker {
 public:
  explicit Checker(const Tensor& q) : is_cpu_(q.is_cpu()), device_(q.get_device_index()) {}

  void rank(const Tensor& t, const char* name, int64_t dims, const char* meaning) const {
    if (t.is_cpu() != is_cpu_ || t.get_device_index() != device_) {
      refuse(std::string(name) + " is on another device than the first tensor; move all tensors to one device");
    }
    if (t.dim() != dims) refuse(std::string(name) + " has shape " + shape_text(t) + "; give " + meaning);
    if (t.size(dims - 1) > 1 && t.stride(dims - 1) != 1) {
      refuse(std::string(name) + " must be contiguous in its last dimension; its stride there is " +
             std::to_string(t.stride(dims - 1)));
    }
  }
  static void shape(const Tensor& t, const char* name, const std::vector<int64_t>& wanted) {
    if (shape_text(t) != shape_text(wanted)) {
      refuse(std::string(name) + " has shape " + shape_text(t) + " where the other tensors make " + shape_text(wanted));
    }
  }
  static void dtype(const Tensor& t, const char* name, ScalarType wanted, const char* dtype_name) {
    if (t.scalar_type() != wanted) refuse(std::string(name) + " must be of dtype " + dtype_name);
  }
  void dense(const Tensor& t, const char* name, const std::vector<int64_t>& wanted, ScalarType type,
             const char* dtype_name) const {
    const std::string meaning = shape_text(wanted);
    rank(t, name, static_cast<int64_t>(wanted.size()), meaning.c_str());
    shape(t, name, wanted);
    dtype(t, name, type, dtype_name);
    if (!t.is_contiguous()) refuse(std::string(name) + " must be contiguous; call .contiguous() on it");
  }

 private:
  bool is_cpu_;
  int32_t device_;
};

int32_t as_int32(int64_t value, const char* name) {
  if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
    refuse(std::string(name) + " is " + std::to_string(value) + ", outside 32 bits");
  }
  return static_cast<int32_t>(value);
}

ops::PagedKvType kv_type_of(const Tensor& k) {
  switch (k.scalar_type()) {
    case ScalarType::BFloat16:
      return ops::PagedKvType::kBF16;
    case ScalarType::Half:
      return ops::PagedKvType::kF16;
    case ScalarType::Float8_e4m3fn:
      return ops::PagedKvType::kF8E4M3;
    default:
      refuse("k_cache must be of dtype bfloat16, float16 or float8_e4m3fn");
  }
}
ops::PagedIndexType index_type_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return ops::PagedIndexType::kBF16;
    case ScalarType::Float8_e4m3fn:
      return ops::PagedIndexType::kF8E4M3;
    case ScalarType::Char:
      return ops::PagedIndexType::kI8;
    case ScalarType::Byte:
      return ops::PagedIndexType::kI4;
    default:
      refuse("the index must be of dtype int8, float8_e4m3fn, bfloat16 or uint8 (int4, two to a byte)");
  }
}

ops::PagedCache cache_of(const Tensor& t) {
  const auto bytes = static_cast<int64_t>(t.element_size());
  return {.data = t.data_ptr(),
          .block_stride = t.stride(0) * bytes,
          .head_stride = t.stride(1) * bytes,
          .token_stride = t.stride(2) * bytes};
}
ops::PagedRows rows_of(const Tensor& t) {
  const auto bytes = static_cast<int64_t>(t.element_size());
  return {.data = t.data_ptr(),
          .seq_stride = t.stride(0) * bytes,
          .token_stride = t.stride(1) * bytes,
          .head_stride = t.stride(2) * bytes};
}

// K, index, dims and scales of a DecodeCall or IndexCall. `num_q_heads` 0: it follows from the planes.
template <class Call>
void set_index_shape(const Checker& checker, const Call& call, int64_t num_q_heads, ops::PagedShape& s) {
  const Tensor& k_cache = call.k_cache;
  const Tensor& index = call.index;
  checker.rank(k_cache, "k_cache", 4, "[num_blocks, num_kv_heads, page_size, head_dim]");
  checker.rank(index, "index", 4, "[num_blocks, num_planes, page_size, values of a row]");
  checker.rank(call.dims, "dims", 2, "[num_planes, index_dims]");
  const int64_t planes = index.size(1);
  const int64_t kv_heads = k_cache.size(1);
  s.num_kv_heads = as_int32(kv_heads, "num_kv_heads");
  s.fcs_per_query_head = planes == kv_heads ? 0 : 1;
  s.num_q_heads = as_int32(num_q_heads != 0 ? num_q_heads : planes, "num_q_heads");
  if (planes != kv_heads && planes != s.num_q_heads) {
    refuse("index has " + std::to_string(planes) + " planes; give one for each of the " + std::to_string(kv_heads) +
           " KV heads or of the " + std::to_string(s.num_q_heads) + " query heads");
  }
  s.head_dim = as_int32(k_cache.size(3), "head_dim");
  s.page_size = as_int32(k_cache.size(2), "page_size");
  s.kv_type = kv_type_of(k_cache);
  s.index_type = index_type_of(call.index_dtype.value_or(index.scalar_type()));
  s.index_dims = as_int32(call.dims.size(1), "index_dims");
  const auto size = static_cast<int64_t>(index.element_size());
  if (s.index_row_bytes() % size != 0) {
    refuse("index has rows of " + std::to_string(s.index_row_bytes()) + " bytes, no multiple of its dtype's " +
           std::to_string(size) + "; give it a smaller dtype or more dims");
  }
  Checker::shape(index, "index", {k_cache.size(0), planes, k_cache.size(2), s.index_row_bytes() / size});
  checker.dense(call.dims, "dims", {planes, s.index_dims}, ScalarType::Short, "int16");
  checker.dense(call.index_scale, "index_scale", {planes, s.index_dims}, ScalarType::Float, "float32");
  ops::check(s);
  if (!k_cache.is_cpu()) return;
  const auto* values = static_cast<const int16_t*>(call.dims.data_ptr());
  for (int64_t i = 0; i < planes * s.index_dims; ++i) {
    if (values[i] < 0 || values[i] >= s.head_dim) {
      refuse("dims has the value " + std::to_string(values[i]) + "; give 0 to head_dim - 1");
    }
  }
}

// On the CPU the values can be looked at without waiting for anything.
void check_blocks(const ops::PagedArgs& a, int64_t num_blocks) {
  for (int64_t b = 0; b < a.shape.num_seqs; ++b) {
    const int64_t length = a.lengths[b];
    if (length < 0 || length > a.shape.max_length) {
      refuse("lengths has the value " + std::to_string(length) + "; give 0 to max_length " +
             std::to_string(a.shape.max_length));
    }
    for (int64_t page = 0; page * a.shape.page_size < length; ++page) {
      const int64_t block = a.block_table[b * a.block_table_stride + page];
      if (block < 0 || block >= num_blocks) {
        refuse("block_table has the value " + std::to_string(block) + " for a page in use; the cache has " +
               std::to_string(num_blocks) + " blocks");
      }
    }
  }
}

ops::PagedShape decode_shape(const Checker& checker, const DecodeCall& c) {
  checker.rank(c.q, "q", 4, "[num_seqs, num_query_tokens, num_q_heads, head_dim]");
  ops::PagedShape s;
  s.num_seqs = as_int32(c.q.size(0), "num_seqs");
  s.num_query_tokens = as_int32(c.q.size(1), "num_query_tokens");
  s.tokens_per_query_head = c.share_tokens ? 0 : 1;
  s.budget = as_int32(c.budget, "budget");
  s.sinks = as_int32(c.sinks, "sinks");
  s.recent = as_int32(c.recent, "recent");
  s.max_length = c.max_length;
  set_index_shape(checker, c, c.q.size(2), s);
  return s;
}

// Evaluated in the order of the stack: members of a braced list are.
template <class T>
T take(StableIValue*& stack) {
  return torch::stable::detail::to<T>(*stack++);
}

}  // namespace

DecodeCall read_decode_call(StableIValue* stack, bool appends) {
  using Optional = std::optional<Tensor>;
  return DecodeCall{
      .q = take<Tensor>(stack),
      .k_new = appends ? Optional(take<Tensor>(stack)) : std::nullopt,
      .v_new = appends ? Optional(take<Tensor>(stack)) : std::nullopt,
      .k_cache = take<Tensor>(stack),
      .v_cache = take<Tensor>(stack),
      .index = take<Tensor>(stack),
      .block_table = take<Tensor>(stack),
      .lengths = take<Tensor>(stack),
      .dims = take<Tensor>(stack),
      .index_scale = take<Tensor>(stack),
      .sink_logits = take<Optional>(stack),
      .out = take<Tensor>(stack),
      .lse = take<Optional>(stack),
      .kept = take<Optional>(stack),
      .budget = take<int64_t>(stack),
      .sinks = take<int64_t>(stack),
      .recent = take<int64_t>(stack),
      .max_length = take<int64_t>(stack),
      .share_tokens = take<bool>(stack),
      .scale = take<double>(stack),
      .softcap = take<double>(stack),
      .index_dtype = take<std::optional<ScalarType>>(stack),
  };
}

IndexCall read_index_call(StableIValue* stack) {
  return IndexCall{.k_cache = take<Tensor>(stack),
                   .index = take<Tensor>(stack),
                   .slots = take<Tensor>(stack),
                   .dims = take<Tensor>(stack),
                   .index_scale = take<Tensor>(stack),
                   .index_dtype = take<std::optional<ScalarType>>(stack)};
}

ops::PagedArgs decode_args(const DecodeCall& c) {
  const Checker checker(c.q);
  ops::PagedArgs a;
  a.shape = decode_shape(checker, c);
  const ops::PagedShape& s = a.shape;
  const ScalarType row_type = s.kv_type == ops::PagedKvType::kF16 ? ScalarType::Half : ScalarType::BFloat16;
  const char* row_type_name = s.kv_type == ops::PagedKvType::kF16 ? "float16, as k_cache" : "bfloat16, as k_cache asks";
  const auto rows = [&](const Tensor& t, const char* name, int64_t heads) {
    checker.rank(t, name, 4, "[num_seqs, num_query_tokens, heads, head_dim]");
    Checker::shape(t, name, {s.num_seqs, s.num_query_tokens, heads, s.head_dim});
    Checker::dtype(t, name, row_type, row_type_name);
    return rows_of(t);
  };
  a.q = rows(c.q, "q", s.num_q_heads);
  if (c.k_new) a.k_new = rows(*c.k_new, "k_new", s.num_kv_heads);
  if (c.v_new) a.v_new = rows(*c.v_new, "v_new", s.num_kv_heads);
  a.out = rows(c.out, "out", s.num_q_heads);
  checker.rank(c.v_cache, "v_cache", 4, "the shape of k_cache");
  Checker::shape(c.v_cache, "v_cache", {c.k_cache.size(0), s.num_kv_heads, s.page_size, s.head_dim});
  Checker::dtype(c.v_cache, "v_cache", c.k_cache.scalar_type(), "k_cache");
  a.k = cache_of(c.k_cache);
  a.v = cache_of(c.v_cache);
  a.index = cache_of(c.index);
  checker.rank(c.block_table, "block_table", 2, "[num_seqs, pages]");
  Checker::shape(c.block_table, "block_table", {s.num_seqs, c.block_table.size(1)});
  Checker::dtype(c.block_table, "block_table", ScalarType::Int, "int32");
  if (c.block_table.size(1) * s.page_size < s.max_length) {
    refuse("block_table has " + std::to_string(c.block_table.size(1)) + " pages of " + std::to_string(s.page_size) +
           " tokens, too few for max_length " + std::to_string(s.max_length));
  }
  a.block_table = static_cast<const int32_t*>(c.block_table.data_ptr());
  // One row, or one page, may have any stride.
  a.block_table_stride = s.num_seqs == 1 ? c.block_table.size(1) : c.block_table.stride(0);
  checker.dense(c.lengths, "lengths", {s.num_seqs}, ScalarType::Int, "int32");
  a.lengths = static_cast<const int32_t*>(c.lengths.data_ptr());
  a.dims = static_cast<const int16_t*>(c.dims.data_ptr());
  a.index_scale = static_cast<const float*>(c.index_scale.data_ptr());
  a.scale = static_cast<float>(c.scale);
  a.softcap = static_cast<float>(c.softcap);
  if (c.sink_logits) {
    checker.dense(*c.sink_logits, "sink_logits", {s.num_q_heads}, ScalarType::Float, "float32");
    a.sink_logits = static_cast<const float*>(c.sink_logits->data_ptr());
  }
  if (c.lse) {
    checker.dense(*c.lse, "lse", {s.num_seqs, s.num_query_tokens, s.num_q_heads}, ScalarType::Float, "float32");
    a.lse = static_cast<float*>(c.lse->data_ptr());
  }
  if (c.kept) {
    checker.dense(*c.kept, "kept", {s.num_seqs, s.num_query_tokens, s.num_sets(), s.budget}, ScalarType::Int, "int32");
    a.kept = static_cast<int32_t*>(c.kept->data_ptr());
  }
  ops::check(a);
  if (c.q.is_cpu()) check_blocks(a, c.k_cache.size(0));
  return a;
}

ops::PagedIndexArgs index_args(const IndexCall& c) {
  const Checker checker(c.k_cache);
  ops::PagedIndexArgs a;
  // One sequence of one token: writing the index asks for less than a decode step.
  a.shape.num_seqs = 1;
  a.shape.budget = 1;
  a.shape.max_length = 1;
  set_index_shape(checker, c, 0, a.shape);
  a.k = cache_of(c.k_cache);
  a.index = cache_of(c.index);
  checker.dense(c.slots, "slots", {c.slots.numel()}, ScalarType::Long, "int64");
  a.slots = static_cast<const int64_t*>(c.slots.data_ptr());
  a.num_slots = c.slots.numel();
  a.dims = static_cast<const int16_t*>(c.dims.data_ptr());
  a.index_scale = static_cast<const float*>(c.index_scale.data_ptr());
  ops::check(a);
  if (!c.k_cache.is_cpu()) return a;
  for (int64_t i = 0; i < a.num_slots; ++i) {
    if (a.slots[i] >= c.k_cache.size(0) * c.k_cache.size(2)) {
      refuse("slots has the value " + std::to_string(a.slots[i]) + "; the cache has " +
             std::to_string(c.k_cache.size(0) * c.k_cache.size(2)) + " rows");
    }
  }
  return a;
}

}  // namespace fasa::python
