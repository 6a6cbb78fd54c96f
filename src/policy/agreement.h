// How a policy's choice of rows compares with the exact scores of the same decode step.
//
//   CA = |kept ∩ TopK(q.k)| / K, K = |kept|             (FASA, section 3: contextual agreement, compound)
//   mass = sum over kept rows of softmax(scale q.k)
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "src/policy/decode_step.h"

namespace fasa {

struct HeadAgreement {
  int32_t layer = 0;
  int32_t head = 0;  // query head
  int64_t queries = 0;
  double agreement = 0;  // sums over the queries
  double mass = 0;
};

class AgreementProbe {
 public:
  // `kept`: what decode_step wrote to step.kept.
  void add(Context& context, int32_t layer, const DecodeStep& step, const RowSets& kept);
  // By layer and head.
  std::vector<HeadAgreement> heads() const;
  void clear() { layers_.clear(); }

 private:
  std::map<int32_t, std::vector<HeadAgreement>> layers_;
  std::vector<float> scores_;
  std::vector<int32_t> top_;
};

}  // namespace fasa
