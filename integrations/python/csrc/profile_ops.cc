// Calibration and profiles for Python: src/calibrate behind operators, with a profile as the text of its file.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <vector>

#include "fasa/error.h"
#include "fasa/profile.h"
#include "integrations/python/csrc/tensor_args.h"
#include "src/calibrate/statistics.h"

namespace fasa::python {
namespace {

using torch::headeronly::ScalarType;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "fasa.calibrate_from_tensors: " + message);
}

// torch's own threads, so that calibration brings none.
class TorchExecutor : public Executor {
 public:
  int num_workers() const override { return static_cast<int>(torch::stable::get_num_threads()); }
  void run(int64_t num_tasks, TaskRef task) override {
    torch::stable::parallel_for(0, num_tasks, 1, [&](int64_t begin, int64_t end) {
      uint32_t worker = 0;
      TORCH_ERROR_CODE_CHECK(torch_get_thread_idx(&worker));
      for (int64_t i = begin; i < end; ++i) task(i, static_cast<int>(worker));
    });
  }
};

DType dtype_of(const Tensor& k) {
  switch (k.scalar_type()) {
    case ScalarType::Float:
      return DType::kF32;
    case ScalarType::Half:
      return DType::kF16;
    case ScalarType::BFloat16:
      return DType::kBF16;
    default:
      refuse("k must be of dtype float32, float16 or bfloat16");
  }
}

struct LayerTensors {
  Tensor q;        // f32 [num_windows, num_queries, num_q_heads, head_dim]
  Tensor k;        // [num_windows, num_tokens, num_kv_heads, head_dim]
  Tensor visible;  // int64 [num_queries]: the tokens that each query sees
};

// q and visible contiguous, k contiguous in its last dimension (the Python side sees to it).
LayerProfile measure(const LayerTensors& t, RopeSpec rope, const calibrate::StatisticsSettings& settings) {
  if (!t.q.is_cpu() || !t.k.is_cpu() || !t.visible.is_cpu()) refuse("q, k and positions must be on the CPU");
  rope.head_dim = static_cast<int32_t>(t.k.size(3));
  if (rope.rotary_dim == 0) rope.rotary_dim = rope.head_dim;
  LayerProfile layer;
  layer.num_q_heads = static_cast<int32_t>(t.q.size(2));
  layer.num_kv_heads = static_cast<int32_t>(t.k.size(2));
  layer.rope = rope;
  calibrate::LayerStatistics statistics(layer.num_q_heads, layer.num_kv_heads, rope, settings);
  Context context(std::make_unique<TorchExecutor>());
  const auto bytes = static_cast<int64_t>(t.k.element_size());
  const auto* visible = static_cast<const int64_t*>(t.visible.data_ptr());
  for (int64_t w = 0; w < t.k.size(0); ++w) {
    const CacheView k{.data = static_cast<std::byte*>(t.k.data_ptr()) + w * t.k.stride(0) * bytes,
                      .dtype = dtype_of(t.k),
                      .num_rows = t.k.size(1),
                      .num_heads = t.k.size(2),
                      .head_dim = t.k.size(3),
                      .row_stride = t.k.stride(1) * bytes,
                      .head_stride = t.k.stride(2) * bytes};
    std::vector<calibrate::QuerySample> queries;
    for (int64_t i = 0; i < t.q.size(1); ++i) {
      float* q = static_cast<float*>(t.q.data_ptr()) + (w * t.q.size(1) + i) * t.q.size(2) * t.q.size(3);
      queries.push_back(
          {.q = {.data = q, .num_heads = t.q.size(2), .head_dim = t.q.size(3), .head_stride = t.q.size(3)},
           .num_rows = visible[i]});
    }
    statistics.add(context, k, queries);
  }
  layer.measures = statistics.measures();
  return layer;
}

RopeLayout layout_of(const std::string& name) {
  if (name == "half") return RopeLayout::kHalf;
  if (name == "interleaved") return RopeLayout::kInterleaved;
  refuse("layout '" + name + "' is not known; give 'half' or 'interleaved'");
}

// provenance: key, value, key, value, ...
std::string calibrate_layers(std::vector<Tensor> q, std::vector<Tensor> k, std::vector<Tensor> visible,
                             std::vector<Tensor> norm_weights, std::vector<int64_t> numbers, std::string layout,
                             std::string file_layout, int64_t rotary_dim, double freq_base, int64_t sinks,
                             int64_t recent, std::string architecture, std::string model_name,
                             std::vector<std::string> provenance) {
  RopeSpec rope;
  rope.layout = layout_of(layout);
  rope.rotary_dim = static_cast<int32_t>(rotary_dim);
  rope.freq_base = freq_base;
  Profile profile;
  profile.architecture = architecture;
  profile.model_name = model_name;
  for (size_t i = 0; i + 1 < provenance.size(); i += 2) profile.provenance[provenance[i]] = provenance[i + 1];
  for (size_t i = 0; i < q.size(); ++i) {
    LayerProfile layer = measure({q[i], k[i], visible[i]}, rope, {.sinks = sinks, .recent = recent});
    layer.layer = static_cast<int32_t>(numbers[i]);
    layer.rope.layout = layout_of(file_layout);
    if (!norm_weights.empty()) {
      const Tensor& weights = norm_weights[i];
      layer.fingerprint = fingerprint(weights.data_ptr(), static_cast<size_t>(weights.numel()) * sizeof(float));
    }
    profile.layers.push_back(std::move(layer));
  }
  return profile_to_json(profile);
}

std::string profile_parse(std::string json, std::string name) { return profile_to_json(parse_profile(json, name)); }
std::string profile_load(std::string path) { return profile_to_json(load_profile(path)); }
void profile_save(std::string json, std::string path) { save_profile(parse_profile(json, path), path); }

// int16 [num_planes, 2 * N_tip]
Tensor profile_dims(std::string json, int64_t number, int64_t fc_count, double fc_fraction, bool share_fcs,
                    std::string criterion) {
  const Profile profile = parse_profile(json, "the profile");
  const LayerProfile* layer = profile.find(static_cast<int32_t>(number));
  if (layer == nullptr) {
    throw Error(ErrorCode::kNotFound, "The profile has no layer " + std::to_string(number) + ": leave it dense.");
  }
  PolicySettings settings;
  settings.fc_count = fc_count;
  settings.fc_fraction = fc_fraction;
  settings.share_fcs = share_fcs;
  settings.criterion = criterion;
  check(settings);
  const std::vector<int16_t> dims = dominant_dims(*layer, settings);
  const int64_t planes = share_fcs ? layer->num_kv_heads : layer->num_q_heads;
  const int64_t size[] = {planes, static_cast<int64_t>(dims.size()) / planes};
  Tensor result = torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(size, 2), ScalarType::Short);
  std::copy(dims.begin(), dims.end(), static_cast<int16_t*>(result.data_ptr()));
  return result;
}

}  // namespace
}  // namespace fasa::python

STABLE_TORCH_LIBRARY_FRAGMENT(fasa, m) {
  m.def(
      "calibrate_layers(Tensor[] q, Tensor[] k, Tensor[] visible, Tensor[] norm_weights, int[] numbers, str layout, "
      "str file_layout, int rotary_dim, float freq_base, int sinks, int recent, str architecture, str model_name, "
      "str[] provenance) -> str");
  m.def("profile_parse(str json, str name) -> str");
  m.def("profile_load(str path) -> str");
  m.def("profile_save(str json, str path) -> ()");
  m.def("profile_dims(str json, int number, int fc_count, float fc_fraction, bool share_fcs, str criterion) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fasa, CompositeExplicitAutograd, m) {
  m.impl("calibrate_layers", TORCH_BOX(&fasa::python::calibrate_layers));
  m.impl("profile_parse", TORCH_BOX(&fasa::python::profile_parse));
  m.impl("profile_load", TORCH_BOX(&fasa::python::profile_load));
  m.impl("profile_save", TORCH_BOX(&fasa::python::profile_save));
  m.impl("profile_dims", TORCH_BOX(&fasa::python::profile_dims));
}
