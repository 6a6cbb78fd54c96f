// attend, scalar, f64, two passes. See attend.h for the formula.
#include <algorithm>
#include <cmath>
#include <vector>

#include "fasa/rope.h"
#include "src/core/dtype.h"
#include "src/ops/attend/attend_impl.h"

namespace fasa::ops {

std::string attend_ref_supports(const AttendArgs& /*args*/) { return {}; }

void attend_ref(Context& /*context*/, const AttendArgs& args) {
  for (int64_t head = 0; head < args.q.num_heads; ++head) {
    const int64_t kv_head = kv_head_of(head, args.q.num_heads, args.k.num_heads);
    const int64_t set = args.rows == nullptr ? 0 : head * args.num_sets / args.q.num_heads;
    const int64_t count = args.rows == nullptr ? args.num_rows : args.num_kept[set];
    const auto row_of = [&](int64_t i) { return args.rows == nullptr ? i : args.rows[set * args.rows_stride + i]; };
    const double sink = args.sink_logits == nullptr ? -INFINITY : args.sink_logits[head];

    std::vector<double> logits(count);
    double max = sink;
    for (int64_t i = 0; i < count; ++i) {
      const std::byte* key = args.k.at(row_of(i), kv_head);
      double dot = 0;
      for (int64_t d = 0; d < args.k.head_dim; ++d)
        dot += static_cast<double>(args.q.at(head)[d]) * load_value(args.k.dtype, key, d);
      dot *= args.scale;
      if (args.softcap > 0) dot = args.softcap * std::tanh(dot / args.softcap);
      const double bias = args.rows == nullptr && args.bias != nullptr ? args.bias[i] : 0.0;
      logits[i] = bias == -INFINITY ? -INFINITY : dot + bias;
      max = std::max(max, logits[i]);
      if (args.logits != nullptr) args.logits[head * args.rows_stride + i] = static_cast<float>(logits[i]);
    }
    double sum = max == -INFINITY ? 0.0 : std::exp(sink - max);
    std::vector<double> out(args.v.head_dim);
    for (int64_t i = 0; i < count; ++i) {
      if (logits[i] == -INFINITY) continue;
      const double p = std::exp(logits[i] - max);
      const std::byte* value = args.v.at(row_of(i), kv_head);
      sum += p;
      for (int64_t d = 0; d < args.v.head_dim; ++d) out[d] += p * load_value(args.v.dtype, value, d);
    }
    for (int64_t d = 0; d < args.v.head_dim; ++d)
      args.out.at(head)[d] = sum == 0 ? 0.0F : static_cast<float>(out[d] / sum);
    if (args.lse != nullptr) args.lse[head] = static_cast<float>(max + std::log(sum));
  }
}

}  // namespace fasa::ops
