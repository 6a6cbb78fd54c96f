// What no decode step can beat: one launch that reads the index, one that reads the kept rows of K and V.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

__device__ __forceinline__ uint4 load(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__global__ void __launch_bounds__(512) read_kernel(const uint4* data, int64_t count, uint32_t* sink) {
  constexpr int kLoads = 8;
  uint32_t x = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kLoads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x * kLoads + threadIdx.x; i < count; i += step) {
    uint4 v[kLoads] = {};
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int64_t at = i + static_cast<int64_t>(j) * blockDim.x;
      if (at < count) v[j] = load(data + at);
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (x == 0x12345678U) *sink = x;
}

// A warp a row: half of it K, half V, 256 bytes each.
__global__ void __launch_bounds__(256)
    gather_kernel(const uint4* k, const uint4* v, const int64_t* rows, int64_t count, uint32_t* sink) {
  const int lane = threadIdx.x & 31;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) >> 5;
  if (i >= count) return;
  const uint4 x = load((lane < 16 ? k : v) + rows[i] * 16 + (lane & 15));
  if ((x.x ^ x.y ^ x.z ^ x.w) == 0x12345678U) *sink = x.x;
}

}  // namespace

extern "C" {

// Bytes a multiple of 16; rows are numbers of 256-byte rows of k and v.
void fasa_floor_read(const void* data, int64_t bytes, void* sink, int32_t ctas, void* stream) {
  read_kernel<<<ctas, 512, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<const uint4*>(data), bytes / 16,
                                                                   static_cast<uint32_t*>(sink));
}
void fasa_floor_gather(const void* k, const void* v, const int64_t* rows, int64_t count, void* sink, void* stream) {
  gather_kernel<<<static_cast<unsigned>((count + 7) / 8), 256, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const uint4*>(k), static_cast<const uint4*>(v), rows, count, static_cast<uint32_t*>(sink));
}

}  // extern "C"
