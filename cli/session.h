// A model with plain llama.cpp and FASA side by side in this process.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/engine.h"
#include "cli/options.h"

namespace fasa::cli {

// One policy to decode with.
struct Lane {
  std::string policy;
  PolicySettings settings;
  LlamaContext* context = nullptr;
  int64_t index_bytes = 0;
};

// What decoding in a lane read, per token.
struct ReadBytes {
  double kv = 0;  // K and V
  double index = 0;
};

class Session {
 public:
  // Where a lane `full` decodes: in the reference context, or in a context of its own.
  // kNoReference: like kShared, and without such a lane there is no reference context.
  // kOnDemand: like kShared, and the other lanes have no context until open() makes it.
  enum class Full { kShared, kOwn, kNoReference, kOnDemand };

  // Loads the model, creates the plain context `reference`, then (if a policy asks for it) loads
  // the backend and creates a context for each policy and budget.
  Session(const CommonOptions& options, const std::function<ContextOptions(const Model&)>& size, Full full);

  const Model& model() const { return *model_; }
  const std::string& profile_path() const { return profile_; }  // empty if no policy needs one
  LlamaContext& reference() { return *reference_; }
  std::vector<Lane>& lanes() { return lanes_; }

  // The lane's context, made now if it has none. An evaluation opens one lane after another, so that a long
  // list of policies needs the memory of one.
  LlamaContext& open(Lane& lane);
  void close(Lane& lane);

  // Runs `decode`, which returns how many tokens it appended to the lane, and tells what that read.
  ReadBytes measure(Lane& lane, const std::function<int64_t()>& decode);
  // Null if every policy is `full`.
  const FasaBackend* backend() const { return backend_ ? &*backend_ : nullptr; }

 private:
  CommonOptions options_;
  std::string profile_;
  ContextOptions size_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<LlamaContext> reference_;
  std::vector<std::unique_ptr<LlamaContext>> contexts_;
  std::optional<FasaBackend> backend_;
  std::vector<Lane> lanes_;
};

}  // namespace fasa::cli
