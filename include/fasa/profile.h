// The profile: what calibration found out about a model. docs/profile.md documents the file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fasa/policy.h"
#include "fasa/rope.h"

namespace fasa {

inline constexpr int kProfileVersion = 1;

// One layer of the model, sliding-window layers included (they are measured by nobody: measures is empty).
struct LayerProfile {
  int32_t layer = 0;
  // FNV-1a 64 of the layer's attention norm weights (GGUF blk.<layer>.attn_norm.weight, f32 bytes), the
  // same for every quantisation of a model and different for another model or finetune; see fingerprint().
  uint64_t fingerprint = 0;
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;
  bool sliding_window = false;
  RopeSpec rope;
  // measure ("variance", "ca256", ...) -> [num_q_heads * num_fcs(rope)], row-major. Finite, >= 0.
  std::map<std::string, std::vector<float>> measures;
  // Optional, for policies that need more than FCs; empty where sliding_window.
  // "abs_qk" -> [num_q_heads * head_dim], row-major. Finite, >= 0.
  std::map<std::string, std::vector<float>> channels;
  // "pca_pre", "pca_post" -> [num_kv_heads * axes * head_dim], row-major; 1 <= axes <= head_dim. Finite.
  std::map<std::string, std::vector<float>> bases;
};

struct Profile {
  int version = kProfileVersion;
  std::string architecture;          // GGUF general.architecture
  std::string model_name;            // GGUF general.name
  std::vector<LayerProfile> layers;  // in order of `layer`, all of the model's
  // How it was made, for people: texts, contexts, number of queries.
  std::map<std::string, std::string> provenance;

  const LayerProfile* find(int32_t layer) const;
};

uint64_t fingerprint(const void* bytes, size_t size);  // FNV-1a 64

// Throws Error(kIo | kBadFormat | kNotFound) with one sentence that names the file and what is wrong in it.
Profile load_profile(const std::string& path);
Profile parse_profile(std::string_view json, const std::string& name_for_errors);
// Writes beside the target and renames, so that nothing is ever half-written. Same profile, same bytes.
void save_profile(const Profile& profile, const std::string& path);
std::string profile_to_json(const Profile& profile);

// The FCs that a layer's index holds under `settings`: the best N_tip by settings.criterion, descending
// (ties: lower FC). [num_planes][n_tip]; num_planes is num_kv_heads if settings.share_fcs, else num_q_heads.
// Shared by a group: the max over its heads of the measure normalised by the head's sum.
// Throws Error(kInvalidArgument) if the profile has no such criterion.
std::vector<std::vector<int32_t>> dominant_fcs(const LayerProfile& layer, const PolicySettings& settings);

// The value of every FC behind that choice, [num_planes][num_fcs].
std::vector<std::vector<double>> fc_shares(const LayerProfile& layer, const PolicySettings& settings);

// `settings` as they hold in one layer: its N_tip and budget (n_tip_by_layer, budget_slope), under the same totals over
// the layers of the profile that are neither dense nor windowed. A context within the budget is attended to in full by all of them.
PolicySettings layer_settings(const Profile& profile, const PolicySettings& settings, int32_t layer);

// The mean of `settings.weights` over a plane's heads for its dominant FCs, [num_planes][n_tip]; empty without weights.
std::vector<float> fc_weights(const LayerProfile& layer, const PolicySettings& settings);

// dominant_fcs as dims of the key, for IndexView::dims: [num_planes][n_tip][2].
std::vector<int16_t> dominant_dims(const LayerProfile& layer, const PolicySettings& settings);

}  // namespace fasa
