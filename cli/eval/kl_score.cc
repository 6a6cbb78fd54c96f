#include "cli/eval/kl_score.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "cli/numbers.h"

namespace fasa::cli {
namespace {

constexpr int64_t kErrorBlock = 50;

}  // namespace

void KlScore::add(const float* p, const float* q, int64_t next) {
  const double p_log_sum = log_sum_exp(p, vocab_);
  const double q_log_sum = log_sum_exp(q, vocab_);
  kl_.push_back(kl_divergence(p, p_log_sum, q, q_log_sum, vocab_));
  loss_.push_back(q_log_sum - static_cast<double>(q[next]));
  full_loss_.push_back(p_log_sum - static_cast<double>(p[next]));
  same_top_ += argmax(p, vocab_) == argmax(q, vocab_) ? 1 : 0;
}

Json KlScore::summary() const {
  Json blocks = Json::array();
  for (size_t at = 0; at < kl_.size(); at += kErrorBlock) {
    const double block = mean(std::span(kl_).subspan(at, std::min<size_t>(kErrorBlock, kl_.size() - at)));
    blocks.push_back(std::round(block * 1e6) / 1e6);
  }
  const double ppl = std::exp(mean(loss_));
  const double ppl_full = std::exp(mean(full_loss_));
  return {{"tokens", kl_.size()},
          {"kl_mean", mean(kl_)},
          {"kl_se", batch_means_error(kl_, kErrorBlock)},
          {"kl_p99", kl_.empty() ? 0.0 : quantile(kl_, 0.99)},
          {"top1_agreement", static_cast<double>(same_top_) / static_cast<double>(kl_.size())},
          {"ppl", ppl},
          {"ppl_se", ppl * batch_means_error(loss_, kErrorBlock)},
          {"ppl_full", ppl_full},
          {"ppl_full_se", ppl_full * batch_means_error(full_loss_, kErrorBlock)},
          {"kl_blocks", blocks}};
}

}  // namespace fasa::cli
