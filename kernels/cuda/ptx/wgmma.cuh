// wgmma, Hopper's asynchronous matrix product of a warpgroup (128 threads): d[64 × n] += a · b with b
// in shared memory, a in shared memory or registers, and float32 accumulators. sm_90a only; the
// host emulation has an equivalent. See PTX, "Asynchronous warpgroup level matrix instructions".
//
// Tiles in shared memory use the 128-byte swizzle (swizzle_128b()): rows of 64 elements (128
// bytes), eight rows to an atom of 1024 bytes. A tile with more columns is a sequence of tiles with
// 64 columns each. With group = lane / 4 and quad = lane % 4, a thread accumulates columns
// 8 · j + 2 · quad and + 1 of two rows: d[4 · j], d[4 · j + 1] of row 16 · warp + group,
// d[4 · j + 2], d[4 · j + 3] of row 16 · warp + group + 8.
#pragma once

#include "kernels/cuda/ptx/mma.cuh"

namespace ptrt {

inline constexpr int kSwizzleColumns = 64;      // elements of a row
inline constexpr int kSwizzleAtomBytes = 1024;  // eight rows; also the alignment of tiles

// Byte offset in a tile of element `column`, a multiple of 8, of a row.
__device__ __forceinline__ int swizzle_128b(int row, int column) {
  return row * 128 + ((column / 8 ^ row % 8) * 16);
}

// A matrix descriptor: a tile in shared memory as a factor.
#ifdef PTRT_CUDA_EMULATION
using SmemDescriptor = emulation::SmemDescriptor;
#else
struct SmemDescriptor {
  std::uint64_t bits;
  __device__ __forceinline__ SmemDescriptor advance(int bytes) const {
    return {bits + static_cast<std::uint64_t>(bytes >> 4)};
  }
};
#endif

// `leading_byte_offset`: from a tile to that with the next 64 columns, for a factor whose columns
// are those of the result.
__device__ __forceinline__ SmemDescriptor make_smem_descriptor(const void* tile, int leading_byte_offset) {
#ifdef PTRT_CUDA_EMULATION
  return {static_cast<const char*>(tile), leading_byte_offset};
#else
  const auto address = static_cast<std::uint64_t>(__cvta_generic_to_shared(tile));
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  return {(address & 0x3FFFF) >> 4 | static_cast<std::uint64_t>(leading_byte_offset >> 4) << 16 |
          static_cast<std::uint64_t>(kSwizzleAtomBytes >> 4) << 32 | kSwizzle128};
#endif
}

// Makes this thread's writes to shared memory visible to later wgmmas, after a barrier also to
// those of others.
__device__ __forceinline__ void fence_proxy_async() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Before the first wgmma, and after other instructions have written registers that a wgmma uses.
__device__ __forceinline__ void warpgroup_arrive() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void warpgroup_commit_batch() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most kPending committed groups are in flight.
template <int kPending>
__device__ __forceinline__ void warpgroup_wait() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}
// Releases or takes registers of a warpgroup, so that each of its threads has kCount.
template <int kCount>
__device__ __forceinline__ void warpgroup_reg_dealloc() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ __forceinline__ void warpgroup_reg_alloc() {
#ifndef PTRT_CUDA_EMULATION
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// Keeps the compiler from moving accesses to these registers across this point.
template <int kCount>
__device__ __forceinline__ void warpgroup_fence_operand([[maybe_unused]] float (&registers)[kCount]) {
#ifndef PTRT_CUDA_EMULATION
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
#endif
}
template <int kCount>
__device__ __forceinline__ void warpgroup_fence_operand(
    [[maybe_unused]] std::uint32_t (&registers)[kCount][4]) {
#ifndef PTRT_CUDA_EMULATION
#pragma unroll
  for (int i = 0; i < kCount; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(registers[i][j])::"memory");
#endif
}

// The instructions name every accumulator: %0 … %31 for n = 64, %0 … %63 for n = 128.
#ifndef PTRT_CUDA_EMULATION
#define PTRT_REGISTERS_32                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PTRT_ACCUMULATORS_32                                                                                \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),           \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
      "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),            \
      "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),            \
      "+f"(d[30]), "+f"(d[31])
#define PTRT_REGISTERS_64                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PTRT_ACCUMULATORS_64                                                                                \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),           \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
      "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),            \
      "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),            \
      "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),            \
      "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),            \
      "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]),            \
      "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]),            \
      "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
// a and b in shared memory, b with a row for each column of the result; d = a · b where `add` is
// zero.
#define PTRT_WGMMA_SS(type, n, names, sums, a_at, b_at, add_at)                                           \
  asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #add_at ", 0; wgmma.mma_async.sync.aligned.m64n" #n \
               "k16.f32." type "." type " {" names "}, %" #a_at ", %" #b_at ", add, 1, 1, 0, 0; }"        \
               : sums                                                                                     \
               : "l"(a.bits), "l"(b.bits), "r"(static_cast<int>(add)))
// a in registers, b in shared memory with a row for each k.
#define PTRT_WGMMA_RS(type, n, names, sums, a0, a1, a2, a3, b_at)                                     \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" names "}, {%" #a0 \
               ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_at ", 1, 1, 1, 1;"                             \
               : sums                                                                                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits))
#endif

// d [64 × n] = a [64 × 16] · b [n × 16]ᵀ, or += where `add`; both factors in shared memory, k
// contiguous.
template <typename T, int kAccumulators>
__device__ __forceinline__ void wgmma_ss(float (&d)[kAccumulators], SmemDescriptor a, SmemDescriptor b,
                                         bool add) {
  static_assert(kAccumulators == 64);
#ifdef PTRT_CUDA_EMULATION
  constexpr auto kToFloat = std::is_same_v<T, f16> ? from_float16 : from_bfloat16;
  emulation::wgmma_ss(d, kAccumulators, a, b, add, kToFloat);
#else
  if constexpr (std::is_same_v<T, f16>)
    PTRT_WGMMA_SS("f16", 128, PTRT_REGISTERS_64, PTRT_ACCUMULATORS_64, 64, 65, 66);
  else
    PTRT_WGMMA_SS("bf16", 128, PTRT_REGISTERS_64, PTRT_ACCUMULATORS_64, 64, 65, 66);
#endif
}

// d [64 × n] += a [64 × 16] · b [16 × n]; a in registers, each warp's rows in the layout of
// mma_m16n8k16().
template <typename T, int kAccumulators>
__device__ __forceinline__ void wgmma_rs(float (&d)[kAccumulators], const std::uint32_t (&a)[4],
                                         SmemDescriptor b) {
  static_assert(kAccumulators == 32 || kAccumulators == 64);
#ifdef PTRT_CUDA_EMULATION
  constexpr auto kToFloat = std::is_same_v<T, f16> ? from_float16 : from_bfloat16;
  emulation::wgmma_rs(d, kAccumulators, a, b, kToFloat);
#else
  if constexpr (kAccumulators == 64 && std::is_same_v<T, f16>)
    PTRT_WGMMA_RS("f16", 128, PTRT_REGISTERS_64, PTRT_ACCUMULATORS_64, 64, 65, 66, 67, 68);
  else if constexpr (kAccumulators == 64)
    PTRT_WGMMA_RS("bf16", 128, PTRT_REGISTERS_64, PTRT_ACCUMULATORS_64, 64, 65, 66, 67, 68);
  else if constexpr (std::is_same_v<T, f16>)
    PTRT_WGMMA_RS("f16", 64, PTRT_REGISTERS_32, PTRT_ACCUMULATORS_32, 32, 33, 34, 35, 36);
  else
    PTRT_WGMMA_RS("bf16", 64, PTRT_REGISTERS_32, PTRT_ACCUMULATORS_32, 32, 33, 34, 35, 36);
#endif
}

}  // namespace ptrt
