// Hopper's matrix product of a warpgroup (128 threads), which reads shared memory by itself: d[64 × n] += a ·
// b with float32 sums. Only sm_90a has it; the host emulation has a twin.
//
// Tiles in shared memory are rows of 64 elements (128 bytes), eight rows to a block of 1024 bytes, whose
// 16-byte pieces are exchanged by row (swizzled_byte()); tiles of more columns are such tiles one behind the
// other. A thread's sums are, of rows 16 · warp + group and + 8 (group = lane / 4), columns 8 · j + 2 · quad
// and + 1: d[4 · j], d[4 · j + 1] of the first row, d[4 · j + 2], d[4 · j + 3] of the second. PTX,
// "Asynchronous warpgroup level matrix instructions".
#pragma once

#include "kernels/cuda/ptx/mma.cuh"

namespace ptrt {

inline constexpr int kSwizzledColumns = 64;  // elements of a row
inline constexpr int kSwizzledBytes = 1024;  // of eight rows, and what tiles are aligned to

// Where element `column`, a multiple of 8, of a row of a tile lies.
__device__ __forceinline__ int swizzled_byte(int row, int column) {
  return row * 128 + ((column / 8 ^ row % 8) * 16);
}

#ifdef PTRT_CUDA_EMULATION
using SharedMatrix = emulation::SharedMatrix;
#else
struct SharedMatrix {
  std::uint64_t bits;
  __device__ __forceinline__ SharedMatrix at(int bytes) const {
    return {bits + static_cast<std::uint64_t>(bytes >> 4)};
  }
};
#endif

// A tile as a factor. `next_columns`: bytes to the tile with the next 64 columns, for a factor whose columns
// are those of the result.
__device__ __forceinline__ SharedMatrix shared_matrix(const void* tile, int next_columns) {
#ifdef PTRT_CUDA_EMULATION
  return {static_cast<const char*>(tile), next_columns};
#else
  const auto address = static_cast<std::uint64_t>(__cvta_generic_to_shared(tile));
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  return {(address & 0x3FFFF) >> 4 | static_cast<std::uint64_t>(next_columns >> 4) << 16 |
          static_cast<std::uint64_t>(kSwizzledBytes >> 4) << 32 | kSwizzle128};
#endif
}

// What this thread has written to shared memory the products to come may read; a barrier for the others.
__device__ __forceinline__ void show_to_products() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Before the first product, and when registers that a product takes were written otherwise.
__device__ __forceinline__ void begin_products() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void commit_products() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most kLeft committed groups of products are under way.
template <int kLeft>
__device__ __forceinline__ void wait_products() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
}
// A barrier of `threads` threads, whole warps, out of the block's sixteen (__syncthreads() is number 0); who
// only arrives counts and goes on.
__device__ __forceinline__ void named_barrier(int number, int threads) {
#ifdef PTRT_CUDA_EMULATION
  emulation::named_barrier(number, threads, true);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}
__device__ __forceinline__ void named_barrier_arrive(int number, int threads) {
#ifdef PTRT_CUDA_EMULATION
  emulation::named_barrier(number, threads, false);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}

// A warpgroup gives registers of its threads away, or takes such, to have kCount a thread.
template <int kCount>
__device__ __forceinline__ void give_registers() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// Keeps the compiler from moving what it does with registers over this point.
template <int kCount>
__device__ __forceinline__ void hold([[maybe_unused]] float (&registers)[kCount]) {
#ifndef PTRT_CUDA_EMULATION
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
#endif
}
template <int kCount>
__device__ __forceinline__ void hold([[maybe_unused]] std::uint32_t (&registers)[kCount][4]) {
#ifndef PTRT_CUDA_EMULATION
#pragma unroll
  for (int i = 0; i < kCount; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(registers[i][j])::"memory");
#endif
}

// The instructions name every register: %0 … %31 of a result 64 wide, %0 … %63 of one 128 wide.
#ifndef PTRT_CUDA_EMULATION
#define PTRT_NAMES_32                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PTRT_SUMS_32                                                                                        \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),           \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
      "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),            \
      "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),            \
      "+f"(d[30]), "+f"(d[31])
#define PTRT_NAMES_64                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PTRT_SUMS_64                                                                                        \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),           \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
      "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),            \
      "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),            \
      "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),            \
      "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),            \
      "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]),            \
      "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]),            \
      "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
// a and b in shared memory, b with a row for each column of the result; d = a · b where `add` is zero.
#define PTRT_PRODUCT_OF_TILES(type, n, names, sums, a_at, b_at, add_at)                                   \
  asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #add_at ", 0; wgmma.mma_async.sync.aligned.m64n" #n \
               "k16.f32." type "." type " {" names "}, %" #a_at ", %" #b_at ", add, 1, 1, 0, 0; }"        \
               : sums                                                                                     \
               : "l"(a.bits), "l"(b.bits), "r"(static_cast<int>(add)))
// a in registers, b with a row for each of the inputs.
#define PTRT_PRODUCT_OF_ROWS(type, n, names, sums, a0, a1, a2, a3, b_at)                              \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" names "}, {%" #a0 \
               ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_at ", 1, 1, 1, 1;"                             \
               : sums                                                                                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits))
#endif

// d [64 × n] = or += a [64 × 16] · b [n × 16]ᵀ, both tiles with 16 neighbouring inputs of each row.
template <typename T, int kSums>
__device__ __forceinline__ void product_of_tiles(float (&d)[kSums], SharedMatrix a, SharedMatrix b,
                                                 bool add) {
  static_assert(kSums == 64);
#ifdef PTRT_CUDA_EMULATION
  constexpr auto kWiden = std::is_same_v<T, f16> ? from_float16 : from_bfloat16;
  emulation::product_of_tiles(d, kSums, a, b, add, kWiden);
#else
  if constexpr (std::is_same_v<T, f16>)
    PTRT_PRODUCT_OF_TILES("f16", 128, PTRT_NAMES_64, PTRT_SUMS_64, 64, 65, 66);
  else
    PTRT_PRODUCT_OF_TILES("bf16", 128, PTRT_NAMES_64, PTRT_SUMS_64, 64, 65, 66);
#endif
}

// d [64 × n] += a [64 × 16] · b [16 × n]; a as mma_16x8x16() takes it, a warp's rows in its lanes.
template <typename T, int kSums>
__device__ __forceinline__ void product_of_rows(float (&d)[kSums], const std::uint32_t (&a)[4],
                                                SharedMatrix b) {
  static_assert(kSums == 32 || kSums == 64);
#ifdef PTRT_CUDA_EMULATION
  constexpr auto kWiden = std::is_same_v<T, f16> ? from_float16 : from_bfloat16;
  emulation::product_of_rows(d, kSums, a, b, kWiden);
#else
  if constexpr (kSums == 64 && std::is_same_v<T, f16>)
    PTRT_PRODUCT_OF_ROWS("f16", 128, PTRT_NAMES_64, PTRT_SUMS_64, 64, 65, 66, 67, 68);
  else if constexpr (kSums == 64)
    PTRT_PRODUCT_OF_ROWS("bf16", 128, PTRT_NAMES_64, PTRT_SUMS_64, 64, 65, 66, 67, 68);
  else if constexpr (std::is_same_v<T, f16>)
    PTRT_PRODUCT_OF_ROWS("f16", 64, PTRT_NAMES_32, PTRT_SUMS_32, 32, 33, 34, 35, 36);
  else
    PTRT_PRODUCT_OF_ROWS("bf16", 64, PTRT_NAMES_32, PTRT_SUMS_32, 32, 33, 34, 35, 36);
#endif
}

}  // namespace ptrt
