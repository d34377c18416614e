// The tensor-core product and what feeds it from shared memory, each one instruction on the device and a twin
// in the host emulation. Fragments are spread over the lanes of a warp as PTX defines them; with
// group = lane / 4 and quad = lane % 4:
//   a (16×16, rows × k): a[0] row group, a[1] row group + 8, both k 2·quad, 2·quad + 1; a[2], a[3] the same
//                        rows, k + 8
//   b (16×8, k × columns): b[0] k 2·quad, 2·quad + 1 of column group; b[1] the same column, k + 8
//   d (16×8, rows × columns): d[0], d[1] row group, columns 2·quad, 2·quad + 1; d[2], d[3] row group + 8
#pragma once

#include <type_traits>

#include "kernels/cuda/base/numbers.cuh"

#ifdef PTRT_CUDA_EMULATION
#include "cuda_emulation/tensor_core.h"
#include "kernels/base/scalar_types.h"
#endif

namespace ptrt {

// d += a · b with factors of type T, bf16 or f16, and float32 sums. All lanes of the warp call it.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4],
                                            const std::uint32_t (&b)[2]) {
#ifdef PTRT_CUDA_EMULATION
  constexpr auto kWiden = std::is_same_v<T, f16> ? from_float16 : from_bfloat16;
  emulation::mma_16x8x16(d, a, b, kWiden);
#else
  if constexpr (std::is_same_v<T, f16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8×8 matrices of 16-bit elements from shared memory: lane 8·m + r gives the 16-byte aligned address of
// row r of matrix m; out[m] is, of matrix m, row group, columns 2·quad, 2·quad + 1.
__device__ __forceinline__ void load_matrices(std::uint32_t (&out)[4], const void* row) {
#ifdef PTRT_CUDA_EMULATION
  emulation::load_matrices(out, row, false);
#else
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
#endif
}

// The same, transposed: out[m] is rows 2·quad, 2·quad + 1 of column group.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&out)[4], const void* row) {
#ifdef PTRT_CUDA_EMULATION
  emulation::load_matrices(out, row, true);
#else
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
#endif
}

// Starts a copy of 16 bytes from global to shared memory, both aligned to 16; zeros where `valid` is false.
// The L2 cache is asked for 128 bytes: the others copy the rest.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
#ifdef PTRT_CUDA_EMULATION
  emulation::copy_async(to, from, valid ? 16 : 0);
#else
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from),
               "r"(bytes)
               : "memory");
#endif
}

// The copies started since the last call form a group.
__device__ __forceinline__ void commit_copies() {
#ifdef PTRT_CUDA_EMULATION
  emulation::commit_copies();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most kLeft of this thread's groups are under way; a barrier shows the others what has come.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
#ifdef PTRT_CUDA_EMULATION
  emulation::wait_copies(kLeft);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace ptrt
