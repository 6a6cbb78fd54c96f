// Host side of libfasa_cuda: picks kernels, divides the workspace, launches.
#include <algorithm>
#include <string>

#include "fasa/error.h"
#include "src/ops/paged/paged_generic.cuh"
#include "src/ops/paged/paged_kernels.cuh"
#include "src/ops/paged/paged_layout.h"
#include "src/ops/paged/paged_select.cuh"

namespace fasa::ops {
namespace {

void succeed(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // not also the next call's failure
    throw Error(ErrorCode::kUnsupported,
                std::string("paged decode: ") + what + " failed: " + cudaGetErrorString(status));
  }
}

struct Launch {
  dim3 grid;
  int64_t threads = 0;
  int64_t shared_bytes = 0;
  int32_t cluster = 1;
  bool overlaps = true;  // starts while the kernel before it ends (and waits for its results itself)
};

template <class Params>
void launch(void (*kernel)(const Params), const Launch& l, const Params& params, cudaStream_t stream) {
  if (l.shared_bytes > 48 * 1024) {
    succeed(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(l.shared_bytes)),
            "setting the shared memory of a kernel");
  }
  if (l.cluster > 8) {
    succeed(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "allowing clusters of 16");
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (l.overlaps) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (l.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim = {static_cast<unsigned>(l.cluster), 1, 1};
    ++count;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = l.grid;
  config.blockDim = dim3(static_cast<unsigned>(l.threads));
  config.dynamicSmemBytes = static_cast<size_t>(l.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  succeed(cudaLaunchKernelEx(&config, kernel, params), "launching a kernel");
}

// Consecutive pieces of the caller's workspace.
class Pieces {
 public:
  explicit Pieces(void* memory) : next_(static_cast<char*>(memory)) {
    if (memory == nullptr || reinterpret_cast<uintptr_t>(memory) % 256 != 0) {
      throw Error(ErrorCode::kInvalidArgument,
                  "paged decode: pass a workspace of plan.workspace_bytes, aligned to 256 bytes");
    }
  }
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return piece;
  }

 private:
  char* next_;
};

// token / page_size for tokens below 2^31 (paged_device.cuh, place_of): factor = ceil(2^(31 + shift) / page_size), where
// shift makes it a full 32-bit word or, for powers of two, exact.
template <class Params>
void set_page_division(int32_t page_size, Params& params) {
  int32_t shift = 0;
  while ((1 << shift) < page_size) ++shift;
  params.page_factor = static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + page_size - 1) / page_size);
  params.page_shift = shift;
}

paged::ScoreKernel score_kernel_of(const PagedShape& s) {
  const int heads = s.fcs_per_query_head != 0 ? 1 : s.group();  // that one row scores
  const int sets = s.sets_at_once();
  switch (s.index_type) {
    case PagedIndexType::kBF16:
      return paged::score_kernel_bf16(s.index_dims, heads, sets);
    case PagedIndexType::kF8E4M3:
      return paged::score_kernel_fp8(s.index_dims, heads, sets);
    case PagedIndexType::kI8:
      return paged::score_kernel_int8(s.index_dims, heads, sets);
    case PagedIndexType::kI4:
      return paged::score_kernel_int4(s.index_dims, heads, sets);
  }
  return nullptr;
}
paged::AttendKernel attend_kernel_of(const PagedShape& s, bool alone) {
  const bool is_f16 = s.kv_type == PagedKvType::kF16;
  switch (s.head_dim) {
    case 64:
      return paged::attend_kernel_64(is_f16);
    case 96:
      return paged::attend_kernel_96(is_f16);
    case 128:
      return paged::attend_kernel_128(is_f16, alone);
    case 192:
      return paged::attend_kernel_192(is_f16);
    default:
      return paged::attend_kernel_256(is_f16);
  }
}

paged::StepKernel step_kernel_of(const PagedShape& s, const PagedPlan& p) {
  if (s.kv_type != PagedKvType::kBF16) return nullptr;
  switch (s.index_type) {
    case PagedIndexType::kI8:
      return paged::step_kernel_int8(s.head_dim, s.index_dims, s.group(), s.sets_at_once(), p.ring, p.key_bytes);
    case PagedIndexType::kI4:
      return paged::step_kernel_int4(s.head_dim, s.index_dims, s.group(), s.sets_at_once(), p.ring, p.key_bytes);
    case PagedIndexType::kF8E4M3:
      return paged::step_kernel_fp8(s.head_dim, s.index_dims, s.group(), s.sets_at_once(), p.ring, p.key_bytes);
    default:
      return nullptr;
  }
}
[[noreturn]] void refuse_plan() {
  throw Error(ErrorCode::kInvalidArgument, "paged decode: the plan is for another shape; make one with paged_plan");
}

void decode_fused(const PagedArgs& args, const PagedPlan& plan, void* workspace, cudaStream_t stream) {
  const PagedShape& s = args.shape;
  PagedPlan same = plan;
  complete_plan(s, same);
  if (plan.score_ctas < 1 || plan.cluster < 1 || same != plan || !paged_keys_fit(s, plan)) refuse_plan();
  const int64_t tokens = static_cast<int64_t>(s.num_seqs) * s.num_query_tokens;
  const int64_t sets = tokens * s.num_sets();
  paged::StepParams params;
  params.a = args;
  params.plan = plan;
  set_page_division(s.page_size, params);
  params.layout = paged::attend_layout(s, plan);
  constexpr float kLog2E = 1.44269504F;
  params.score_factor = args.softcap > 0 ? args.scale / args.softcap : args.scale * kLog2E;
  params.score_cap = args.softcap > 0 ? args.softcap * kLog2E : 0.0F;
  params.cta_factor = 0xFFFFFFFFU / static_cast<uint32_t>(plan.score_ctas);
  const auto factor = [](int64_t n) { return static_cast<uint32_t>(((int64_t{1} << 31) + n - 1) / n); };
  params.group = s.group();
  params.cluster_factor = factor(plan.cluster);
  params.lead_rate = static_cast<float>(plan.lead_ns) / static_cast<float>(s.max_length);
  params.sample_rate = 2.0F / static_cast<float>(std::max(1, s.num_chosen()));
  params.rows_of_token = static_cast<int32_t>(plan.score_rows / tokens);
  params.row_factor = factor(params.rows_of_token);
  params.attend_factor = factor(plan.attend_rows / tokens);
  params.group_factor = factor(s.group());
  // Beside the rows: CTAs for the new tokens, a warp a row (paged_score.cuh).
  const int32_t warps = plan.score_ctas * (paged::kThreads / 32);
  const int32_t rows_for_new = (params.rows_of_token + warps - 1) / warps;
  if (plan.path == PagedPath::kOneLaunch) {
    const paged::StepKernel step = step_kernel_of(s, plan);
    const bool fits = plan.cluster == plan.score_ctas && plan.cluster <= paged::team_ctas(s.sets_at_once());
    if (step == nullptr || !fits || !paged_one_launch_refusal(s).empty()) refuse_plan();
    launch(step,
           {.grid = dim3(static_cast<unsigned>(plan.attend_rows * plan.cluster)),
            .threads = paged::kThreads,
            .shared_bytes = plan.attend_smem + plan.score_smem,
            .cluster = plan.cluster},
           params, stream);
    return;
  }
  Pieces pieces(workspace);
  params.slots = pieces.take<uint2>(sets * plan.entries());
  params.bounds = pieces.take<uint4>(sets * plan.lists());
  const paged::ScoreKernel score = score_kernel_of(s);
  if (score == nullptr) refuse_plan();
  launch(score,
         {.grid = dim3(static_cast<unsigned>(plan.score_ctas * tokens),
                       static_cast<unsigned>(params.rows_of_token + rows_for_new)),
          .threads = paged::kThreads,
          .shared_bytes = plan.score_smem},
         params, stream);
  launch(attend_kernel_of(s, plan.attend_alone != 0),
         {.grid = dim3(static_cast<unsigned>(plan.attend_rows * plan.cluster)),
          .threads = paged::kThreads,
          .shared_bytes = plan.attend_smem,
          .cluster = plan.cluster},
         params, stream);
}

void decode_generic(const PagedArgs& args, Pieces pieces, cudaStream_t stream) {
  const PagedShape& s = args.shape;
  const int64_t sets = static_cast<int64_t>(s.num_seqs) * s.num_query_tokens * s.num_sets();
  paged::GenericParams params;
  params.a = args;
  set_page_division(s.page_size, params);
  params.keys = pieces.take<paged::u32>(sets * s.max_length);
  params.list = pieces.take<int32_t>(sets * s.budget);
  params.counts = pieces.take<int32_t>(sets);
  paged::launch_generic(params, stream);
  succeed(cudaPeekAtLastError(), "launching a kernel");
}

}  // namespace

namespace {

// Clusters of `size` CTAs with so many bytes of shared memory each that run at once; 0 where there are none.
int32_t clusters_at_once(int size, int bytes) {
  const auto kernel = reinterpret_cast<const void*>(paged::step_kernel_int8(128, 32, 4, 1, 0, 4));
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(size));
  config.blockDim = dim3(paged::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  const bool known = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
                     cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess &&
                     cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess;
  cudaGetLastError();
  return known ? count : 0;
}
void count_clusters(int32_t ordinal, PagedDevice& device) {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(ordinal) != cudaSuccess) return;
  constexpr int kHalf = 110 * 1024;  // of an SM's shared memory
  for (int size = 1; size <= 16; ++size) {
    device.clusters_alone[size - 1] = clusters_at_once(size, 2 * kHalf);
    device.clusters_paired[size - 1] = clusters_at_once(size, kHalf);
  }
  cudaSetDevice(before);
}

}  // namespace

PagedDevice paged_device(int32_t ordinal) {
  int major = 0;
  int minor = 0;
  PagedDevice device;
  succeed(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal), "asking the device");
  succeed(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal), "asking the device");
  succeed(cudaDeviceGetAttribute(&device.num_sms, cudaDevAttrMultiProcessorCount, ordinal), "asking the device");
  device.compute_capability = 10 * major + minor;
  int khz = 0;
  int bits = 0;
  succeed(cudaDeviceGetAttribute(&khz, cudaDevAttrMemoryClockRate, ordinal), "asking the device");
  succeed(cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, ordinal), "asking the device");
  device.memory_gbs = static_cast<int32_t>(int64_t{khz} * bits / 4 / 1000000);  // two transfers a clock, 8 bits a byte
  if (device.compute_capability >= 90) count_clusters(ordinal, device);
  return device;
}

void paged_decode_cuda(const PagedArgs& args, const PagedPlan& plan, void* workspace, void* stream) {
  check(args);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (plan.path != PagedPath::kGeneric) {
    decode_fused(args, plan, workspace, cuda_stream);
  } else {
    decode_generic(args, Pieces(workspace), cuda_stream);
  }
}

void paged_write_index_cuda(const PagedIndexArgs& args, void* stream) {
  check(args);
  paged::launch_write_index(args, static_cast<cudaStream_t>(stream));
  succeed(cudaPeekAtLastError(), "launching a kernel");
}

void paged_select_cuda(const PagedSelectArgs& args, const PagedSelectPlan& plan, void* workspace, void* stream) {
  check(args);
  Pieces pieces(workspace);
  paged::SelectParams params;
  params.a = args;
  params.plan = plan;
  params.slots = pieces.take<uint2>(int64_t{args.num_rows} * plan.score_ctas * plan.slots);
  params.bounds = pieces.take<uint4>(int64_t{args.num_rows} * plan.score_ctas);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const auto rows = static_cast<unsigned>(args.num_rows);
  launch(paged::select_prune_kernel(),
         {.grid = dim3(static_cast<unsigned>(plan.score_ctas), rows),
          .threads = paged::kThreads,
          .shared_bytes = plan.score_smem},
         params, cuda_stream);
  launch(paged::select_pick_kernel(),
         {.grid = dim3(rows), .threads = paged::kThreads, .shared_bytes = plan.select_smem}, params, cuda_stream);
}

}  // namespace fasa::ops
