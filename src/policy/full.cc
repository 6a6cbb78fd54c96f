// full: exact attention over every visible row.
#include "src/ops/attend/attend.h"
#include "src/policy/decode_step.h"

namespace fasa {

DecodeReport decode_full(Context& context, const PolicySettings& /*settings*/, const DecodeStep& step) {
  ops::AttendArgs attend;
  attend.q = step.q;
  attend.k = step.k;
  attend.v = step.v;
  attend.scale = step.scale;
  attend.softcap = step.softcap;
  attend.sink_logits = step.sink_logits;
  attend.num_rows = step.k.num_rows;
  attend.bias = step.bias;
  attend.out = step.out;
  ops::attend(context, attend);
  return {.sparse = false,
          .kv_bytes = step.k.num_rows * step.k.num_heads *
                      (dtype_bytes(step.k.dtype, step.k.head_dim) + dtype_bytes(step.v.dtype, step.v.head_dim)),
          .index_bytes = 0};
}

}  // namespace fasa
