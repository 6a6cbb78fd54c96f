// Included ahead of llama.cpp's CPU backend (cmake/llama_build.cmake). GCC's own intrinsics (12 to 14) do not say that
// ldtilecfg and tileloadd read memory, so stores to what they read are moved behind them or dropped, and llama.cpp crashes.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>

static inline void fasa_tile_loadconfig(const void* config) {
  __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])config));
}
#define _tile_loadconfig fasa_tile_loadconfig

#undef _tile_loadd
#define _tile_loadd(tile, base, stride) fasa_tile_loadd(tile, base, stride)  // `tile` may be a macro itself
#define fasa_tile_loadd(tile, base, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"((const void*)(base)), "r"((long)(stride)) : "memory")
#endif
