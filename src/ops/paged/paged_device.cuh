// What the kernels of the paged decode step share: PTX in one place, ordered keys, addresses.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "src/ops/paged/paged.h"
#include "src/ops/paged/paged_layout.h"

namespace fasa::ops::paged {

using u32 = uint32_t;

// What every kernel of a step is given (under 4 KiB of parameters).
struct StepParams {
  PagedArgs a;
  PagedPlan plan;
  uint2* slots = nullptr;   // [score sets][score_ctas][plan.slots] (key, token), key 0: empty
  uint4* bounds = nullptr;  // [score sets][score_ctas] of these lists (paged_prune.cuh)
  u32 page_factor = 0;      // page of a token: high word of 2 * token * page_factor, shifted right
  int32_t page_shift = 0;
  AttendLayout layout;        // of launch 2
  float score_factor = 0;     // of q.k: to the base of 2, or relative to the cap
  float score_cap = 0;        // soft-cap to the base of 2; 0: none
  u32 cta_factor = 0;         // 2^32 / plan.score_ctas, at most 2^32 - 1
  int32_t rows_of_token = 0;  // of launch 1
  float lead_rate = 0;        // plan.lead_ns / max_length
  float sample_rate = 0;      // 2 / tokens that are chosen
  // Of divided(), by plan.cluster, by the rows of a token in launch 1 and in launch 2, and by group.
  u32 cluster_factor = 0;
  u32 row_factor = 0;
  u32 attend_factor = 0;
  u32 group_factor = 0;
  int32_t group = 1;  // query heads of a KV head
};

// Programmatic dependent launch. wait: all that earlier kernels of the stream wrote is visible.
// launch_dependents: the next kernel may start (its own wait still holds it back from our results).
__device__ __forceinline__ void grid_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void grid_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// a / b, the same as of the division where b, 1 / b and the quotient are normal numbers. A division has a call for the others, in front of
// which all loads on their way are waited for, whether it is taken or not.
__device__ __forceinline__ float divide(float a, float b) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  r = fmaf(fmaf(-b, r, 1.0F), r, r);
  const float q = a * r;
  return fmaf(fmaf(-b, q, a), r, q);
}
__device__ __forceinline__ float sqrt_fast(float x) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}

// Of the device's clock, which wraps.
__device__ __forceinline__ u32 nanoseconds() {
  u32 ns;
  asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(ns));
  return ns;
}

// What is read once: past L1, so that no line of it is ever old there.
template <class T>
__device__ __forceinline__ T load_stream(const void* p);
template <>
__device__ __forceinline__ u32 load_stream<u32>(const void* p) {
  u32 v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
template <>
__device__ __forceinline__ int load_stream<int>(const void* p) {
  int v;
  asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
template <>
__device__ __forceinline__ unsigned short load_stream<unsigned short>(const void* p) {
  unsigned short v;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p));
  return v;
}
template <>
__device__ __forceinline__ uint2 load_stream<uint2>(const void* p) {
  uint2 v;
  asm volatile("ld.global.cg.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
template <>
__device__ __forceinline__ uint4 load_stream<uint4>(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
// Index rows, the most of all bytes: 6 to 10% faster than load_stream.
__device__ __forceinline__ uint4 load_row(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ uint4 load_shared(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// x is in a register from here on: not computed after a wait that follows, or anew in each round of a loop.
template <class T>
__device__ __forceinline__ void computed(T& x) {
  asm volatile("" : "+l"(x));
}
// Has the address translated before it is needed. The value is not used, so another kernel may be writing it.
__device__ __forceinline__ void touch(const void* p) {
  asm volatile("{.reg .u32 v; ld.volatile.global.u32 v, [%0];}" ::"l"(p));
}
__device__ __forceinline__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
__device__ __forceinline__ void copy_async16(u32 shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async4(u32 shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// But for the last kPending of this thread's groups.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
__device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Stores to the shared memory of another CTA of the cluster, which that CTA sees by waiting on a barrier of its own: no
// fence of all memory, as a barrier of the cluster has.
__device__ __forceinline__ u32 peer_address(u32 address, int rank) {
  u32 peer;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
  return peer;
}
// One thread; the cluster synchronises before anyone stores.
__device__ __forceinline__ void init_barrier(u32 barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void share_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// One thread: the barrier's phase ends when so many bytes were stored, some of them before this perhaps.
__device__ __forceinline__ void expect_stores(u32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void store_peer(u32 to, u32 barrier, float4 v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to),
               "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void store_peer(u32 to, u32 barrier, float2 v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];" ::"r"(to), "f"(v.x),
               "f"(v.y), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void store_peer(u32 to, u32 barrier, uint4 v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void store_peer(u32 to, u32 barrier, uint2 v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%0], {%1,%2}, [%3];" ::"r"(to), "r"(v.x),
               "r"(v.y), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void store_peer(u32 to, u32 barrier, u32 v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to), "r"(v),
               "r"(barrier)
               : "memory");
}
// What arrives is in this CTA's own shared memory: acquiring for the cluster would empty L1 at every try.
__device__ __forceinline__ void wait_stores(u32 barrier, u32 parity = 0) {
  u32 done = 0;
  while (done == 0) {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  }
}

// i / n where factor is 2^31 / n, rounded up; for i * n below 2^31: check() lets no shape have more rows, or rows of a token, than that.
__device__ __forceinline__ int divided(int i, u32 factor) {
  return static_cast<int>(__umulhi(2U * static_cast<u32>(i), factor));
}

// 2^x in one instruction, to 2 ulp; 0 below 2^-126.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Scores as unsigned keys in the same order; 0 is below every score and means "none".
__device__ __forceinline__ u32 key_of(int s) { return static_cast<u32>(s) ^ 0x80000000U; }
__device__ __forceinline__ u32 key_of(float s) {
  const u32 b = __float_as_uint(s);
  const u32 key = (b & 0x80000000U) != 0 ? ~b : (b | 0x80000000U);
  return s == s ? key : 0U;
}

__device__ __forceinline__ u32 bits_of(int s) { return static_cast<u32>(s); }
__device__ __forceinline__ u32 bits_of(float s) { return __float_as_uint(s); }

// The float of a key; NaN where there is none.
__device__ __forceinline__ float value_of(u32 key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key ^ 0x80000000U : ~key);
}

// A position's page and its place in it.
struct Place {
  int page;
  int offset;
};
template <class Params>
__device__ __forceinline__ Place place_of(const Params& p, int token) {
  const int page = static_cast<int>(__umulhi(2U * static_cast<u32>(token), p.page_factor) >> p.page_shift);
  return {page, token - page * p.a.shape.page_size};
}
__device__ __forceinline__ int64_t cache_offset(const PagedCache& c, int block, int head, int offset) {
  return block * c.block_stride + head * c.head_stride + offset * c.token_stride;
}
__device__ __forceinline__ const char* row_at(const PagedRows& r, int seq, int token, int head) {
  return static_cast<const char*>(r.data) + seq * r.seq_stride + token * r.token_stride + head * r.head_stride;
}

__device__ __forceinline__ float half_value(unsigned short bits, bool is_f16) {
  return is_f16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(static_cast<u32>(bits) << 16);
}
// The 16-bit value at p, past every cache that could hold it from before an earlier kernel's write.
__device__ __forceinline__ float load_half_fresh(const void* p, bool is_f16) {
  return half_value(__ldcg(static_cast<const unsigned short*>(p)), is_f16);
}

// One value as an index code (paged.h, encode). `x` is already scaled.
__device__ __forceinline__ int encode_int(float x, float limit) {
  return x == x ? __float2int_rn(fminf(fmaxf(x, -limit), limit)) : 0;
}
__device__ __forceinline__ u32 encode_fp8(float x) {
  return x == x ? static_cast<u32>(__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)) : 0U;
}
__device__ __forceinline__ u32 encode_bf16(float x) {
  const float m = 3.3895313892515355e38F;  // largest finite bf16
  return x == x ? static_cast<u32>(__bfloat16_as_ushort(__float2bfloat16_rn(fminf(fmaxf(x, -m), m)))) : 0U;
}

}  // namespace fasa::ops::paged
