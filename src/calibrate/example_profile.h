// A small valid profile for tests.
#pragma once

#include "fasa/profile.h"

namespace fasa {

inline Profile example_profile() {
  Profile profile;
  profile.architecture = "llama";
  profile.model_name = "An \"example\" \xC3\xA9";
  profile.provenance = {{"texts", "prose.txt"}, {"windows", "4"}};
  for (int32_t l = 0; l < 3; ++l) {
    LayerProfile layer;
    layer.layer = l;
    layer.fingerprint = 0xfedcba9876543210U + static_cast<uint64_t>(l);
    layer.num_q_heads = 4;
    layer.num_kv_heads = 2;
    layer.sliding_window = l == 1;
    layer.rope = {RopeLayout::kInterleaved, 8, 6, 10000.0};
    for (const char* name : {"ca256", "energy"}) {
      if (layer.sliding_window) continue;
      std::vector<float>& values = layer.measures[name];
      for (int i = 0; i < 16; ++i) values.push_back(static_cast<float>((i * 7 + l) % 16) / 7.0F);
    }
    if (!layer.sliding_window) {
      for (int i = 0; i < 32; ++i) layer.channels["abs_qk"].push_back(static_cast<float>((i * 5 + l) % 32) / 9.0F);
      for (int i = 0; i < 2 * 3 * 8; ++i) layer.bases["pca_post"].push_back(static_cast<float>(i % 7 - 3) / 11.0F);
    }
    profile.layers.push_back(layer);
  }
  return profile;
}

}  // namespace fasa
