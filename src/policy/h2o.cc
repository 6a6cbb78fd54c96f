// h2o: the heavy hitters, rows that got most attention so far, and the recent ones (H2O, arXiv 2306.14048, section 4.2,
// algorithm 1: of S + {i} the row of the least accumulated attention is dropped).
//
//   F[g, t] = sum over the queries so far and the query heads of KV head g of their softmax weight on row t
//
// Weights of decode steps are softmax over the rows left, as in the paper. Simplified: of the prompt only the last
// `window` queries are accumulated (the paper: all of them); a KV head's query heads share their rows.
#include <memory>

#include "src/policy/live_rows.h"

namespace fasa {
namespace {

class H2oState final : public LiveRows {
 public:
  using LiveRows::LiveRows;

 protected:
  int64_t rank(Context& context, const PolicySettings& /*settings*/, const DecodeStep& step, const RowSets& live,
               float* ranks) override {
    return rank_by_mass(context, step, live, ranks);
  }
};

}  // namespace

std::unique_ptr<RowState> h2o_state(const LayerProfile& layer, int64_t num_rows, const PolicySettings& settings) {
  return std::make_unique<H2oState>(LiveShape{.num_rows = num_rows,
                                              .num_q_heads = layer.num_q_heads,
                                              .num_kv_heads = layer.num_kv_heads,
                                              .head_dim = layer.rope.head_dim,
                                              .window = settings.window,
                                              .accumulates = true});
}

}  // namespace fasa
