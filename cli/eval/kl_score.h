// How far a policy's next-token distributions are from those of full attention.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/eval/results.h"

namespace fasa::cli {

class KlScore {
 public:
  explicit KlScore(int64_t vocab) : vocab_(vocab) {}

  // p: logits of full attention, q: of the policy; `next` is the text's token there.
  void add(const float* p, const float* q, int64_t next);

  // tokens, kl_mean, kl_se, kl_p99, top1_agreement, ppl, ppl_se, ppl_full, ppl_full_se, kl_blocks. Standard errors are from the
  // means of blocks of 50 tokens, because neighbours are correlated; kl_blocks are these means, which two policies on the same
  // text may be compared by, block by block.
  Json summary() const;
  const std::vector<double>& kl() const { return kl_; }

 private:
  int64_t vocab_;
  std::vector<double> kl_;
  std::vector<double> loss_;       // -log q(next)
  std::vector<double> full_loss_;  // -log p(next)
  int64_t same_top_ = 0;
};

}  // namespace fasa::cli
