// The table of policies. To add one: a file with its decode function, and a row.
#include <fmt/format.h>

#include <array>
#include <string>

#include "fasa/error.h"
#include "src/policy/decode_step.h"

namespace fasa {
namespace {

constexpr std::array kPolicies = {
    Policy{{PolicyKind::kFull, "full", "exact attention", false, false, "0", "n kv"}, nullptr, nullptr, decode_full},
    Policy{{PolicyKind::kFasa, "fasa", "FASA, arXiv 2602.03152, section 3", false, false, "n (r b + 2)",
            "n (r b + 2) + g B kv"},
           fasa_index,
           nullptr,
           decode_fasa},
    Policy{{PolicyKind::kOracle, "oracle", "exact top-k of q.k", false, false, "0", "n 2d + g B kv"},
           nullptr,
           nullptr,
           decode_oracle},
    Policy{
        {PolicyKind::kRandom, "random", "random tokens", false, false, "0", "g B kv"}, nullptr, nullptr, decode_random},
    Policy{
        {PolicyKind::kStreaming, "streaming", "StreamingLLM, arXiv 2309.17453, section 3.2", true, false, "0", "B kv"},
        nullptr,
        nullptr,
        decode_streaming},
    Policy{{PolicyKind::kChannels, "channels", "Double Sparsity, arXiv 2408.07092, section 3", false, false,
            "n (r b + 2)", "n (r b + 2) + g B kv"},
           channels_index,
           nullptr,
           decode_fasa},
    Policy{{PolicyKind::kLoki, "loki", "Loki, arXiv 2406.02542, section 4", false, false, "n (r b + 2) + 4 r d",
            "n (r b + 2) + g B kv"},
           loki_index,
           nullptr,
           decode_fasa},
    Policy{{PolicyKind::kKvQuant, "kvquant", "KVQuant, arXiv 2401.18079, section 3, as a scorer", false, false,
            "n (d/2 + 2)", "n (d/2 + 2) + g B kv"},
           kvquant_index,
           nullptr,
           decode_fasa},
    Policy{{PolicyKind::kSparq, "sparq", "SparQ, arXiv 2312.04985, section 4", false, false, "n (2d + 1)",
            "n 2r + g B kv"},
           nullptr,
           sparq_state,
           decode_sparq},
    Policy{{PolicyKind::kQuest, "quest", "Quest, arXiv 2406.10774, section 3.3", false, false, "n/p (4d + 8)",
            "n/p 4d + p 2d + g B kv"},
           nullptr,
           quest_state,
           decode_quest},
    Policy{{PolicyKind::kQuickLlama, "quickllama", "QuickLLaMA, arXiv 2406.07528, section 3.2", false, true,
            "n/p (2d + 8) + g W 4d", "n/p 2d + p 2d + g B kv"},
           nullptr,
           quickllama_state,
           decode_quickllama},
    Policy{{PolicyKind::kActQkv, "actqkv", "ActQKV, arXiv 2502.13542, section 3", false, true, "n/p (2d + 8) + g W 4d",
            "n/p 2d + p 2d + g B kv"},
           nullptr,
           actqkv_state,
           decode_actqkv},
    Policy{{PolicyKind::kH2o, "h2o", "H2O, arXiv 2306.14048, section 4.2", true, true, "9 n + g W 4d", "B (kv + 8)"},
           nullptr,
           h2o_state,
           decode_evicting},
    Policy{{PolicyKind::kSnapKv, "snapkv", "SnapKV, arXiv 2404.14469, section 4", true, true, "5 n + g W 4d",
            "B (kv + 4), and B W 2d every W tokens"},
           nullptr,
           snapkv_state,
           decode_evicting},
    Policy{{PolicyKind::kGraphKv, "graphkv", "GraphKV, arXiv 2509.00388, section 3", true, true, "5 n + g W 4d",
            "B (kv + 4), and B (W + B/8) 2d every W tokens"},
           nullptr,
           graphkv_state,
           decode_evicting},
    Policy{{PolicyKind::kZeroMerge, "zeromerge", "ZeroMerge (ZSMerge), arXiv 2503.10714, section 3", true, true,
            "10 n + B/8 8d + g W 4d", "7/8 B (kv + 8) + B/8 8d"},
           nullptr,
           zeromerge_state,
           decode_evicting},
};

constexpr auto kInfos = [] {
  std::array<PolicyInfo, kPolicies.size()> infos{};
  for (size_t i = 0; i < infos.size(); ++i) infos[i] = kPolicies[i].info;
  return infos;
}();

}  // namespace

std::span<const Policy> policies() { return kPolicies; }
std::span<const PolicyInfo> policy_infos() { return kInfos; }
const PolicyInfo& policy_info(PolicyKind kind) { return find_policy(kind).info; }

PolicyKind parse_policy(std::string_view name) {
  std::string known;
  for (const PolicyInfo& policy : policy_infos()) {
    if (name == policy.name) return policy.kind;
    known += std::string(known.empty() ? "" : ", ") + policy.name;
  }
  if (name == "zsmerge") return PolicyKind::kZeroMerge;  // the paper's later title
  throw Error(ErrorCode::kInvalidArgument, fmt::format("policy '{}' is not known: choose one of {}.", name, known));
}

const char* policy_name(PolicyKind kind) { return policy_info(kind).name; }

}  // namespace fasa
